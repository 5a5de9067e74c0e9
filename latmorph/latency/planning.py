"""Which networks a profiling run measures next: those about which the models disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from latmorph.device.roofs import Roofs
from latmorph.device.timing import CHOSEN, Journal, Plan, shuffled
from latmorph.errors import ProfileError
from latmorph.latency.fit import Committee
from latmorph.opspec import OpSpec, Step, footprint_bytes

CANDIDATES = 2
"""Networks looked at for each that is chosen."""

GROWTH = 0.5
"""A round has this share of the networks before it, so that fitting takes a bounded share of a run."""

LARGEST_ROUND = 400
"""Networks of a round at most: what comes before it, fitting and choosing, cannot be cut short."""

ROUNDS = 100
"""Trees of the models that choose: enough to differ where little was measured."""

Lower = Callable[[Sequence[tuple[Step, ...]]], Sequence[Sequence[OpSpec]]]
"""The operators that networks become on the runtime."""


@dataclass
class AdaptivePlan:
    """A plan that goes round by round: half of each is drawn blindly, half chosen.

    After each round three models are fitted to parts of the data. Of networks not yet measured those are
    chosen about whose operators the models differ most; before the first, any. The blind half tells the
    error on networks that nothing was fitted to; the run, which is that of the number ``run``, ends once that
    is at most ``error_percent``.
    """

    plan: Plan
    roofs: Roofs
    journal: Journal
    lower: Lower
    error_percent: float = 0.0
    run: int = 0

    def steps(self, network: int) -> tuple[Step, ...]:
        """The steps of a network of the plan."""
        return self.plan.steps(network)

    def scratch_bytes(self, network: int, steps: Sequence[Step]) -> int:
        """Memory to read before each pass."""
        return self.plan.scratch_bytes(network, steps)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seen = {v.network for v in self.journal.visits}
        # A run that goes on draws afresh: what is left of the round that was interrupted, it looked at.
        first = 1 + max((n % CHOSEN for n in seen if n >= 0), default=-1)
        while True:
            size = max(self.plan.round_size, min(int(GROWTH * len(seen)), LARGEST_ROUND))
            blind = list(range(first, first + (size + 1) // 2))
            pool = range(first + len(blind), first + len(blind) + CANDIDATES * (size // 2))
            committee = self._committee()
            if committee is not None and committee.error_percent <= self.error_percent:
                return
            chosen = self._chosen(committee, pool, size // 2)
            focus = [-1 - i for i in range(len(self.plan.focus)) if -1 - i not in seen][:size]
            yield from shuffled([*blind, *chosen, *focus], (self.plan.seed, first))
            seen.update(blind, chosen, focus)
            first = pool.stop

    def _committee(self) -> Committee | None:
        if not any(v.run == self.run for v in self.journal.visits):  # how the machine is now, none tells yet
            return None
        try:
            return Committee.of(self.roofs, self.journal.visits, seed=self.plan.seed, rounds=ROUNDS)
        except ProfileError:  # too few networks so far
            return None

    def _chosen(self, committee: Committee | None, pool: Sequence[int], count: int) -> list[int]:
        """The networks of the pool about which the models disagree most; the first, without models."""
        if committee is None:
            return [CHOSEN + n for n in pool[:count]]
        doubt = {}
        networks = [self.plan.steps(n) for n in pool]
        for n, steps, specs in zip(pool, networks, self.lower(networks), strict=True):
            footprint = footprint_bytes(specs) + self.plan.scratch_bytes(n, steps)
            doubt[n] = committee.disagreement(specs, footprint)
        most = sorted(doubt, key=lambda n: (-doubt[n], n))[:count]
        return [CHOSEN + n for n in most]
