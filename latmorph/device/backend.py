"""The interface of a backend."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from latmorph.device.fingerprint import Fingerprint
from latmorph.opspec import OpSpec, Step


class Session(ABC):
    """A network that is loaded on the device and ready to run.

    ``apart`` says whether clocked passes run another copy of it than whole ones.
    """

    apart = False

    def disturb(self) -> None:
        """Leave the caches as the rest of a larger network would; nothing where there is no such rest."""
        return

    @abstractmethod
    def time_steps(self) -> float:
        """Run one pass with a clock at every operator; seconds of the pass.

        What the clocks read is handed out by :meth:`finish`: some runtimes tell it only at the end.
        """

    @abstractmethod
    def time_whole(self) -> float:
        """Seconds of one pass with no clock inside it."""

    @abstractmethod
    def finish(self) -> tuple[tuple[OpSpec, ...], list[list[float]]]:
        """The operators as they ran here, and their seconds ``[pass][operator]`` of every clocked pass.

        They differ from the steps where the runtime fuses operators or adds its own. Ends the session.
        """


class StepSession(Session):
    """A session of a runtime that runs the steps as they are, one by one."""

    def __init__(self) -> None:
        self.passes: list[list[float]] = []

    @abstractmethod
    def specs(self) -> tuple[OpSpec, ...]:
        """The steps' operators, with the layouts that their operands have here."""

    @abstractmethod
    def clock_steps(self) -> list[float]:
        """Run one pass; seconds of each step, in order."""

    def time_steps(self) -> float:
        self.passes.append(self.clock_steps())
        return sum(self.passes[-1])

    def finish(self) -> tuple[tuple[OpSpec, ...], list[list[float]]]:
        return self.specs(), self.passes


BLOCK_INPUT, BLOCK_WIDTH = (1, 32, 56, 56), 192
"""Shape around, channels inside of the block that :meth:`Backend.traffic` times: 1x1, depthwise, 1x1, add."""


class Backend(ABC):
    """One way to run operators on one device. A context: settings hold inside and are restored after.

    ``forks`` says whether it also runs in a process forked from one that has loaded it and run nothing.
    """

    forks = False

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """What the timings are of."""

    @abstractmethod
    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        """Make a network ready to run: weights of its own, an input, nothing shared with another.

        :meth:`Session.disturb` reads ``scratch_bytes`` of other memory, as the rest of a larger network
        would: sampled networks are small, and their weights would otherwise never leave the cache.
        """

    @abstractmethod
    def reference(self) -> float:
        """Seconds of one run of a fixed operator, the yardstick for a noisy spell.

        The first runs after a network still show it: see :func:`latmorph.device.timing.settled_reference_s`.
        """

    @abstractmethod
    def traffic(self) -> float:
        """Seconds of one run of a fixed block of operators, the yardstick for neighbours in shared caches.

        Its activations, :data:`BLOCK_WIDTH` channels of 56 x 56, are more than a core's own caches hold.
        """

    @abstractmethod
    def time_call(self, call: Callable[[], object]) -> float:
        """Seconds of one call that runs on the device."""

    def prepare(self) -> None:
        """Import, and find out, what is the same for all networks: once, before they have processes."""
        return

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def keep_freed_memory() -> None:
    """Tell glibc's allocator, for the rest of the process, to reuse what is freed. Elsewhere nothing.

    By default glibc hands freed blocks back to the system, above a threshold that depends on what the
    process happened to free before, and always above 32 MiB; they come back through page faults. MobileNetV2
    took 14.8 or 20.6 ms by that alone, a convolution with 35 MB of weights 21 or 11. Servers keep memory (or
    use an allocator that does), and so do profiles and measurements.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        mallopt(mmap_max, 0)  # no block, however large, outside of the heap
        mallopt(trim_threshold, 2**30)
