"""Profiling runs on a device that counts: interrupted, they resume; complete, they leave no journal."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from latmorph.device.backend import Session
from latmorph.device.fingerprint import Fingerprint
from latmorph.device.sampling import NetworkBuilder
from latmorph.device.simulated import Simulated
from latmorph.device.timing import ELSEWHERE, Plan, StopRule, made_here
from latmorph.errors import ProfileError
from latmorph.latency import profiling
from latmorph.latency.fit import Validation
from latmorph.latency.model import LatencyModel
from latmorph.latency.profile import Profile, open_profile
from latmorph.latency.profiling import run_profile
from latmorph.opspec import Step

VISITS = 12
RULE = StopRule(least=1, most=1)


class Counted(Simulated):
    """Counts the networks loaded, and notes whether it was entered and left."""

    def __init__(self, **planted: Any) -> None:
        super().__init__(**planted)
        object.__setattr__(self, "loads", 0)
        object.__setattr__(self, "inside", 0)

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        assert self.inside == 1  # type: ignore[attr-defined]
        object.__setattr__(self, "loads", self.loads + 1)  # type: ignore[attr-defined]
        return super().load(steps, scratch_bytes)

    def __enter__(self) -> Counted:
        object.__setattr__(self, "inside", self.inside + 1)  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        object.__setattr__(self, "inside", self.inside - 1)  # type: ignore[attr-defined]


def loads(device: Counted) -> int:
    """Networks loaded so far; the device is out of its context."""
    assert device.inside == 0  # type: ignore[attr-defined]
    return device.loads  # type: ignore[attr-defined, no-any-return]


def run(device: Simulated, path: Path, **changes: Any) -> Profile:
    arguments: dict[str, Any] = {
        "budget_s": 1e6,
        "largest_flops": 1e7,
        "rule": RULE,
        "most_visits": VISITS,
    }
    return run_profile(device, path, **{**arguments, **changes})


class StopError(Exception):
    """What a test stops a run by."""


def stop_after(visits: int) -> Callable[[float, str], None]:
    def progress(fraction: float, text: str) -> None:
        if text == f"{visits} network visits":
            raise StopError

    return progress


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "journal.jsonl"


@pytest.fixture(scope="module")
def roof_loads(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many networks are loaded to measure roofs: those of a run that fails on its first visit."""
    device = Counted()
    with pytest.raises(StopError):
        run(device, tmp_path_factory.mktemp("roofs") / "journal.jsonl", progress=stop_after(1))
    return loads(device) - 1


