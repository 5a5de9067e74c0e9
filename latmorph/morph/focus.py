"""Focus: more measurements, of one network's own operators, on top of a profile."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from latmorph._version import __version__
from latmorph.device import registry
from latmorph.device.fresh import visitor_of
from latmorph.device.timing import (
    Journal,
    Progress,
    StopRule,
    Visit,
    calm_reference_s,
    collect,
    next_run,
    shuffled,
)
from latmorph.errors import ProfileError, UsageError
from latmorph.graph.capture import capture
from latmorph.graph.graph import Graph
from latmorph.graph.variants import variant
from latmorph.latency.fit import fit
from latmorph.latency.profile import Profile, round_to_ns
from latmorph.opspec import Step

FOCUS_BUDGET_S = 120.0

ROUND = 12
"""Networks that are visited, in random order and each as often, before others are drawn."""


@dataclass(frozen=True)
class _Variants:
    """The schedule: a network and ever more narrower ones of it, numbered from ``first`` down."""

    graph: Graph
    first: int
    seed: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for begin in itertools.count(0, ROUND):
            round_ = [self.first - k for k in range(begin, begin + ROUND)]
            yield from shuffled(round_, (self.seed, begin), 2)

    def steps(self, network: int) -> tuple[Step, ...]:
        return variant(self.graph, self.first - network, seed=self.seed)

    def scratch_bytes(self, network: int, steps: Sequence[Step]) -> int:
        return 0  # a whole network finds the caches as its own last pass left them


def focus(
    profile: Profile,
    model: Any,
    inputs: Sequence[Any] = (),
    *,
    budget_s: float = FOCUS_BUDGET_S,
    seed: int = 0,
    folder: Path | None = None,
    journal_path: Path | None = None,
    rule: StopRule | None = None,
    progress: Progress | None = None,
    most_visits: int | None = None,
) -> Profile:
    """Measure a network and narrower ones of it for ``budget_s`` seconds, and fit the profile anew with them.

    ``model`` and ``inputs`` are those of :func:`latmorph.capture`; a Graph does as well. The new profile
    holds all measurements of the old one, which stays as it is, and is saved in ``folder`` if that is given.

    What is measured is written to ``journal_path`` at once: a run that is interrupted and started again with
    the same network, profile and seed goes on where it was. Without a path, an interrupted run is lost.

    Raises ProfileError when the profile is of another machine: its measurements and those made here would
    not be of one device. Raises UsageError when the network cannot be timed operator by operator.
    """
    if not 0 < budget_s < float("inf"):
        raise UsageError(f"budget_s must be a positive number of seconds, got {budget_s:g}")
    if profile.mismatch:
        raise ProfileError(
            f"profile {profile.name} is of another machine ({'; '.join(profile.mismatch)}): measurements of "
            "this one cannot be added to it; profile this machine first"
        )
    graph = model if isinstance(model, Graph) else capture(model, inputs)
    variant(graph, 0)  # a network that cannot be timed is refused before anything is measured
    first = min(0, *(v.network for v in profile.visits)) - 1
    head = {
        "format": "latmorph-journal",
        "version": 2,
        "fingerprint": msgspec.to_builtins(profile.fingerprint),
        "seed": seed,
        "profile": profile.header.created,
        "focus": _digest(graph),
    }

    def say(fraction: float, text: str) -> None:
        if progress is not None:
            progress(fraction, text)

    with contextlib.ExitStack() as stack:
        if journal_path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "journal.jsonl"
        else:
            path = journal_path
        backend = stack.enter_context(registry.backend_of(profile.fingerprint))
        journal = Journal(path, msgspec.json.decode(msgspec.json.encode(head)))
        stack.callback(journal.close)
        if journal.resumed:
            say(journal.spent_s / budget_s, f"resumed after {len(journal.visits)} network visits")
        elif journal.replaced:
            say(0.0, "the unfinished run found was of other settings: starting anew")
        plan = _Variants(graph, first, seed)
        visitor = stack.enter_context(visitor_of(backend))
        made = collect(
            visitor,
            plan,
            journal,
            budget_s,
            rule=rule,
            progress=say,
            most_visits=most_visits,
            run=next_run(profile.visits),
        )
    say(1.0, "fitting")
    focused = _refitted(profile, round_to_ns(made), budget_s, folder.name if folder else profile.name)
    if folder is not None:
        focused.save(folder)
    if journal_path is not None:
        journal_path.unlink()
    return focused


def _refitted(profile: Profile, made: tuple[Visit, ...], budget_s: float, name: str) -> Profile:
    """The profile with more visits, fitted anew."""
    visits = (*profile.visits, *made)
    model, validation = fit(profile.model.roofs, visits, seed=profile.header.seed)
    header = msgspec.structs.replace(
        profile.header,
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        latmorph=__version__,
        budget_s=profile.header.budget_s + budget_s,
        visits=len(visits),
        focused_visits=profile.header.focused_visits + len(made),
        operators=sum(len(v.specs) for v in visits),
        reference_s=calm_reference_s(visits),
        validation=validation,
        sha256={},
    )
    return Profile(header, model, visits)


def _digest(graph: Graph) -> str:
    """What tells one network from another in a journal."""
    lines = [graph.fingerprint, *(spec.to_json() for spec in graph.specs)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
