"""The interface of a backend, and the list of backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType

from latmorph.device.fingerprint import Fingerprint
from latmorph.errors import DeviceError
from latmorph.opspec import Step


class Session(ABC):
    """A network that is loaded on the device and ready to run."""

    @abstractmethod
    def time_steps(self) -> list[float]:
        """Seconds of each step in one pass, in order."""

    @abstractmethod
    def time_whole(self) -> float:
        """Seconds of one pass with no clock inside it."""


class Backend(ABC):
    """One way to run operators on one device. A context: settings hold inside and are restored after."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """What the timings are of."""

    @abstractmethod
    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        """Make a network ready to run: weights of its own, an input, nothing shared with another.

        Before each pass ``scratch_bytes`` of other memory are written, as the rest of a larger network
        would do: sampled networks are small, and their weights would otherwise never leave the cache.
        """

    @abstractmethod
    def reference(self) -> float:
        """Seconds of one run of a fixed operator, the yardstick for a noisy spell."""

    @abstractmethod
    def time_call(self, call: Callable[[], object]) -> float:
        """Seconds of one call that runs on the device."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


DEVICES = ("cpu", "cuda")
RUNTIMES = ("eager",)
DTYPES = ("float32", "float64", "bfloat16", "float16")


def open_backend(device: str, *, runtime: str = "eager", dtype: str = "float32", threads: int = 1) -> Backend:
    """The backend for a device's name. Raises DeviceError when there is none here."""
    if device not in DEVICES:
        raise DeviceError(f"unknown device {device!r}: use one of {', '.join(DEVICES)}")
    if runtime not in RUNTIMES:
        raise DeviceError(f"unknown runtime {runtime!r}: use one of {', '.join(RUNTIMES)}")
    if dtype not in DTYPES:
        raise DeviceError(f"unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    if threads < 1:
        raise DeviceError(f"threads must be at least 1, got {threads}")
    from latmorph.device.eager import CpuEager, CudaEager

    if device == "cpu":
        return CpuEager(dtype=dtype, threads=threads)
    return CudaEager(dtype=dtype)
