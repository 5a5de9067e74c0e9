"""Comparison: several structures of one network side by side, predicted and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from latmorph.device.timing import Timing
from latmorph.graph.capture import capture
from latmorph.graph.graph import Graph
from latmorph.latency.profile import Profile


class ComparedNetwork(msgspec.Struct, frozen=True):
    """One network of a comparison. Times are seconds of one forward pass on the compared inputs."""

    name: str
    accuracy_percent: float
    flops: int
    parameters: int
    predicted_s: float
    predicted_interval_s: tuple[float, float]
    measured_s: float
    measured_median_s: float
    measured_spread: float
    samples_s: tuple[float, ...]
    references_s: tuple[float, ...]
    widths: dict[str, int]


class Comparison(msgspec.Struct, frozen=True):
    """Networks side by side, the parent first."""

    profile: str
    device: str
    target: float
    batch: int
    train_images: int
    test_images: int
    seed: int
    networks: tuple[ComparedNetwork, ...]
    notes: tuple[str, ...]


def compared(
    name: str,
    model: torch.nn.Module,
    inputs: Sequence[Any],
    profile: Profile,
    parent: Graph,
    timing: Timing,
    accuracy_percent: float,
) -> ComparedNetwork:
    """What a comparison says of one network, with its widths in the groups of ``parent``."""
    graph = capture(model, inputs)
    predicted = profile.predict(graph)
    names = [parent.groups[g].name for g in parent.prunable]
    return ComparedNetwork(
        name,
        accuracy_percent,
        graph.flops,
        graph.parameters,
        predicted.total_s,
        predicted.interval_s,
        timing.time_s,
        timing.median_s,
        timing.spread,
        timing.samples_s,
        timing.references_s,
        {n: graph.groups[graph.group(n)].width for n in names},
    )
