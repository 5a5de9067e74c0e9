"""The demo: the whole story on embedded data, in minutes.

Profile the device, train a small residual network, learn a FLOP-targeted and a latency-targeted structure
to the same target, shrink, fine-tune, and measure both beside the parent and a uniformly narrower one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from latmorph.data.fashion import Images
from latmorph.files import write_whole
from latmorph.graph.capture import capture
from latmorph.graph.graph import Graph
from latmorph.latency.profile import Profile
from latmorph.morph.cost import CostModel, FlopCost, LatencyCost
from latmorph.morph.expand import widest, with_widths
from latmorph.morph.regularizer import Regularizer
from latmorph.morph.structure import shrink
from latmorph.report.comparison import Comparison, compared
from latmorph.report.measured import measure_together

BATCH = 100
"""Images in a training step."""

LATENCY_BATCH = 32
"""Images whose latency is measured and targeted."""


FOCUS_VARIANTS = 60
"""Narrower variants of its network that the demo's quick profile measures."""


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for ``(n, 1, 28, 28)`` images and 10 classes."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Conv2d(1, a, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(a)
        self.block1 = Block(a, a, 1)
        self.block2 = Block(a, b, 2)
        self.block3 = Block(b, c, 2)
        self.head = nn.Linear(c, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def demo_graph() -> Graph:
    """The demo's network, captured at the batch whose latency counts."""
    return capture(SmallResNet(), (torch.zeros(LATENCY_BATCH, 1, 28, 28),))


@dataclass
class Schedule:
    """Optimiser steps of each stage; every network of the table gets the same number in all."""

    train: int = 120
    regularise: int = 160
    tune: int = 100


Say = Callable[[float, str], None]


class _Data:
    def __init__(self, images: Images, device: str, seed: int) -> None:
        mean = float(images.train_images.mean()) / 255
        std = float(images.train_images.std()) / 255

        def tensor(values: np.ndarray) -> torch.Tensor:
            scaled = (values[:, None].astype(np.float32) / 255 - mean) / std
            return torch.from_numpy(scaled).to(device)

        self.x = tensor(images.train_images)
        self.y = torch.from_numpy(images.train_labels.astype(np.int64)).to(device)
        self.test_x = tensor(images.test_images)
        self.test_y = torch.from_numpy(images.test_labels.astype(np.int64)).to(device)
        self.seed = seed

    def train(
        self, model: nn.Module, steps: int, lr: float, attach: Callable[[Any], None] | None = None
    ) -> None:
        """SGD with a cosine schedule, or a constant rate while a regulariser is attached."""
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        if attach is not None:
            attach(optimizer)
            rate: Any = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        else:
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        random = torch.Generator().manual_seed(self.seed)
        order = torch.empty(0, dtype=torch.int64)
        model.train()
        for _ in range(steps):
            if len(order) < BATCH:
                order = torch.randperm(len(self.x), generator=random)
            chosen, order = order[:BATCH].to(self.x.device), order[BATCH:]
            loss = nn.functional.cross_entropy(model(self.x[chosen]), self.y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
        model.eval()

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Test accuracy in percent."""
        model.eval()
        right = 0
        for start in range(0, len(self.test_y), 500):
            here = slice(start, start + 500)
            right += int((model(self.test_x[here]).argmax(1) == self.test_y[here]).sum())
        return 100 * right / len(self.test_y)


def run_demo(
    profile: Profile,
    images: Images,
    *,
    target: float = 0.5,
    schedule: Schedule | None = None,
    seed: int = 0,
    say: Say | None = None,
) -> Comparison:
    """Train on ``images``, learn both structures, shrink, fine-tune and measure."""
    schedule = Schedule() if schedule is None else schedule
    tell: Say = say if say is not None else lambda fraction, text: None
    device = profile.fingerprint.device
    torch.manual_seed(seed)
    store = _Data(images, device, seed)
    x = torch.zeros(LATENCY_BATCH, 1, 28, 28, device=device)
    latency: CostModel = LatencyCost(profile)
    lr = 0.1

    tell(0.0, "training the parent")
    parent = SmallResNet().to(device)
    store.train(parent, schedule.train, lr)
    graph = capture(parent, (x,))
    networks: dict[str, nn.Module] = {"parent": _finished(store, parent, schedule, lr)}

    for k, (name, cost) in enumerate({"FLOP-targeted": FlopCost(), "latency-targeted": latency}.items()):
        tell(0.3 + 0.25 * k, f"learning the {name} structure")
        networks[name] = _morph(store, parent, x, cost, target, schedule, lr)

    tell(0.8, "training the uniformly narrower network")
    widths = widest(graph, latency, target * latency.total(graph))
    uniform = _fresh(with_widths(parent, graph, widths))
    store.train(uniform, schedule.train + schedule.regularise, lr)
    store.train(uniform, schedule.tune, lr / 2)
    networks["uniform width"] = uniform

    tell(0.92, "measuring")
    order = ("parent", "uniform width", "FLOP-targeted", "latency-targeted")
    timings = measure_together({n: (networks[n], (x,)) for n in order}, profile, passes=16)
    rows = tuple(
        compared(n, networks[n], (x,), profile, graph, timings[n], store.accuracy(networks[n])) for n in order
    )
    return Comparison(
        profile.name,
        profile.fingerprint.name,
        target,
        LATENCY_BATCH,
        len(images.train_images),
        len(images.test_images),
        seed,
        rows,
        profile.notes,
    )


def _finished(store: _Data, model: nn.Module, schedule: Schedule, lr: float) -> nn.Module:
    """The parent trained on for as many steps as the others get."""
    import copy

    finished = copy.deepcopy(model)
    store.train(finished, schedule.regularise, lr / 2)
    store.train(finished, schedule.tune, lr / 2)
    return finished


def _fresh(model: nn.Module) -> nn.Module:
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return model


def _morph(
    store: _Data,
    parent: nn.Module,
    x: torch.Tensor,
    cost: CostModel,
    target: float,
    schedule: Schedule,
    lr: float,
) -> nn.Module:
    import copy

    model = copy.deepcopy(parent)
    regularizer = Regularizer(model, (x,), cost, target=target, steps=int(0.8 * schedule.regularise), every=5)
    store.train(model, schedule.regularise, lr / 2, regularizer.attach)
    small = shrink(model, regularizer.structure())
    store.train(small, schedule.tune, lr / 2)
    return small


def save_result(result: Comparison, path: Path) -> None:
    """Write the result as JSON, whole or not at all."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
