"""Two or more ways of doing a thing, timed in turn in one run, and what is said of the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from latmorph.device.fingerprint import cpu_features, cpu_name

WARM = 3
"""So many rounds are run and not counted."""


def interleaved(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of each way, which gives its own; their order in a round is one of chance."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    random = np.random.default_rng(0)
    for k in range(rounds + WARM):
        for name in random.permutation(list(ways)):
            taken = ways[str(name)]()
            if k >= WARM:
                times[str(name)].append(taken)
    return times


def machine() -> str:
    """This machine in words: its CPU, what torch it runs and with how many threads."""
    features = " ".join(cpu_features())
    return f"{cpu_name()}, {features}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
