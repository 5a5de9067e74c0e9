"""A profiling run: measure a device, fit, and hand out a profile; interrupted, it resumes."""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from latmorph._version import __version__
from latmorph.device.backend import Backend
from latmorph.device.fingerprint import Fingerprint
from latmorph.device.fresh import visitor_of
from latmorph.device.registry import lowering_of
from latmorph.device.roofs import Roofs, measure_roofs
from latmorph.device.sampling import SLOW_FLOPS
from latmorph.device.timing import (
    ELSEWHERE,
    Journal,
    Plan,
    Progress,
    StopRule,
    Visit,
    calm_reference_s,
    collect,
    next_run,
)
from latmorph.errors import ProfileError
from latmorph.latency.fit import fit
from latmorph.latency.planning import AdaptivePlan, Lower
from latmorph.latency.profile import FORMAT, VERSION, Header, Profile, round_to_ns
from latmorph.opspec import OpSpec, Step

DEFAULT_BUDGET_S = 160.0
"""With what earlier runs take to be read and fitted again, a run of five minutes at most."""

QUICK_BUDGET_S = 30.0

PASS_S = 2e-3
"""On a fast device, sampled networks have up to as many FLOPs as its peak does in this time."""


MOST_EARLIER = 1500
"""Visits of earlier runs that a short run goes on from, at most: fits take as long as there are visits."""

EARLIER_PER_S = 8
"""A long one goes on from so many for each second of its budget: to fit them takes a third of it, or half."""