@pytest.fixture
def no_fit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where only what is measured matters: a fit that does nothing but count the visits given to it."""
    given: list[int] = []

    def fit(roofs: Any, visits: Sequence[Any], *, seed: int = 0) -> tuple[LatencyModel, Validation]:
        given.append(len(visits))
        return LatencyModel(roofs, {}, 1.0, 0.1), Validation(1, 0.0, 0.0, 0.0, 0.0, {})

    monkeypatch.setattr(profiling, "fit", fit)
    return given


def test_a_complete_run_gives_a_profile_of_what_was_measured_and_removes_the_journal(path: Path) -> None:
    device = Counted(peak_flops_per_s=5e10)
    profile = run(device, path, folder=path.parent / "mine", seed=3)
    assert not path.exists()
    assert open_profile(path.parent / "mine") == profile
    assert loads(device) > VISITS
    header = profile.header
    assert (header.name, header.seed, header.budget_s) == ("mine", 3, 1e6)
    assert header.visits == len(profile.visits) == VISITS
    assert header.focused_visits == 0
    assert header.operators == sum(len(v.specs) for v in profile.visits)
    assert header.fingerprint == device.fingerprint()
    assert header.reference_s == pytest.approx(device.reference_s)
    assert profile.model.roofs.peak_flops_per_s == pytest.approx(5e10, rel=1e-3)
    created = datetime.datetime.fromisoformat(header.created)
    assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(hours=1)
    for visit in profile.visits:
        true = [device.true_time_s(s) for s in visit.specs]
        assert [min(t) for t in visit.times_s] == pytest.approx(true, abs=0.51e-9)  # whole nanoseconds


@pytest.mark.usefixtures("no_fit")
def test_without_a_folder_the_profile_is_called_after_the_device_and_not_saved(path: Path) -> None:
    device = Counted()
    assert run(device, path).name == device.fingerprint().slug
    assert list(path.parent.iterdir()) == []


@pytest.mark.usefixtures("no_fit")
def test_a_profile_that_cannot_be_saved_leaves_its_measurements(path: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(ProfileError, match=r"taken.*notes\.txt"):
        run(Counted(), path, folder=taken)
    device = Counted()
    profile = run(device, path, folder=tmp_path / "free")
    assert loads(device) == 0
    assert open_profile(tmp_path / "free") == profile
    assert not path.exists()


@pytest.mark.parametrize("stopped_at", [1, 7, VISITS])
def test_an_interrupted_run_started_again_measures_only_what_is_missing(
    path: Path, stopped_at: int, roof_loads: int, no_fit: list[int]
) -> None:
    device = Counted()
    with pytest.raises(StopError):
        run(device, path, progress=stop_after(stopped_at))
    assert path.exists()
    assert loads(device) == roof_loads + stopped_at
    again = Counted()
    resumed = run(again, path)
    assert loads(again) == VISITS - stopped_at
    assert not path.exists()
    assert no_fit == [VISITS]
    # What was measured is kept, no network is measured again, and roofs are not either.
    straight = run(Counted(), path)
    assert resumed.visits[:stopped_at] == straight.visits[:stopped_at]
    assert len({v.network for v in resumed.visits}) == VISITS
    assert resumed.model.roofs == straight.model.roofs


def test_a_run_interrupted_before_its_fit_fits_the_same_model(path: Path) -> None:
    with pytest.raises(StopError):
        run(Counted(), path, progress=stop_after(VISITS))
    device = Counted()
    resumed, straight = run(device, path), run(Counted(), path)
    assert loads(device) == 0
    assert resumed.model == straight.model
    assert resumed.header.validation == straight.header.validation


@pytest.mark.parametrize("stopped_at", [None, VISITS + 5])
def test_a_profile_goes_on_with_networks_that_it_has_not_seen(
    path: Path, stopped_at: int | None, no_fit: list[int]
) -> None:
    first = run(Counted(), path, budget_s=1e5, seed=7)
    if stopped_at is not None:
        with pytest.raises(StopError):
            run(Counted(), path, base=first, most_visits=2 * VISITS, progress=stop_after(stopped_at))
    device = Counted()
    longer = run(device, path, base=first, most_visits=2 * VISITS)
    assert longer.visits[:VISITS] == first.visits
    assert len({v.network for v in longer.visits}) == len(longer.visits) == 2 * VISITS
    assert loads(device) == 2 * VISITS - (stopped_at or VISITS)  # nor are roofs measured again
    assert longer.model.roofs == first.model.roofs
    assert (longer.header.seed, longer.header.budget_s) == (7, 1e5 + 1e6)
    assert [v.run for v in longer.visits] == [0] * VISITS + [1] * VISITS
    assert no_fit == [VISITS, 2 * VISITS]


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("most", [3 * VISITS, 2 * VISITS, VISITS + 5, 1])
@pytest.mark.parametrize("long", [False, True])
def test_of_too_many_earlier_visits_the_oldest_are_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, most: int, long: bool
) -> None:
    profile = run(Counted(), path)
    for k in (2, 3):
        profile = run(Counted(), path, base=profile, most_visits=k * VISITS)
    # The more of what any run goes on from, and what one of this budget does.
    monkeypatch.setattr(profiling, "MOST_EARLIER", 1 if long else most)
    monkeypatch.setattr(profiling, "EARLIER_PER_S", (most + 0.5) / 1e6 if long else 0)
    longer = run(Counted(), path, base=profile, most_visits=most + VISITS, budget_s=1e6)
    assert longer.visits[:most] == profile.visits[-most:]
    assert [v.run for v in longer.visits[most:]] == [3] * VISITS
    assert len({v.network for v in longer.visits}) == len(longer.visits)
    kept = most / (3 * VISITS)
    assert longer.header.budget_s == pytest.approx(1e6 + kept * profile.header.budget_s)


@pytest.mark.usefixtures("no_fit")
def test_a_profile_without_measurements_goes_on_with_its_roofs(path: Path) -> None:
    first = run(Counted(), path)
    longer = run(Counted(), path, base=Profile(first.header, first.model, ()))
    assert [v.run for v in longer.visits] == [0] * VISITS
    assert longer.model.roofs == first.model.roofs


@pytest.mark.usefixtures("no_fit")
def test_a_profile_of_another_device_lends_what_it_measured_of_sampled_networks(
    path: Path, roof_loads: int
) -> None:
    there = run(Counted(), path, focus=(focus_network(),), seed=5)
    sampled = [v for v in there.visits if v.network >= 0]
    assert len(sampled) == VISITS - 1
    device = OtherName(peak_flops_per_s=5e10)
    here = run(device, path, base=there, focus=(focus_network(),), most_visits=len(sampled) + VISITS)
    assert list(here.visits[: len(sampled)]) == [replace(v, run=ELSEWHERE) for v in sampled]
    own = made_here(here.visits)
    assert len(own) == VISITS
    assert {v.run for v in own} == {0}
    # Roofs are its own; networks are others, save that in focus; time and focus of the other do not count.
    assert loads(device) == roof_loads + VISITS
    assert here.model.roofs.peak_flops_per_s == pytest.approx(5e10, rel=1e-3)
    assert not {v.network for v in own} & {v.network for v in sampled}
    assert (here.header.seed, here.header.budget_s) == (5, there.header.budget_s)
    assert here.header.focused_visits == sum(v.network < 0 for v in own)
    # What goes on from there keeps both apart.
    longer = run(device, path, base=here, most_visits=len(here.visits) + VISITS)
    assert [v.run for v in longer.visits] == [
        k for k, n in ((ELSEWHERE, len(sampled)), (0, VISITS), (1, VISITS)) for _ in range(n)
    ]
    assert longer.header.budget_s == 2 * here.header.budget_s


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("stopped_at", [0, 7])
def test_an_interrupted_run_with_borrowed_measurements_resumes(
    path: Path, roof_loads: int, stopped_at: int
) -> None:
    there = run(Counted(), path)

    class Broken(OtherName):
        def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
            if self.loads == (roof_loads + stopped_at - 1 if stopped_at else 5):  # type: ignore[attr-defined]
                raise StopError
            return super().load(steps, scratch_bytes)

    with pytest.raises(StopError):
        run(Broken(), path, base=there, most_visits=2 * VISITS)
    device = OtherName()
    here = run(device, path, base=there, most_visits=2 * VISITS)
    assert [v.run for v in here.visits] == [k for k in (ELSEWHERE, 0) for _ in range(VISITS)]
    assert len({v.network for v in here.visits}) == 2 * VISITS
    measured_again = roof_loads if not stopped_at else 1 - stopped_at
    assert loads(device) == measured_again + VISITS


@pytest.mark.usefixtures("no_fit")
def test_a_profile_of_another_runtime_lends_nothing(path: Path) -> None:
    class OtherRuntime(Counted):
        def fingerprint(self) -> Fingerprint:
            return msgspec.structs.replace(super().fingerprint(), runtime="another")

    first = run(Counted(), path)
    with pytest.raises(ProfileError, match=r"tells nothing of what runs here.*runtime formula, not another"):
        run(OtherRuntime(), path, base=first)
    assert not path.exists()


def test_a_run_ends_once_held_out_networks_are_predicted_as_well_as_asked(path: Path) -> None:
    # The formula is learnt to 30 % from the first round, which has 24 networks and a sixth more at most.
    profile = run(Counted(), path, error_percent=30.0, most_visits=None)
    assert 24 <= len(profile.visits) <= 60
    assert profile.header.validation.mean_error_percent < 40


@pytest.mark.usefixtures("no_fit")
def test_noise_that_was_measured_is_kept_not_measured_again(path: Path) -> None:
    with pytest.raises(StopError):
        run(Counted(noise=0.5, seed=1), path, progress=stop_after(4))
    before = path.read_text().splitlines()
    with pytest.raises(StopError):
        run(Counted(noise=0.5, seed=2), path, progress=stop_after(8))
    assert path.read_text().splitlines()[: len(before)] == before
    visits = run(Counted(noise=0.5, seed=3), path).visits
    assert len({(v.network, v.visit) for v in visits}) == len(visits) == VISITS


@pytest.mark.usefixtures("no_fit")
def test_an_interruption_while_roofs_are_measured_is_survived(path: Path, roof_loads: int) -> None:
    class Broken(Counted):
        def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
            if self.loads == 5:  # type: ignore[attr-defined]
                raise StopError
            return super().load(steps, scratch_bytes)

    with pytest.raises(StopError):
        run(Broken(), path)
    device = Counted()
    run(device, path)
    assert loads(device) == roof_loads + VISITS


class OtherName(Counted):
    def fingerprint(self) -> Fingerprint:
        return msgspec.structs.replace(super().fingerprint(), name="another")


def focus_network(width: int = 8) -> tuple[Step, ...]:
    net = NetworkBuilder((1, width, 8, 8))
    net.activation(net.conv(-1, width, 3), "relu")
    return tuple(net.steps)


@pytest.mark.parametrize(
    ("device", "changes"),
    [
        (Counted(), {"seed": 1}),
        (Counted(), {"largest_flops": 2e7}),
        (Counted(), {"focus": (focus_network(),)}),
        (OtherName(), {}),
    ],
    ids=["another seed", "other sizes", "other focus", "another device"],
)
@pytest.mark.usefixtures("no_fit")
def test_a_run_of_other_settings_starts_anew(
    path: Path, roof_loads: int, device: Counted, changes: dict[str, Any]
) -> None:
    with pytest.raises(StopError):
        run(Counted(), path, progress=stop_after(7))
    said: list[str] = []
    before = loads(device)
    run(device, path, progress=lambda fraction, text: said.append(text), **changes)
    assert loads(device) - before == roof_loads + VISITS
    assert any("other settings" in text for text in said)
    assert not any("resumed" in text for text in said)


@pytest.mark.usefixtures("no_fit")
def test_progress_says_what_is_being_done(path: Path) -> None:
    with pytest.raises(StopError):
        run(Counted(), path, progress=stop_after(3))
    said: list[tuple[float, str]] = []
    run(Counted(), path, progress=lambda fraction, text: said.append((fraction, text)))
    texts = [text for _, text in said]
    assert texts[0] == "resumed after 3 network visits"
    assert texts[-1] == "fitting"
    assert "measuring roofs" not in texts
    assert all(0 <= fraction <= 1 for fraction, _ in said)
    assert said[-1][0] == 1.0


@pytest.mark.usefixtures("no_fit")
def test_half_of_the_visits_are_of_the_networks_in_focus(path: Path) -> None:
    focus = tuple(focus_network(8 + k) for k in range(40))
    profile = run(Counted(), path, focus=focus, most_visits=40)
    focused = [v for v in profile.visits if v.network < 0]
    assert profile.header.focused_visits == len(focused)
    # The order is random: 40 drawn out of a round of 96, of which 48 are in focus.
    assert 12 <= len(focused) <= 28
    for v in focused:
        assert v.specs == tuple(s.spec for s in focus[-1 - v.network])


def test_too_short_a_run_is_refused_and_its_measurements_are_kept_for_a_longer_one(
    path: Path, roof_loads: int
) -> None:
    device = Counted()
    with pytest.raises(ProfileError, match=r"networks were measured, at least 6.*more time"):
        run(device, path, most_visits=3)
    assert path.exists()
    run(device, path)
    assert loads(device) == roof_loads + VISITS


def test_a_budget_that_ends_before_the_first_visit_is_refused_as_too_short(path: Path) -> None:
    with pytest.raises(ProfileError, match="0 networks were measured, at least 6"):
        run(Counted(), path, budget_s=0.0)


@pytest.mark.usefixtures("no_fit")
def test_sampled_networks_grow_with_the_devices_peak(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def watched(seed: int, largest_flops: float, *rest: Any) -> Any:
        limits.append(largest_flops)
        return replace(Plan(seed, largest_flops, *rest), largest_flops=1e7)

    monkeypatch.setattr(profiling, "Plan", watched)
    run(Counted(peak_flops_per_s=1e11), path, largest_flops=None, most_visits=1)
    fast = Counted(peak_flops_per_s=1e13, bandwidth_bytes_per_s=1e13)
    run(fast, path, largest_flops=None, most_visits=1)
    assert limits[0] == 1.5e9  # what 1e11 FLOP/s do in 2 ms is less than the smallest limit
    assert limits[1] == pytest.approx(1e13 * 2e-3, rel=0.02)
