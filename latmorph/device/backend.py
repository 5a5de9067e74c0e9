"""The interface of a backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType

from latmorph.device.fingerprint import Fingerprint
from latmorph.opspec import OpSpec, Step


class Session(ABC):
    """A network that is loaded on the device and ready to run."""

    @abstractmethod
    def specs(self) -> tuple[OpSpec, ...]:
        """The operators as they run here, with the layouts that their operands have; runs one pass."""

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
