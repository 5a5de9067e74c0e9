"""A device that is a formula: planted roofs, overhead, blocks and noise, for tests and for teaching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from latmorph import ops
from latmorph.device.backend import Backend, Session, StepSession
from latmorph.device.fingerprint import Fingerprint
from latmorph.opspec import OpSpec, Step


@dataclass(frozen=True)
class Simulated(Backend):
    """``t = overhead + max(padded FLOPs / peak, bytes / bandwidth)``, times lognormal noise.

    ``spell`` is the chance that a pass runs ``spell_factor`` times slower, as beside a noisy neighbour.
    Raises nothing and touches no hardware; the same seed gives the same times.
    """

    peak_flops_per_s: float = 1e11
    bandwidth_bytes_per_s: float = 1e10
    overhead_s: float = 2e-6
    in_block: int = 1
    out_block: int = 8
    noise: float = 0.0
    spell: float = 0.0
    spell_factor: float = 2.0
    reference_s: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_random", np.random.default_rng(self.seed))

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            device="simulated",
            name=f"simulated {self.peak_flops_per_s:g} FLOP/s {self.bandwidth_bytes_per_s:g} B/s",
            cores=1,
            features=(),
            caches_bytes=(),
            runtime="formula",
            runtime_version="1",
            dtype="float32",
            threads=1,
            system="none",
        )

    def true_time_s(self, spec: OpSpec) -> float:
        """The planted time of one operator, in seconds, without noise."""
        handler = ops.handler_of(spec.kind)
        compute = handler.padded_flops(spec, self.in_block, self.out_block) / self.peak_flops_per_s
        return float(self.overhead_s + max(compute, handler.bytes(spec) / self.bandwidth_bytes_per_s))

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        return _SimulatedSession(self, steps)

    def reference(self) -> float:
        return self.reference_s * self._noise(1)[0]

    def traffic(self) -> float:
        return self.reference()

    def time_call(self, call: Callable[[], object]) -> float:
        call()
        return self.reference()

    def _noise(self, count: int) -> list[float]:
        random: np.random.Generator = self._random  # type: ignore[attr-defined]
        slow = self.spell_factor if random.random() < self.spell else 1.0
        return [float(slow * np.exp(abs(random.normal(0.0, self.noise)))) for _ in range(count)]


class _SimulatedSession(StepSession):
    def __init__(self, device: Simulated, steps: Sequence[Step]) -> None:
        super().__init__()
        self.device = device
        self.steps = steps
        self.times = [device.true_time_s(s.spec) for s in steps]

    def specs(self) -> tuple[OpSpec, ...]:
        return tuple(s.spec for s in self.steps)

    def clock_steps(self) -> list[float]:
        noise = self.device._noise(len(self.times))
        return [t * n for t, n in zip(self.times, noise, strict=True)]

    def time_whole(self) -> float:
        return sum(self.times) * self.device._noise(1)[0]
