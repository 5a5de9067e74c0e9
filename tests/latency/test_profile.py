"""The profile's file format: there and back, and everything that must be refused."""

from __future__ import annotations

import copy
import errno
import gzip
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from latmorph.device.eager import CpuEager
from latmorph.device.fingerprint import Fingerprint
from latmorph.device.simulated import Simulated
from latmorph.device.timing import StopRule, Visit, visit_network
from latmorph.errors import LatmorphWarning, ProfileError, ProfileMismatchWarning
from latmorph.latency import profile as module
from latmorph.latency.profile import (
    Profile,
    list_profiles,
    load_profile,
    open_profile,
    read_header,
    round_to_ns,
    shipped_folder,
    user_folder,
)
from latmorph.latency.roofline import places

FILES = ("profile.json", "model.json.gz", "measurements.csv.gz")


@pytest.fixture
def profile(simulated_profile: Profile) -> Profile:
    """A real profile with a handful of its visits, so that its files are small."""
    visits = tuple(sorted(simulated_profile.visits, key=lambda v: len(v.specs))[:5])
    return Profile(simulated_profile.header, simulated_profile.model, visits)


@pytest.fixture
def folder(profile: Profile, tmp_path: Path) -> Path:
    return profile.save(tmp_path / "saved")


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place of saved profiles, and no shipped ones."""
    monkeypatch.setenv("LATMORPH_PROFILES", str(tmp_path / "shelf"))
    monkeypatch.setattr(module, "shipped_folder", lambda: tmp_path / "shipped")
    return tmp_path / "shelf"


def renamed(profile: Profile, **fields: Any) -> Profile:
    return Profile(msgspec.structs.replace(profile.header, **fields), profile.model, profile.visits)


def remodelled(profile: Profile, change: Callable[[Any], None]) -> Profile:
    """The profile with its model changed as plain data, whatever the model's own types would say."""
    plain = msgspec.to_builtins(profile.model)
    change(plain)
    return Profile(profile.header, msgspec.convert(plain, type(profile.model)), profile.visits)


def seal(folder: Path, parts: dict[str, bytes] | None = None, **fields: Any) -> None:
    """Put parts and header fields in place with all checksums right, as a forger would."""
    for name, data in (parts or {}).items():
        (folder / name).write_bytes(data)
    head = json.loads((folder / "profile.json").read_text())
    head.update(fields)
    head["sha256"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in FILES[1:]}
    text = msgspec.json.encode(msgspec.convert(head, module.Header))
    head["sha256"][""] = hashlib.sha256(text).hexdigest()
    (folder / "profile.json").write_text(json.dumps(head))


def refused(folder: Path, match: str) -> None:
    """The folder is refused by name with a ProfileError that says why."""
    with pytest.raises(ProfileError, match=match) as caught:
        len(open_profile(folder).visits)
    assert folder.name in str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


# --- there and back


def test_a_saved_profile_loads_equal(simulated_profile: Profile, tmp_path: Path) -> None:
    loaded = open_profile(simulated_profile.save(tmp_path / "deep" / "down" / "saved"))
    assert loaded == simulated_profile
    assert loaded.model == simulated_profile.model
    assert tuple(loaded.visits) == tuple(simulated_profile.visits)
    assert loaded.header.validation == simulated_profile.header.validation
    assert [t for f in loaded.model.families.values() for t in f.trees.feature]  # there are trees in it


def test_a_loaded_profile_predicts_the_same(simulated_profile: Profile, tmp_path: Path) -> None:
    loaded = open_profile(simulated_profile.save(tmp_path / "saved"))
    visit = simulated_profile.visits[0]
    where = places(simulated_profile.model.roofs, visit.specs)
    one, other = (p.predictor(visit.specs, where) for p in (loaded, simulated_profile))
    assert one.total_s.tolist() == other.total_s.tolist()
    assert one.sigma.tolist() == other.sigma.tolist()


