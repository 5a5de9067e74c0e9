"""What the regulariser adds to a training step: ResNet-18, batch 32, 64x64, plain beside regularised.

Usage: python -m tools.bench_step [--pairs 60] [--threads 2] [-o docs/training-step]

Two copies of one network take steps in turn, on the same images, the order of each pair drawn by chance;
the figure is the median over pairs of regularised over plain. Raw times are kept beside the page.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.nn import functional

import latmorph as lm
from latmorph.files import write_whole
from tools.networks import resnet18
from tools.pairs import interleaved, machine


class Pairs(msgspec.Struct, frozen=True):
    """Seconds of each step, pair by pair, for one way of regularising."""

    mode: str
    plain_s: tuple[float, ...]
    regularised_s: tuple[float, ...]

    @property
    def ratios(self) -> np.ndarray:
        """Regularised over plain, of every pair."""
        return np.asarray(self.regularised_s) / np.asarray(self.plain_s)


def stepper(model: torch.nn.Module, regularizer: lm.Regularizer | None, classic: bool) -> Callable[[], float]:
    """A function that takes one training step and returns its seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if regularizer is not None and not classic:
        regularizer.attach(optimizer)
    x, y = torch.randn(32, 3, 64, 64), torch.randint(0, 1000, (32,))
    model.train()

    def step() -> float:
        start = time.perf_counter()
        loss = functional.cross_entropy(model(x), y)
        if regularizer is not None and classic:
            loss = loss + regularizer.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def run(mode: str, cost: lm.CostModel, pairs: int) -> Pairs:
    """Interleaved steps of a plain and a regularised copy."""
    torch.manual_seed(0)
    model = resnet18()
    twin = copy.deepcopy(model)
    regularizer = lm.Regularizer(twin, (torch.zeros(1, 3, 64, 64),), cost, target=0.7, steps=pairs * 2)
    steps = {
        "plain": stepper(model, None, False),
        "regularised": stepper(twin, regularizer, mode == "classic"),
    }
    times = interleaved(steps, pairs)
    return Pairs(mode, tuple(times["plain"]), tuple(times["regularised"]))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/training-step"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cost = lm.LatencyCost(lm.load_profile(args.profile))
    results = [run(mode, cost, args.pairs) for mode in ("proximal", "classic")]
    lines = [
        "# What the regulariser adds to a training step",
        "",
        "Written by `python -m tools.bench_step`; raw times in `training-step.json`. ResNet-18, batch 32,",
        f"64x64, SGD, latency cost with a target, {args.pairs} interleaved pairs. {machine()}.",
        "",
        "| mode | plain, median | regularised over plain, median | quartiles | means |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        low, mid, high = np.quantile(r.ratios, [0.25, 0.5, 0.75])
        lines.append(
            f"| {r.mode} | {1e3 * np.median(r.plain_s):.0f} ms | {mid:.3f} | {low:.3f} to {high:.3f} | "
            f"{np.mean(r.regularised_s) / np.mean(r.plain_s):.3f} |"
        )
    text = "\n".join(lines) + "\n"
    raw = msgspec.json.encode({"machine": machine(), "results": results})
    write_whole(args.output.with_suffix(".json"), msgspec.json.format(raw, indent=1) + b"\n")
    write_whole(args.output.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
