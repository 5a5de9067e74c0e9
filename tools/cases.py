"""The networks that predictions are checked on: values, of which another process can make the networks."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import latmorph as lm
from latmorph.device.backend import Backend
from latmorph.device.timing import time_calls
from latmorph.report.measured import Model, call_of
from tools.hard_set import HardNetwork, hard_set
from tools.zoo import import_torchvision, picture, written_out, zoo

HARD_COUNT = 64
REMOVALS, PRUNED = 12, 3
FOCUS_VARIANTS = 20

REMOVAL_ZOO = (
    *("torchvision resnet18", "torchvision mobilenet_v2", "torchvision squeezenet1_1"),
    *("torchvision regnet_y_400mf", "timm mixer_s16_224"),
)
REMOVAL_HARD = ("basic", "bottleneck", "inverted", "separable", "branches")
"""Parents of the removal set: of the zoo, and the first hard network of each of these families."""

FOCUS_ON = ("ResNet-18", "MobileNetV2")

Made = tuple[torch.nn.Module, tuple[torch.Tensor, ...]]
"""A network in eval mode, and its inputs."""


class Designed(msgspec.Struct, frozen=True, tag="designed"):
    """A network of a zoo, or one of those written out here, by name."""

    name: str
    batch: int = 1

    def make(self) -> Made:
        """The network and its inputs."""
        network = {**written_out(), **zoo()}[self.name]
        return network.make(), network.inputs(self.batch)


class Drawn(msgspec.Struct, frozen=True, tag="drawn"):
    """A network of the hard set."""

    network: HardNetwork

    def make(self) -> Made:
        """The network and its inputs."""
        return self.network.make(), (picture(self.network.shape),)


class Case(msgspec.Struct, frozen=True):
    """A network of a set. A shrunk one names its parent, and the structure that is left of it.

    Which channels are left, no clock can tell: it is the first ones of every group.
    """

    name: str
    source: Designed | Drawn
    parent: str = ""
    structure: lm.Structure | None = None

    @property
    def shrunk(self) -> dict[str, int]:
        """The groups that lost channels, and the width that is left."""
        groups = {} if self.structure is None else self.structure.groups
        return {name: len(g.kept) for name, g in groups.items() if len(g.kept) < g.width}

    def make(self, device: str = "cpu") -> Made:
        """The network and its inputs."""
        model, inputs = self.source.make()
        if self.structure is not None:
            model = lm.shrink(model, self.structure)
        return model.to(device), tuple(x.to(device) for x in inputs)


def import_zoos() -> None:
    """Import what any network needs, so that the process that times one has little to do besides."""
    for library, module in (
        ("torchvision", "torchvision.models"),
        ("timm", "timm"),
        ("pytorchcv", "pytorchcv.model_provider"),
        ("transformers", "transformers"),
    ):
        if find_spec(library):
            import_torchvision()
            importlib.import_module(module)


def time_case(
    backend: Backend, *, case: Mapping[str, Any], onnx: str | None, passes: int, reference_s: float | None
) -> tuple[float, Sequence[float], Sequence[float]]:
    """A case's calm time, its samples, and the reference's beside them, in seconds; or of its ONNX file."""
    network: Model = Path(onnx or "")
    inputs: tuple[torch.Tensor, ...] = ()
    if onnx is None:
        with torch.inference_mode(False):  # to be shrunk, a network must have ordinary tensors
            network, inputs = msgspec.convert(case, Case).make(backend.device)
    timing = time_calls(
        backend, {"it": call_of(backend, network, inputs)}, passes=passes, reference_s=reference_s
    )["it"]
    return timing.time_s, timing.samples_s, timing.references_s


# The sets.


@dataclass(frozen=True)
class Cases:
    """The networks of a set, and by name the graphs of those that have shrunk ones."""

    networks: Sequence[Case]
    graphs: Mapping[str, lm.Graph] = field(default_factory=dict)


def cases_of(name: str, *, seed: int = 0, batch: int = 1, limit: int | None = None) -> Cases:
    """The networks of a set; ``limit`` is the most of them (or of parents and of shrunk ones)."""
    if name == "zoo":
        return Cases([Case(z, Designed(z, batch)) for z in list(zoo())[:limit]])
    if name == "hard":
        return Cases([_hard(h) for h in hard_set(seed, HARD_COUNT if limit is None else limit)])
    if name == "removal":
        known = zoo()
        parents = [Case(z, Designed(z)) for z in ([z for z in REMOVAL_ZOO if z in known] or FOCUS_ON)]
        drawn = hard_set(seed, 20)
        parents += [_hard(next(h for h in drawn if h.family == family)) for family in REMOVAL_HARD]
        return _families(parents[:limit], (REMOVALS, PRUNED) if limit is None else (limit, 1), seed)
    parents = [Case(z, Designed(z)) for z in FOCUS_ON][:limit]
    return _families(parents, (0, FOCUS_VARIANTS if limit is None else limit), seed)


def _hard(network: HardNetwork) -> Case:
    return Case(f"hard {network.name}", Drawn(network))


def _families(parents: Iterable[Case], counts: tuple[int, int], seed: int) -> Cases:
    """Every parent, then so many of it with one group shrunk and so many with all groups shrunk."""
    networks, graphs = [], {}
    for k, parent in enumerate(parents):
        print(f"{parent.name}: drawing what to remove", flush=True)
        graph = lm.capture(*parent.make())
        random = np.random.default_rng((seed, k, 2))
        drawn = [*one_group(graph, counts[0], random), *all_groups(graph, counts[1], random)]
        networks.append(parent)
        networks += [shrunk(parent, graph, widths, number) for number, widths in enumerate(drawn)]
        graphs[parent.name] = graph
    return Cases(networks, graphs)


def shrunk(parent: Case, graph: lm.Graph, widths: Mapping[str, int], number: int = 0) -> Case:
    """The parent with so many channels left of some groups."""
    structure = lm.Structure.keep(graph, {group: range(width) for group, width in widths.items()})
    single = ", ".join(f"{g} to {w}" for g, w in widths.items())
    name = f"{parent.name}: {single if len(widths) == 1 else f'pruned {number}'}"
    return Case(name, parent.source, parent.name, structure)


def one_group(graph: lm.Graph, count: int, random: np.random.Generator) -> list[dict[str, int]]:
    """Removals from one group each, drawn by the FLOPs that hang on it.

    Half leave any width, a quarter take one to four channels, a quarter leave one off a block's edge.
    """
    groups = [g for g in graph.prunable if graph.groups[g].width > 1]
    if not groups:
        return []
    tried = np.repeat(graph.widths[None], len(groups), axis=0)
    for row, g in enumerate(groups):
        tried[row, g] = max(1, tried[row, g] // 2)
    saved = np.maximum(-lm.FlopCost().change(graph, graph.widths, tried), 1.0)
    drawn: list[dict[str, int]] = []
    for _ in range(20 * count):
        if len(drawn) == count:
            break
        group = graph.groups[int(random.choice(groups, p=saved / saved.sum()))]
        draw = random.random()
        width = int(random.integers(1, group.width))
        if draw < 0.25:
            width = group.width - int(random.integers(1, 5))
        elif draw < 0.5:
            block = int(random.choice((8, 16, 32)))
            width = block * round(width / block) + int(random.choice((-1, 1)))
        found = {group.name: min(max(width, 1), group.width - 1)}
        if found not in drawn:
            drawn.append(found)
    return drawn


def all_groups(graph: lm.Graph, count: int, random: np.random.Generator) -> list[dict[str, int]]:
    """Whole networks shrunk: one factor for all groups, each off it by its own, half of the widths odd."""
    drawn = []
    for _ in range(count):
        factor = random.uniform(0.25, 0.95)
        widths = {}
        for g in graph.prunable:
            own = graph.groups[g].width * factor * np.exp(random.normal(0.0, 0.3))
            width = 2 * int(own / 2) + 1 if random.random() < 0.5 else 2 * round(own / 2)
            widths[graph.groups[g].name] = int(min(max(width, 1), graph.groups[g].width))
        drawn.append(widths)
    return drawn
