"""The backends by name."""

from __future__ import annotations

from latmorph.device.backend import Backend
from latmorph.errors import DeviceError

DEVICES = ("cpu", "cuda")
RUNTIMES = ("eager",)
DTYPES = ("float32", "float64", "bfloat16", "float16")


def open_backend(device: str, *, runtime: str = "eager", dtype: str = "float32", threads: int = 1) -> Backend:
    """The backend for a device's name. Raises DeviceError when there is none here."""
    for what, given, known in (
        ("device", device, DEVICES),
        ("runtime", runtime, RUNTIMES),
        ("dtype", dtype, DTYPES),
    ):
        if given not in known:
            raise DeviceError(f"unknown {what} {given!r}: use one of {', '.join(known)}")
    if threads < 1:
        raise DeviceError(f"threads must be at least 1, got {threads}")
    from latmorph.device.eager import CpuEager, CudaEager

    if device == "cpu":
        return CpuEager(dtype=dtype, threads=threads)
    return CudaEager(dtype=dtype)
