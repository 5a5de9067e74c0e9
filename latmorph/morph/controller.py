"""Controller: moves the regulariser's strength so that the cost follows a schedule to the target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Controller:
    """Multiplicative control of the strength.

    The wanted cost, as a fraction of the parent's, falls in a line from 1 to ``target`` over ``steps``
    optimiser steps. At every ``update`` the strength grows by ``gain`` while the cost is above what
    is wanted, and falls by as much while it is below.
    """

    target: float
    steps: int
    strength: float
    gain: float = 1.1

    def wanted(self, step: int) -> float:
        """The wanted cost at a step, as a fraction of the parent's."""
        done = min(1.0, step / self.steps)
        return 1.0 + (self.target - 1.0) * done

    def update(self, step: int, fraction: float) -> None:
        """Move the strength, given the cost at ``step`` as a fraction of the parent's."""
        if fraction > self.wanted(step):
            self.strength *= self.gain
        else:
            self.strength /= self.gain
