"""How long grouping and rebuilding take as networks get deeper: a ResNet of 1000 layers, 96 attention blocks.

Usage: python -m tools.bench_scaling [--rounds 3] [-o docs/scaling]

Weights are on the meta device: nothing is computed with them. A network and a tenth of it are captured and
shrunk by three channels in ten, in turn; the figure is how many times longer the whole takes,
over how many times deeper it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

import latmorph as lm
from latmorph.files import write_whole
from tools.networks import Encoder, ResNet
from tools.oracle import random_structure
from tools.pairs import machine


def resnet(layers: int) -> nn.Module:
    """A bottleneck ResNet of about so many convolutions, in four stages."""
    return ResNet([layers // 12] * 4, bottleneck=True)


def encoder(blocks: int) -> nn.Module:
    """So many blocks of an encoder as wide as ViT-B's, twelve heads each."""
    return nn.Sequential(*(Encoder(768, 12, 3072) for _ in range(blocks)), nn.LayerNorm(768))


@dataclass(frozen=True)
class Case:
    """Networks by their depth, the depths that are compared, and the shape of the input."""

    name: str
    build: Callable[[int], nn.Module]
    depths: tuple[int, int]
    shape: tuple[int, ...]


CASES = (
    Case("ResNet, layers", resnet, (100, 1000), (2, 3, 64, 64)),
    Case("transformer, blocks", encoder, (10, 96), (2, 64, 768)),
)


class Result(msgspec.Struct, frozen=True):
    """One network once: seconds to capture it, and to shrink it."""

    name: str
    depth: int
    operators: int
    groups: int
    capture_s: float
    shrink_s: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.capture_s + self.shrink_s


def run(case: Case, depth: int) -> Result:
    """Capture and shrink one network."""
    with torch.device("meta"):
        model, x = case.build(depth).eval(), torch.empty(case.shape)
    start = time.perf_counter()
    graph = lm.capture(model, (x,))
    captured = time.perf_counter()
    structure = random_structure(graph, 0)
    begun = time.perf_counter()
    small = lm.shrink(model, structure)
    ended = time.perf_counter()
    assert sum(p.numel() for p in small.parameters()) < graph.parameters
    return Result(case.name, depth, len(graph.nodes), len(graph.groups), captured - start, ended - begun)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/scaling"))
    args = parser.parse_args()
    run(CASES[0], 12)  # what the first capture imports
    results = [run(c, d) for _ in range(args.rounds) for c in CASES for d in c.depths]
    lines = [
        "# How grouping and rebuilding grow with depth",
        "",
        "Written by `python -m tools.bench_scaling`; raw times in `scaling.json`. Weights on the meta",
        f"device, three channels in ten removed, medians of {args.rounds} rounds. {machine()}.",
        "",
        "| network | depth | operators | groups | capture | shrink | both | over proportional |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in CASES:
        own = {d: [r for r in results if (r.name, r.depth) == (case.name, d)] for d in case.depths}
        small = case.depths[0]
        tenth = np.median([r.seconds for r in own[small]])
        for depth in case.depths:
            capture, shrink, both = (
                float(np.median([getattr(r, field) for r in own[depth]]))
                for field in ("capture_s", "shrink_s", "seconds")
            )
            r = own[depth][0]
            share = both / tenth / (depth / small)
            lines.append(
                f"| {case.name} | {depth} | {r.operators} | {r.groups} | {capture:.1f} s | {shrink:.1f} s | "
                f"{both:.1f} s | {share:.2f} |"
            )
    text = "\n".join(lines) + "\n"
    raw = msgspec.json.encode({"machine": machine(), "results": results})
    write_whole(args.output.with_suffix(".json"), msgspec.json.format(raw, indent=1) + b"\n")
    write_whole(args.output.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
