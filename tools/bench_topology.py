"""What dead blocks and branches cost: ResNet-50 and Inception v3 with some, beside what is left of them.

Usage: python -m tools.bench_topology [--rounds 30] [--threads 1] [-o docs/topology]

In each network some channel groups are dead, as training leaves them: scale and shift of their norms are
zero. Both networks take passes in turn, in an order of chance; the figure is the median over rounds of what
is left over what it was. Raw times are kept beside the page.
"""

from __future__ import annotations

import argparse
import re
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
from tools.networks import inception_v3, resnet50
from tools.oracle import difference, randomise
from tools.pairs import interleaved, machine


@dataclass(frozen=True)
class Case:
    """A network, the side of its images, and which groups of it are dead, as a regular expression."""

    name: str
    build: Callable[[], nn.Module]
    side: int
    dead: str


CASES = (
    Case(
        "ResNet-50, the inner channels of 6 of 16 blocks dead",
        resnet50,
        224,
        r"blocks\.(2|5|6|9|11|14)\.body\.1\.0",
    ),
    Case(
        "Inception v3, the last channels of 9 branches dead",
        inception_v3,
        299,
        r"blocks\.([012])\.branches\.2\.2\.0|blocks\.([4567])\.branches\.2\.4\.0|blocks\.(9|10)\.branches\.3\.1\.0",
    ),
)


class Result(msgspec.Struct, frozen=True):
    """What was found of one network; seconds of one pass each, at batch 1."""

    name: str
    dead: tuple[str, ...]
    operators: tuple[int, int]
    parameters: tuple[int, int]
    apart: float
    before_s: tuple[float, ...]
    after_s: tuple[float, ...]


def run(case: Case, rounds: int) -> Result:
    """Kill the groups, remove them, and time both networks in turn."""
    torch.manual_seed(0)
    model, x = case.build().eval(), torch.randn(1, 3, case.side, case.side)
    randomise(model, 0)
    graph = lm.capture(model, (x,))
    dead = [g for g in graph.prunable if re.fullmatch(case.dead, graph.groups[g].name)]
    held = dict(model.named_parameters())
    with torch.no_grad():
        for member in (m for g in dead for m in graph.groups[g].members if m.role in ("scale", "shift")):
            held[member.parameter].index_fill_(
                member.axis, torch.as_tensor(member.indices.ravel().copy()), 0.0
            )
    names = tuple(graph.groups[g].name for g in dead)
    small = lm.shrink(model, lm.Structure.keep(graph, dict.fromkeys(names, ())))
    left = lm.capture(small, (x,))
    times = interleaved({"before": passing(model, x), "after": passing(small, x)}, rounds)
    return Result(
        case.name,
        names,
        (len(graph.nodes), len(left.nodes)),
        (graph.parameters, left.parameters),
        difference(model, small, (x,)),
        tuple(times["before"]),
        tuple(times["after"]),
    )


def passing(model: nn.Module, x: torch.Tensor) -> Callable[[], float]:
    """A function that runs the model once and returns its seconds."""

    @torch.inference_mode()
    def once() -> float:
        start = time.perf_counter()
        model(x)
        return time.perf_counter() - start

    return once


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/topology"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [run(case, args.rounds) for case in CASES]
    lines = [
        "# What dead blocks and branches cost",
        "",
        "Written by `python -m tools.bench_topology`; raw times in `topology.json`. Batch 1, float32, eager,",
        f"{args.rounds} rounds in turn, medians. {machine()}.",
        "",
        "| network | operators | parameters | outputs apart | before | after over before | quartiles |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        ratios = np.asarray(r.after_s) / np.asarray(r.before_s)
        low, mid, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        lines.append(
            f"| {r.name} | {r.operators[0]} to {r.operators[1]} | "
            f"{r.parameters[0] / 1e6:.1f} to {r.parameters[1] / 1e6:.1f} M | {r.apart:.1g} | "
            f"{1e3 * np.median(r.before_s):.0f} ms | {mid:.3f} | {low:.3f} to {high:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    raw = msgspec.json.encode({"machine": machine(), "results": results})
    write_whole(args.output.with_suffix(".json"), msgspec.json.format(raw, indent=1) + b"\n")
    write_whole(args.output.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
