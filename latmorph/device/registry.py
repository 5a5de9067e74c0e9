"""The backends by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from latmorph.device.backend import Backend
from latmorph.device.fingerprint import Fingerprint
from latmorph.errors import DeviceError

if TYPE_CHECKING:
    from latmorph.device.onnxruntime import Lowering

DEVICES = ("cpu", "cuda")
RUNTIMES = ("eager", "onnxruntime")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def open_backend(
    device: str,
    *,
    runtime: str = "eager",
    dtype: str = "float32",
    threads: int = 1,
    options: Mapping[str, str] | None = None,
) -> Backend:
    """The backend for a device's name. Raises DeviceError when there is none here.

    ``options`` are the runtime's own (see :class:`latmorph.device.onnxruntime.SessionOptions`).
    """
    for what, given, known in (
        ("device", device, DEVICES),
        ("runtime", runtime, RUNTIMES),
        ("dtype", dtype, DTYPES),
    ):
        if given not in known:
            raise DeviceError(f"unknown {what} {given!r}: use one of {', '.join(known)}")
    if threads < 1:
        raise DeviceError(f"threads must be at least 1, got {threads}")
    if runtime == "onnxruntime":
        from latmorph.device.onnxruntime import OnnxRuntime, SessionOptions

        if device != "cpu":
            raise DeviceError(f"runtime onnxruntime is timed on the cpu only, not on {device}")
        return OnnxRuntime(dtype=dtype, options=SessionOptions.parse(threads, options or {}))
    if options:
        raise DeviceError(f"runtime {runtime} takes no options, got {', '.join(options)}")
    from latmorph.device.eager import CpuEager, CudaEager

    if device == "cpu":
        return CpuEager(dtype=dtype, threads=threads)
    return CudaEager(dtype=dtype)


def backend_of(fingerprint: Fingerprint) -> Backend:
    """The backend here that a profile was measured with elsewhere. Raises DeviceError when there is none."""
    return open_backend(
        fingerprint.device,
        runtime=fingerprint.runtime,
        dtype=fingerprint.dtype,
        threads=fingerprint.threads,
        options=dict(fingerprint.options),
    )


def lowering_of(fingerprint: Fingerprint) -> Lowering | None:
    """What tells the kernels that a profile's runtime makes of a network; None if it runs steps as they are.

    Raises DeviceError when that runtime is not installed here.
    """
    if fingerprint.runtime != "onnxruntime":
        return None
    from latmorph.device.onnxruntime import Lowering, SessionOptions

    return Lowering(SessionOptions.parse(fingerprint.threads, dict(fingerprint.options)))