def run_profile(
    backend: Backend,
    journal_path: Path,
    *,
    folder: Path | None = None,
    base: Profile | None = None,
    budget_s: float = DEFAULT_BUDGET_S,
    seed: int = 0,
    largest_flops: float | None = None,
    focus: tuple[tuple[Step, ...], ...] = (),
    error_percent: float = 0.0,
    rule: StopRule | None = None,
    progress: Progress | None = None,
    most_visits: int | None = None,
) -> Profile:
    """Measure roofs and sampled networks for ``budget_s`` seconds, fit, and return the profile.

    The run ends before, when networks held out are predicted to ``error_percent`` on average.

    With ``base``, a profile of this same device, that one goes on: its measurements, roofs and seed are kept,
    and networks that it has not seen are measured for ``budget_s`` seconds more, as a run of their own (see
    :func:`latmorph.latency.fit.fit`). The oldest visits are left out where there are more than
    :data:`MOST_EARLIER` and :data:`EARLIER_PER_S` allow. One of another device, or of other threads or
    versions, lends its measurements of sampled networks, where they help: what it takes a few minutes to see
    is how long things take here, not how times go with shapes.

    ``focus`` holds networks (:func:`latmorph.graph.variants.variants`) that the profile has to be right
    about: half of the visits are of them. ``largest_flops`` bounds the sampled networks; by default it
    grows with the device's peak.

    What is measured is written to ``journal_path`` at once. A run that is interrupted and started
    again with the same device, seed and sizes goes on where it was; its time so far counts. The
    journal is removed when the profile is complete and, if ``folder`` is given, saved there.

    Raises ProfileError when ``base`` is of another kind of device, runtime or dtype, and when there are too
    few networks for a fit.
    """

    def say(fraction: float, text: str) -> None:
        if progress is not None:
            progress(fraction, text)

    with backend:
        fingerprint = backend.fingerprint()
        earlier: list[Visit] = []
        own, kept_s = base, 0.0
        if base is not None:
            check_akin(base, fingerprint)
            seed = base.header.seed
            earlier = _latest(base.visits, budget_s)
            if base.fingerprint.differences(fingerprint):
                own = None
                earlier = [replace(v, run=ELSEWHERE) for v in earlier if v.network >= 0]
            else:
                kept_s = base.header.budget_s * len(earlier) / max(1, len(base.visits))
        run = next_run(earlier)
        head = {
            "format": "latmorph-journal",
            "version": 2,
            "fingerprint": msgspec.to_builtins(fingerprint),
            "seed": seed,
            "largest_flops": largest_flops,
            "focus": _digest(focus),
            "base": "" if base is None else base.header.created,
        }
        journal = Journal(journal_path, msgspec.json.decode(msgspec.json.encode(head)))
        try:
            if journal.resumed:
                say(journal.spent_s / budget_s, f"resumed after {len(journal.visits)} network visits")
            elif journal.replaced:
                say(0.0, "the unfinished run found was of other settings: starting anew")
            if base is not None and journal.roofs is None:
                held = {(v.network, v.visit) for v in journal.visits}
                for visit in earlier:
                    if (visit.network, visit.visit) not in held:
                        journal.add(visit, 0.0)
                if own is not None:
                    journal.add_roofs(msgspec.to_builtins(own.model.roofs), 0.0)  # last: all of it is there
            if journal.roofs is None:
                say(0.0, "measuring roofs")
                began = time.perf_counter()
                roofs = measure_roofs(backend, dtype=fingerprint.dtype)
                journal.add_roofs(msgspec.to_builtins(roofs), time.perf_counter() - began)
            else:
                roofs = msgspec.convert(journal.roofs, Roofs)
            if largest_flops is None:
                largest_flops = max(SLOW_FLOPS, PASS_S * roofs.peak_flops_per_s)
            networks = Plan(seed, largest_flops, fingerprint.dtype, focus)
            plan = AdaptivePlan(networks, roofs, journal, _lower(fingerprint), error_percent, run)
            with visitor_of(backend) as visitor:
                collect(
                    visitor,
                    plan,
                    journal,
                    budget_s,
                    rule=rule,
                    progress=progress,
                    most_visits=most_visits,
                    run=run,
                )
        finally:
            journal.close()
    say(1.0, "fitting")
    visits = round_to_ns(journal.visits)
    model, validation = fit(roofs, visits, seed=seed)
    header = Header(
        format=FORMAT,
        version=VERSION,
        name=folder.name if folder is not None else fingerprint.slug,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        latmorph=__version__,
        fingerprint=fingerprint,
        budget_s=budget_s + kept_s,
        seed=seed,
        visits=len(visits),
        focused_visits=sum(v.network < 0 for v in visits),
        operators=sum(len(v.specs) for v in visits),
        reference_s=calm_reference_s(visits),
        validation=validation,
        sha256={},
    )
    profile = Profile(header, model, visits)
    if folder is not None:
        profile.save(folder)
    journal_path.unlink()
    return profile


def check_akin(base: Profile, here: Fingerprint) -> None:
    """Raises ProfileError when a profile tells nothing of a device: other operators run there."""
    if not base.fingerprint.is_akin(here):
        differences = "; ".join(base.fingerprint.differences(here))
        raise ProfileError(
            f"profile {base.name} tells nothing of what runs here ({differences}): "
            "begin from one of the same kind of device, runtime and dtype, or from none"
        )


def _latest(visits: Sequence[Visit], budget_s: float) -> list[Visit]:
    """The latest visits, as many as a run of this budget goes on from."""
    most = max(MOST_EARLIER, int(EARLIER_PER_S * budget_s))
    return sorted(visits, key=lambda v: v.run)[-most:]


def _lower(fingerprint: Fingerprint) -> Lower:
    lowering = lowering_of(fingerprint)

    def operators(networks: Sequence[tuple[Step, ...]]) -> list[list[OpSpec]]:
        if lowering is None:
            return [[step.spec for step in steps] for steps in networks]
        return [[kernel.spec for kernel in kernels] for kernels in lowering.networks(networks)]

    return operators


def _digest(networks: Sequence[Sequence[Step]]) -> str:
    """What tells one choice of networks from another in a journal; empty for none."""
    if not networks:
        return ""
    lines = (step.spec.to_json() for steps in networks for step in steps)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
