"""Whole networks, measured on this machine with the clock that profiles are measured with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latmorph.device.backend import Backend
from latmorph.device.registry import backend_of
from latmorph.device.timing import Timing, time_calls
from latmorph.errors import UsageError
from latmorph.graph.graph import Graph
from latmorph.latency.profile import Profile
from latmorph.report.exported import exported

Model = torch.nn.Module | Graph | str | Path
"""What can be measured: a model, a captured network, or an ONNX file."""


def measure(model: Model, inputs: Sequence[Any], profile: Profile, *, passes: int = 8) -> Timing:
    """Time ``model(*inputs)`` in eval mode on the profile's device, runtime and number of threads.

    For ONNX Runtime, a torch model is exported by torch's own exporter, once. A captured network is timed
    with weights and inputs of its own, and needs no ``inputs``; nor does a file with fixed shapes.

    The result's ``time_s`` is in seconds of the calm machine; raw samples are kept beside it. The model
    is left as it was. Raises DeviceError when this machine has no such device or runtime.
    """
    return measure_together({"model": (model, inputs)}, profile, passes=passes)["model"]


def measure_together(
    networks: Mapping[str, tuple[Model, Sequence[Any]]],
    profile: Profile,
    *,
    passes: int = 8,
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
    modules = [model for model, _ in networks.values() if isinstance(model, torch.nn.Module)]
    modes = [(m, m.training) for model in modules for m in model.modules()]
    reference = None if profile.mismatch else profile.header.reference_s
    try:
        for model in modules:
            model.eval()
        with backend_of(profile.fingerprint) as backend:
            calls = {name: call_of(backend, model, tuple(given)) for name, (model, given) in networks.items()}
            return time_calls(backend, calls, passes=passes, reference_s=reference)
    finally:
        for module, training in modes:
            module.training = training


def call_of(backend: Backend, model: Model, inputs: tuple[Any, ...]) -> Callable[[], object]:
    """What runs a network once on the backend, as a user of the runtime would.

    Raises UsageError for a file where the runtime takes none.
    """
    if isinstance(model, Graph) and model.onnx is None:
        return backend.load(model.steps_at(model.widths)).time_whole
    if backend.fingerprint().runtime == "onnxruntime":
        from latmorph.device.onnxruntime import OnnxRuntime

        assert isinstance(backend, OnnxRuntime)
        if isinstance(model, torch.nn.Module):
            path = exported(model, inputs)
        else:
            path = model.onnx if isinstance(model, Graph) and model.onnx is not None else Path(str(model))
        return backend.call(path, [x.detach().numpy() for x in inputs if isinstance(x, torch.Tensor)])
    if not isinstance(model, torch.nn.Module):
        name = model.onnx if isinstance(model, Graph) else model
        raise UsageError(f"{name}: a file runs in ONNX Runtime; measure it with a profile of that runtime")
    return lambda: model(*inputs)