def test_profiles_differ_by_header_model_and_measurements(profile: Profile) -> None:
    assert renamed(profile) == profile
    assert renamed(profile, name="other") != profile
    assert Profile(profile.header, profile.model, profile.visits[:-1]) != profile
    scaled = msgspec.structs.replace(profile.model, scale=2.0)
    assert Profile(profile.header, scaled, profile.visits) != profile
    assert profile != "profile"


def test_saving_the_same_profile_twice_writes_the_same_bytes(profile: Profile, tmp_path: Path) -> None:
    assert contents(profile.save(tmp_path / "a")) == contents(profile.save(tmp_path / "b"))


def test_a_profile_is_three_files_that_other_tools_can_read(folder: Path, profile: Profile) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    head = json.loads((folder / "profile.json").read_text())
    assert head["format"] == "latmorph-profile"
    assert head["fingerprint"]["device"] == "simulated"
    for name in FILES[1:]:
        assert head["sha256"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    model = json.loads(gzip.decompress((folder / "model.json.gz").read_bytes()))
    assert model["roofs"]["peak_flops_per_s"] == profile.model.roofs.peak_flops_per_s
    rows = gzip.decompress((folder / "measurements.csv.gz").read_bytes()).decode().splitlines()
    assert rows[0] == "network,visit,row,spec,times_ns"
    # One row an operator, and five a visit: run, footprint, whole passes, blocks, references.
    assert len(rows) == 1 + sum(len(v.specs) + 5 for v in profile.visits)


def test_raw_samples_come_back_to_the_nanosecond(profile: Profile, tmp_path: Path) -> None:
    noisy = visit_network(Simulated(noise=0.4), -3, 7, _steps(profile.visits[0]), 123, StopRule(least=4))
    exact = round_to_ns([noisy])
    loaded = open_profile(Profile(profile.header, profile.model, exact).save(tmp_path / "saved"))
    assert tuple(loaded.visits) == exact
    for ours, theirs in zip(loaded.visits[0].times_s, noisy.times_s, strict=True):
        assert ours == pytest.approx(theirs, abs=0.51e-9)
    assert loaded.visits[0].network == -3
    assert loaded.visits[0].visit == 7


def test_the_run_of_every_visit_comes_back(profile: Profile, tmp_path: Path) -> None:
    visits = tuple(replace(v, run=k // 2) for k, v in enumerate(profile.visits))
    loaded = open_profile(Profile(profile.header, profile.model, visits).save(tmp_path / "saved"))
    assert [v.run for v in loaded.visits] == [0, 0, 1, 1, 2]


def test_a_profile_from_before_runs_were_numbered_is_of_one(folder: Path, profile: Profile) -> None:
    rows = [row for row in measurements(folder) if ",run," not in row]
    seal(folder, {"measurements.csv.gz": gzip.compress(("\n".join(rows) + "\n").encode())})
    assert tuple(open_profile(folder).visits) == profile.visits


def _steps(visit: Visit) -> Any:
    from latmorph.opspec import Step

    return [Step(spec, ((-1, 0),)) for spec in visit.specs]


def test_a_profile_without_measurements_can_be_kept(profile: Profile, tmp_path: Path) -> None:
    bare = Profile(profile.header, profile.model, ())
    assert open_profile(bare.save(tmp_path / "saved")) == bare


# --- refused: what is missing or cut short


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such file")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("text")
    refused(tmp_path / "plain", "cannot be read")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name}: no such file")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(folder: Path, name: str, share: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * (len(data) - 2))])
    refused(folder, "truncated or altered")


def test_a_file_with_something_after_its_end_is_refused(folder: Path) -> None:
    for name in FILES:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data + b"x")
        refused(folder, "truncated or altered")
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_compressed_stream_that_is_cut_short_is_refused_even_with_its_checksum(
    folder: Path, name: str
) -> None:
    data = (folder / name).read_bytes()
    seal(folder, {name: data[: len(data) // 2]})
    refused(folder, f"{name}.*truncated or altered")


# --- refused: what is altered


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_one_altered_byte_of_a_part_is_refused(folder: Path, name: str, flip: int) -> None:
    data = (folder / name).read_bytes()
    for k in [*range(30), *range(30, len(data), len(data) // 100), len(data) - 1]:
        (folder / name).write_bytes(data[:k] + bytes([data[k] ^ flip]) + data[k + 1 :])
        refused(folder, f"{name}: truncated or altered")
    (folder / name).write_bytes(data)
    open_profile(folder)


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_one_altered_byte_of_the_header_is_refused(folder: Path, flip: int) -> None:
    path = folder / "profile.json"
    data, header = path.read_bytes(), read_header(folder)
    positions, same = range(0, len(data), 5), 0
    for k in positions:
        path.write_bytes(data[:k] + bytes([data[k] ^ flip]) + data[k + 1 :])
        try:
            altered = read_header(folder)
        except ProfileError:
            continue
        # The last of 17 digits may lie below a double's precision: then the number is still the same.
        assert altered == header, k
        assert chr(data[k]).isdigit(), k
        same += 1
    assert same < 0.05 * len(positions)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "better"), ("visits", 100_000), ("reference_s", 1e-9), ("seed", 9), ("latmorph", "9.9")],
)
def test_a_header_edited_by_hand_is_refused(folder: Path, field: str, value: object) -> None:
    head = json.loads((folder / "profile.json").read_text())
    assert head[field] != value
    head[field] = value
    (folder / "profile.json").write_text(json.dumps(head))
    refused(folder, "edited by hand")


def test_a_validation_figure_made_to_look_better_is_refused(folder: Path) -> None:
    head = json.loads((folder / "profile.json").read_text())
    head["validation"]["mean_error_percent"] = 0.1
    (folder / "profile.json").write_text(json.dumps(head))
    refused(folder, "edited by hand")


def test_a_header_reformatted_but_unchanged_is_read(folder: Path, profile: Profile) -> None:
    head = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps(head, indent=4))
    assert open_profile(folder) == profile


def test_the_files_of_another_profile_are_refused(folder: Path, profile: Profile, tmp_path: Path) -> None:
    other = Profile(profile.header, msgspec.structs.replace(profile.model, scale=2.0), profile.visits)
    shutil.copy(other.save(tmp_path / "other") / "model.json.gz", folder / "model.json.gz")
    refused(folder, r"model\.json\.gz: truncated or altered")


# --- refused: what is newer or foreign


def test_a_newer_version_is_refused_as_newer_whatever_else_is_in_it(folder: Path) -> None:
    head = json.loads((folder / "profile.json").read_text())
    head["version"] = 2
    head["something new"] = {"entirely": ["different"]}
    (folder / "profile.json").write_text(json.dumps(head))
    refused(folder, r"version 2 is newer than 1.*update latmorph")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        "7",
        '"latmorph-profile"',
        '{"format": "something else", "version": 1}',
        '{"version": 1}',
        '{"format": null}',
    ],
)
def test_other_json_is_refused_as_no_profile(folder: Path, text: str) -> None:
    (folder / "profile.json").write_text(text)
    refused(folder, "not a latmorph profile")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b'{"format": "latmorph-profile", "version": 1}',  # nothing else
        b'{"format": "latmorph-profile", "version": "1"}',
        b"\xff\xfe\x00binary",
        b'{"format": "latmorph-profile", "name": "\xff"}',  # no UTF-8
        b"[" * 100_000,
        pickle.dumps({"format": "latmorph-profile"}),
    ],
    ids=["empty", "text", "bare", "version a string", "binary", "no utf-8", "nested", "pickle"],
)
def test_a_header_that_is_no_header_is_refused(folder: Path, data: bytes) -> None:
    (folder / "profile.json").write_bytes(data)
    refused(folder, "truncated or altered|not a latmorph profile")


