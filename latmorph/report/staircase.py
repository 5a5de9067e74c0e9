"""Staircases: predicted beside measured time of one operator by its width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latmorph.device.roofs import Sweep
from latmorph.device.sampling import width_sweep
from latmorph.errors import UsageError
from latmorph.latency.profile import Profile
from latmorph.latency.roofline import places


@dataclass(frozen=True)
class Staircase:
    """A measured sweep, and predicted seconds at its widths.

    The operator was measured alone, again and again, with all that it reads in the caches; the prediction is
    of one amid a network: it is the steps that ought to agree.
    """

    sweep: Sweep
    predicted_s: tuple[float, ...]

    @property
    def ratio(self) -> np.ndarray:
        """Predicted over measured, of shape ``(widths,)``."""
        return np.asarray(np.array(self.predicted_s) / np.array(self.sweep.times_s))


def staircases(profile: Profile, kind: str | None = None) -> tuple[Staircase, ...]:
    """The staircases that a profile's blocks were found in: all, or those of one kind of operator.

    Raises UsageError for a kind that was not swept, naming those that were.
    """
    sweeps = profile.model.roofs.sweeps
    kinds = list(dict.fromkeys(sweep.kind for sweep in sweeps))
    if kind is not None and kind not in kinds:
        known = f"use one of {', '.join(kinds)}" if kinds else "profile the device again to have some"
        raise UsageError(f"profile {profile.name} has no staircase of {kind!r}: {known}")
    return tuple(_priced(profile, sweep) for sweep in sweeps if kind in (None, sweep.kind))


def _priced(profile: Profile, sweep: Sweep) -> Staircase:
    networks = width_sweep(sweep.kind, sweep.axis, sweep.widths, profile.fingerprint.dtype)
    if profile.lowering is None:
        found = [[step.spec for step in steps] for steps in networks]
    else:
        found = [[kernel.spec for kernel in kernels] for kernels in profile.lowering.networks(networks)]
    roofs = profile.model.roofs
    times = (profile.predictor(specs, places(roofs, specs)).total_s.sum() for specs in found)
    return Staircase(sweep, tuple(float(t) for t in times))
