"""Whole networks, measured on this machine with the clock that profiles are measured with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from latmorph.device.registry import open_backend
from latmorph.device.timing import Timing, time_calls
from latmorph.errors import UsageError
from latmorph.latency.profile import Profile


def measure(model: torch.nn.Module, inputs: Sequence[Any], profile: Profile, *, passes: int = 15) -> Timing:
    """Time ``model(*inputs)`` in eval mode on the profile's device, runtime and number of threads.

    The result's ``time_s`` is in seconds of the calm machine; raw samples are kept beside it. The model
    is left as it was. Raises DeviceError when this machine has no such device.
    """
    return measure_together({"model": (model, inputs)}, profile, passes=passes)["model"]


def measure_together(
    networks: Mapping[str, tuple[torch.nn.Module, Sequence[Any]]],
    profile: Profile,
    *,
    passes: int = 15,
) -> dict[str, Timing]:
    """Time several networks side by side, interleaved and in random order, as fair comparisons need.

    On the profile's own machine times are scaled to the calm reference that it recorded; on another,
    to the calmest reference seen in this run.
    """
    if passes < 1:
        raise UsageError(f"passes must be at least 1, got {passes}")
    for name, (_, inputs) in networks.items():
        if not isinstance(inputs, list | tuple):
            raise UsageError(
                f"inputs of {name} must be a tuple of the arguments of forward, got "
                f"{type(inputs).__name__}; write (x,) for a single tensor"
            )
    of = profile.fingerprint
    modes = [(m, m.training) for model, _ in networks.values() for m in model.modules()]
    calls: dict[str, Callable[[], object]] = {
        name: _call(model.eval(), tuple(inputs)) for name, (model, inputs) in networks.items()
    }
    reference = None if profile.mismatch else profile.header.reference_s
    try:
        with open_backend(of.device, runtime=of.runtime, dtype=of.dtype, threads=of.threads) as backend:
            return time_calls(backend, calls, passes=passes, reference_s=reference)
    finally:
        for module, training in modes:
            module.training = training


def _call(model: torch.nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: model(*inputs)