@pytest.mark.parametrize("field", ["fingerprint", "validation", "sha256", "seed"])
def test_a_header_without_a_field_is_refused(folder: Path, field: str) -> None:
    head = json.loads((folder / "profile.json").read_text())
    del head[field]
    (folder / "profile.json").write_text(json.dumps(head))
    refused(folder, f"truncated or altered.*{field}")


# --- refused: what is hostile


@pytest.mark.parametrize("name", FILES[1:])
def test_a_gzip_bomb_is_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = (folder / name).read_bytes()
    limit = 2 * max(len(gzip.decompress((folder / part).read_bytes())) for part in FILES[1:])
    monkeypatch.setattr(module, "LARGEST_BYTES", limit)
    bomb = gzip.compress(b" " * (4 * limit))
    assert len(bomb) < limit // 8
    seal(folder, {name: bomb})
    refused(folder, f"{name}: larger than any profile")
    # The limit itself is no error: padding up to it leaves a readable model.
    if name == "model.json.gz":
        content = gzip.decompress(original)
        seal(folder, {name: gzip.compress(content + b" " * (limit - len(content)))})
        open_profile(folder)


class Trap:
    """When unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "sprung"))


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_in_place_of_a_part_is_refused_and_not_run(
    folder: Path, tmp_path: Path, name: str, packed: bool
) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap works
    (tmp_path / "sprung").unlink()
    seal(folder, {name: gzip.compress(trap) if packed else trap})
    refused(folder, "truncated or altered|malformed")
    assert not (tmp_path / "sprung").exists()


def tree_family(plain: Any) -> Any:
    """A family with trees, in a model as plain data."""
    return next(f for f in plain["families"].values() if f["trees"]["feature"])


BREAKS: dict[str, Callable[[Any], None]] = {
    "a left child that is no node": lambda m: _put(m, "left", len(tree_family(m)["trees"]["left"][0])),
    "a right child that is no node": lambda m: _put(m, "right", 10**9),
    "a child before the first": lambda m: _put(m, "left", -2),
    "one child alone": lambda m: _put(m, "right", -1),
    "a feature that is none": lambda m: _put(m, "feature", len(tree_family(m)["features"])),
    "a negative feature": lambda m: _put(m, "feature", -1),
    "a row too short": lambda m: tree_family(m)["trees"]["value"][0].pop(),
    "a row too few": lambda m: tree_family(m)["trees"]["threshold"].pop(),
    "endless depth": lambda m: tree_family(m)["trees"].update(depth=10**9),
    "a range too short": lambda m: tree_family(m)["low"].pop(),
    "another range too short": lambda m: tree_family(m)["high"].pop(),
    "no peak": lambda m: m["roofs"].update(peak_flops_per_s=0.0),
    "a negative peak": lambda m: m["roofs"].update(peak_flops_per_s=-1e9),
    "no bandwidth": lambda m: m["roofs"].update(bandwidth=[]),
    "a bandwidth of zero": lambda m: m["roofs"].update(bandwidth=[[1e5, 1e9], [1e6, 0.0]]),
    "a negative bandwidth": lambda m: m["roofs"].update(bandwidth=[[1e5, -1e9]]),
    "a block of zero": lambda m: m["roofs"].update(blocks={"conv2d": [0, 8]}),
}


def _put(model: Any, part: str, value: int) -> None:
    trees = tree_family(model)["trees"]
    row = next(k for k, left in enumerate(trees["left"]) if left[0] >= 0)
    trees[part][row][0] = value


@pytest.mark.parametrize("name", list(BREAKS))
def test_a_malformed_model_with_the_right_checksum_is_refused(
    profile: Profile, tmp_path: Path, name: str
) -> None:
    folder = remodelled(profile, BREAKS[name]).save(tmp_path / "saved")
    refused(folder, "malformed")


def test_a_model_of_other_types_is_refused(folder: Path) -> None:
    plain = json.loads(gzip.decompress((folder / "model.json.gz").read_bytes()))
    changes: list[dict[str, Any]] = [{"scale": "one"}, {"families": []}, {"roofs": None}, {"extra": 1}]
    for change in changes:
        seal(folder, {"model.json.gz": gzip.compress(json.dumps({**plain, **change}).encode())})
        refused(folder, "truncated or altered")


def measurements(folder: Path) -> list[str]:
    return gzip.decompress((folder / "measurements.csv.gz").read_bytes()).decode().splitlines()


@pytest.mark.parametrize(
    "line",
    [
        "1,0,0",
        "x,0,0,,100",
        "1,0,0,,many",
        "1,0,0,not an operator,100",
        "99999,0,0,,100",  # nor does an earlier row say what it is
        '1,0,0,"[""relu"",[[""self"",[Infinity],""float32"",0]],[],[]]",100',
    ],
    ids=["too few columns", "no network", "no time", "no operator", "no earlier operator", "infinite size"],
)
def test_malformed_measurements_with_the_right_checksum_are_refused(folder: Path, line: str) -> None:
    rows = measurements(folder)
    text = "\n".join([rows[0], line, *rows[1:]]) + "\n"
    seal(folder, {"measurements.csv.gz": gzip.compress(text.encode())})
    refused(folder, r"measurements\.csv\.gz: malformed")


@pytest.mark.parametrize("data", [b"", b"a,b,c\n", b"\xff\xfe", b"network,visit,row,spec\n"])
def test_measurements_of_other_columns_are_refused(folder: Path, data: bytes) -> None:
    seal(folder, {"measurements.csv.gz": gzip.compress(data)})
    refused(folder, r"measurements\.csv\.gz: malformed")


# --- saving over what is there


def test_saving_over_an_older_profile_replaces_it(profile: Profile, folder: Path) -> None:
    newer = renamed(profile, name="newer")
    newer.save(folder)
    assert open_profile(folder) == newer
    assert sorted(p.name for p in folder.parent.iterdir() if p.name != "shelf") == ["saved"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)


def test_saving_leaves_nothing_beside_the_folder(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path / "place" / "saved")
    assert [p.name for p in (tmp_path / "place").iterdir()] == ["saved"]


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: BaseException) -> None:
    """The given call of a function, counted from 1, fails."""
    original, count = getattr(owner, name), iter(range(1, 1000))

    def wrapped(*args: Any, **keywords: Any) -> Any:
        if next(count) == call:
            raise error
        return original(*args, **keywords)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        *((os, "fsync", k) for k in (1, 2, 3)),  # amid each of the three files
        *((os, "replace", k) for k in (1, 2, 3)),
        *((Path, "rename", k) for k in (1, 2)),  # the old folder aside, the new one in its place
    ],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_save_leaves_the_old_profile_whole(
    profile: Profile,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    error: BaseException,
) -> None:
    before = contents(folder)
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, call, error)
        with pytest.raises(type(error)):
            renamed(profile, name="newer").save(folder)
    assert contents(folder) == before
    assert open_profile(folder) == profile
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == ["saved"]


def test_a_save_killed_half_way_leaves_the_old_profile_whole(
    profile: Profile, folder: Path, tmp_path: Path
) -> None:
    renamed(profile, name="newer").save(tmp_path / "newer")
    before = contents(folder)
    # The process ends while it writes the second file, without unwinding.
    code = (
        "import os, sys; from latmorph.latency.profile import open_profile; new = open_profile(sys.argv[1])\n"
        "sync, count = os.fsync, iter(range(1, 9))\n"
        "os.fsync = lambda h: os._exit(9) if next(count) == 2 else sync(h)\n"
        "new.save(sys.argv[2])"
    )
    root = Path(__file__).resolve().parent.parent.parent
    command = [sys.executable, "-c", code, str(tmp_path / "newer"), str(folder)]
    assert subprocess.run(command, cwd=root, timeout=60, check=False).returncode == 9
    assert contents(folder) == before


def test_a_folder_that_holds_other_things_is_not_swept_away(profile: Profile, tmp_path: Path) -> None:
    # `latmorph profile -o results`, where results is the user's: refuse, or write beside what is there.
    results = tmp_path / "results"
    results.mkdir()
    (results / "thesis.txt").write_text("years of work")
    try:
        profile.save(results)
    except ProfileError as error:
        assert "results" in str(error)
    else:
        assert open_profile(results) == profile
    assert (results / "thesis.txt").read_text() == "years of work"


# --- by name, by path, by device


def test_profiles_are_listed_by_name_saved_ones_before_shipped(
    profile: Profile, shelf: Path, tmp_path: Path
) -> None:
    assert list_profiles() == {}
    shipped = tmp_path / "shipped"
    profile.save(shipped / "a")
    profile.save(shipped / "b")
    profile.save(shelf / "b")
    profile.save(shelf / "c")
    (shelf / "no profile").mkdir()
    (shelf / ".c.17.new").mkdir()
    shutil.copy(shelf / "c" / "profile.json", shelf / ".c.17.new")  # what a killed save leaves
    assert list_profiles() == {"a": shipped / "a", "b": shelf / "b", "c": shelf / "c"}


def test_a_profile_is_loaded_by_name(profile: Profile, shelf: Path) -> None:
    renamed(profile, name="first").save(shelf / "one")
    renamed(profile, name="second").save(shelf / "two")
    assert load_profile("one").name == "first"
    assert load_profile("two").name == "second"


def test_a_profile_is_loaded_by_its_folder_or_its_header(folder: Path, profile: Profile) -> None:
    for path in (folder, str(folder), folder / "profile.json", str(folder / "profile.json")):
        assert load_profile(path) == profile


def test_a_name_that_is_nowhere_is_refused_with_the_names_that_are(profile: Profile, shelf: Path) -> None:
    with pytest.raises(ProfileError, match=r"no profile 'nine'.*none"):
        load_profile("nine")
    profile.save(shelf / "one")
    profile.save(shelf / "two")
    with pytest.raises(ProfileError, match=r"no profile 'nine'.*one, two"):
        load_profile("nine")


def test_a_damaged_profile_asked_for_by_name_is_refused(profile: Profile, shelf: Path) -> None:
    profile.save(shelf / "one")
    (shelf / "one" / "model.json.gz").write_bytes(b"")
    with pytest.raises(ProfileError, match="truncated or altered"):
        load_profile("one")


HERE = CpuEager().fingerprint()


def of(profile: Profile, name: str, fingerprint: Fingerprint = HERE, **fields: Any) -> Profile:
    return renamed(profile, name=name, fingerprint=fingerprint, **fields)


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("no_warnings")
def test_cpu_is_this_machines_profile(profile: Profile, shelf: Path) -> None:
    elsewhere = msgspec.structs.replace(HERE, name="Another Processor 1")
    of(profile, "elsewhere", elsewhere, created="2031-01-01T00:00:00+00:00").save(shelf / "a")
    of(profile, "here", created="2030-01-01T00:00:00+00:00").save(shelf / "b")
    profile.save(shelf / "c")  # of the simulated device
    loaded = load_profile("cpu")
    assert loaded.name == "here"
    assert loaded.mismatch == ()
    assert loaded.notes == ()


@pytest.mark.usefixtures("no_warnings")
def test_of_several_the_newest_is_loaded(profile: Profile, shelf: Path) -> None:
    for k, year in enumerate((2029, 2031, 2030)):
        of(profile, str(year), created=f"{year}-01-01T00:00:00+00:00").save(shelf / f"p{k}")
    assert load_profile("cpu").name == "2031"


@pytest.mark.usefixtures("no_warnings")
def test_cpu_prefers_float32_on_the_fewest_threads(profile: Profile, shelf: Path) -> None:
    choices: dict[str, dict[str, Any]] = {"bf16": {"dtype": "bfloat16"}, "two": {"threads": 2}, "plain": {}}
    for name, fields in choices.items():
        fingerprint = msgspec.structs.replace(HERE, **fields)
        year = "2030" if name == "plain" else "2031"
        of(profile, name, fingerprint, created=f"{year}-01-01T00:00:00+00:00").save(shelf / name)
    assert load_profile("cpu").name == "plain"


@pytest.mark.usefixtures("no_warnings")
def test_the_number_of_threads_and_the_dtype_are_a_choice_not_another_machine(
    profile: Profile, shelf: Path
) -> None:
    chosen = msgspec.structs.replace(HERE, threads=7, dtype="float64")
    of(profile, "chosen", chosen).save(shelf / "chosen")
    assert load_profile("cpu").notes == ()


def test_the_closest_of_other_machines_is_loaded_with_a_warning_that_says_how_it_differs(
    profile: Profile, shelf: Path
) -> None:
    close = msgspec.structs.replace(HERE, cores=HERE.cores + 1)
    far = msgspec.structs.replace(close, name="Another Processor 1", features=("none",))
    of(profile, "far", far, created="2031-01-01T00:00:00+00:00").save(shelf / "far")
    of(profile, "close", close, created="2030-01-01T00:00:00+00:00").save(shelf / "close")
    with pytest.warns(ProfileMismatchWarning, match=rf"cores {HERE.cores + 1}, not {HERE.cores}") as caught:
        loaded = load_profile("cpu")
    assert loaded.name == "close"
    assert len(caught) == 1
    assert "latmorph profile --device cpu" in str(caught[0].message)
    # Its estimates say it again, each time.
    (note,) = loaded.notes
    assert "close" in note
    assert "another machine" in note


@pytest.mark.usefixtures("no_warnings")
def test_a_profile_of_another_machine_asked_for_by_name_is_no_surprise(profile: Profile, shelf: Path) -> None:
    of(profile, "far", msgspec.structs.replace(HERE, name="Another Processor 1")).save(shelf / "far")
    loaded = load_profile("far")
    assert loaded.mismatch == (f"processor Another Processor 1, not {HERE.name}",)
    assert len(loaded.notes) == 1


def test_a_damaged_profile_is_passed_over_aloud(profile: Profile, shelf: Path) -> None:
    of(profile, "good").save(shelf / "good")
    of(profile, "bad").save(shelf / "bad")
    (shelf / "bad" / "profile.json").write_text("{}")
    with pytest.warns(LatmorphWarning, match=r"passed over.*not a latmorph profile"):
        assert load_profile("cpu").name == "good"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_without_a_profile_says_how_to_make_one(profile: Profile, shelf: Path, device: str) -> None:
    profile.save(shelf / "simulated")
    with pytest.raises(ProfileError, match=rf"no profile of a {device} device.*--device {device}"):
        load_profile(device)


def test_a_gpus_profile_on_a_machine_without_one_says_so(
    profile: Profile, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu = msgspec.structs.replace(HERE, device="cuda", name="Planted GPU")
    of(profile, "gpu", gpu).save(shelf / "gpu")
    with pytest.warns(ProfileMismatchWarning, match="there is no cuda device here"):
        assert load_profile("cuda").name == "gpu"


def test_profiles_are_saved_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATMORPH_PROFILES", str(tmp_path / "mine"))
    assert user_folder() == tmp_path / "mine"
    monkeypatch.delenv("LATMORPH_PROFILES")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert user_folder() == tmp_path / "data" / "latmorph" / "profiles"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_folder() == tmp_path / "home" / ".local" / "share" / "latmorph" / "profiles"


def test_shipped_profiles_stand_in_the_wheel_or_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `shipped_folder` as imported above is the real one; the package is moved under it.
    package = tmp_path / "site" / "latmorph"
    (package / "latency").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(package / "latency" / "profile.py"))
    assert shipped_folder() == (tmp_path / "site" / "profiles").resolve()
    (package / "profiles").mkdir()
    assert shipped_folder() == (package / "profiles").resolve()


def test_only_the_header_is_read_to_list_what_a_profile_is_of(folder: Path, profile: Profile) -> None:
    for name in FILES[1:]:
        (folder / name).unlink()
    header = read_header(folder)
    assert header.fingerprint == profile.fingerprint
    assert copy.copy(header.validation) == profile.header.validation
