"""The command line: what each command prints and writes, and one line for each bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import latmorph.device.fresh
import latmorph.device.registry
import latmorph.device.timing
import latmorph.latency.profiling
import latmorph.morph.focus
from latmorph.cli import main
from latmorph.device.simulated import Simulated
from latmorph.device.timing import TIMED
from latmorph.errors import UsageError
from latmorph.latency.profile import Profile, open_profile

Capture = pytest.CaptureFixture[str]

MODELS = '''
import torch
from torch import nn


class Small(nn.Module):
    """A 3x3 convolution, a ReLU and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))


class TwoInputs(nn.Module):
    """Words and a picture."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 6)
        self.mix = nn.Linear(6, 4)

    def forward(self, tokens, x):
        return self.mix(self.words(tokens)).mean(1) + x


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)


class Fourier(nn.Module):
    """An operator without a handler between two that have one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.b(torch.fft.fft(self.a(x)).real)


class Group:
    """A callable that is an attribute of an attribute."""

    small = Small


made = Small()


def fails():
    raise ValueError("weights are\\nnot there")


def needs_an_argument(width):
    return nn.Linear(width, 4)


def no_module():
    return 3
'''
SMALL_FLOPS = 2 * 8 * (3 * 3 * 3) * 8 * 8 + 2 * 8 * 10
"""``Small`` on 1x3x8x8: two FLOPs a multiply-add of the convolution and of the linear layer."""

SMALL = ("latmorph_cli_models:Small", "--input", "1x3x8x8")


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "latmorph_cli_models.py").write_text(MODELS)
    (folder / "latmorph_cli_broken.py").write_text("import latmorph\nraise RuntimeError('half\\nfinished')")
    (folder / "latmorph_cli_syntax.py").write_text("def (:\n")
    return folder


@pytest.fixture
def models(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the small models, on the import path."""
    monkeypatch.syspath_prepend(str(models_folder))
    return models_folder


@pytest.fixture
def quick_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """``latmorph profile --device cpu`` measures the simulated device and ends after ten visits.

    Returns the folder where profiles are saved.
    """

    def opened(device: str, **_: object) -> Simulated:
        return Simulated()

    monkeypatch.setattr(latmorph.device.registry, "open_backend", opened)
    run = functools.partial(latmorph.latency.profiling.run_profile, most_visits=10, largest_flops=3e7)
    monkeypatch.setattr(latmorph.latency.profiling, "run_profile", run)
    monkeypatch.setenv("LATMORPH_PROFILES", str(tmp_path / "saved"))
    return tmp_path / "saved"


def strict_json(text: str) -> Any:
    """JSON as the standard has it: ``NaN`` and ``Infinity`` are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def output_of(capsys: Capture, *argv: str) -> str:
    """Standard output of a command that ends well."""
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def refused(capsys: Capture, *argv: str) -> str:
    """The one line that a command says of a bad input, its only output."""
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert out == ""
    return one_line(err)


def one_line(err: str) -> str:
    assert err.startswith("latmorph: "), err
    assert err.endswith("\n"), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


# predict


def test_predict_prints_operators_with_their_terms(
    capsys: Capture, profiles_folder: Path, models: Path
) -> None:
    out = output_of(capsys, "predict", *SMALL, "--profile", "here")
    assert "predicted" in out
    assert "90 % interval" in out
    lines = out.splitlines()
    assert any("conv2d" in line and "27.6 k" in line for line in lines)  # 27648 FLOPs
    assert any("linear" in line and "160" in line for line in lines)


def test_predict_as_json_holds_flops_total_interval_and_operators(
    capsys: Capture, profiles_folder: Path, models: Path
) -> None:
    found = strict_json(output_of(capsys, "predict", *SMALL, "--profile", "here", "--json"))
    assert found["profile"] == "here"
    assert found["flops"] == SMALL_FLOPS
    estimate = found["estimate"]
    low, high = estimate["interval_s"]
    assert 0 < low <= estimate["total_s"] <= high
    summed = sum(op["total_s"] for op in estimate["ops"]) + estimate["overhead_s"]
    assert summed == pytest.approx(estimate["total_s"])
    flops = {op["kind"]: op["flops"] for op in estimate["ops"]}
    assert flops["conv2d"] == 27648
    assert flops["linear"] == 160
    assert estimate["unpriced"] == []
    assert estimate["notes"] == [] or all("another machine" not in note for note in estimate["notes"])


def test_predict_without_a_profile_takes_the_newest_of_this_machine(
    capsys: Capture, profiles_folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_saved(monkeypatch)
    found = strict_json(output_of(capsys, "predict", *SMALL, "--json"))
    assert found["profile"] == "here"


def only_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the profiles that come with latmorph: what they are of depends on the release."""
    monkeypatch.setattr("latmorph.latency.profile.shipped_folder", lambda: Path("/nonexistent"))


def test_predict_takes_a_profile_by_its_folder(capsys: Capture, profiles_folder: Path, models: Path) -> None:
    folder = str(profiles_folder / "here")
    found = strict_json(output_of(capsys, "predict", *SMALL, "--profile", folder, "--json"))
    assert found["profile"] == "here"


def test_predict_shows_every_operator_only_when_asked(
    capsys: Capture, profiles_folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models / "latmorph_cli_deep.py").write_text(
        "from torch import nn\ndeep = nn.Sequential(*[nn.Linear(4, 4) for _ in range(25)])\n"
    )
    argv = ("predict", "latmorph_cli_deep:deep", "--input", "1x4", "--profile", "here")
    short, full = output_of(capsys, *argv), output_of(capsys, *argv, "--all")
    for out, rows in ((short, 20), (full, 25)):
        assert sum("linear" in line for line in out.split("totals by kind")[0].splitlines()) == rows
    assert "5 others" in short
    assert "others" not in full


def test_predict_takes_several_inputs_with_their_dtypes(
    capsys: Capture, profiles_folder: Path, models: Path
) -> None:
    argv = ("predict", "latmorph_cli_models:TwoInputs", "--input", "2x5:int64", "--input", "2x4")
    found = strict_json(output_of(capsys, *argv, "--profile", "here", "--json"))
    assert found["flops"] == 2 * (2 * 5) * 6 * 4  # the linear layer, on every token


def test_predict_tells_the_totals_by_kind_and_where_the_cliffs_are(
    capsys: Capture, profiles_folder: Path, models: Path, roofline_profile: Profile
) -> None:
    # On the simulated device convolutions run in blocks of 8 output channels.
    roofline_profile.save(profiles_folder / "formula")
    (models / "latmorph_cli_wide.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Conv2d(64, 65, 3), nn.ReLU(), nn.Conv2d(65, 8, 3))\n"
    )
    argv = ("predict", "latmorph_cli_wide:net", "--input", "1x64x20x20", "--profile", "formula")
    out = output_of(capsys, *argv)
    totals, cliffs = out.split("totals by kind")[1].split("cliffs")
    assert [row.split("│")[2].strip() for row in totals.splitlines() if "conv2d" in row] == ["2"]
    assert "time by bound" in totals
    assert "65 -> 64 channels saves" in cliffs
    found = strict_json(output_of(capsys, *argv, "--json"))
    (saving,) = (cliff for cliff in found["cliffs"] if cliff["share"] < 0)
    assert (saving["group"], saving["width"], saving["above"], saving["below"]) == ("0", 65, 65, 64)
    for op in found["estimate"]["ops"]:
        low, high = op["interval_s"]
        assert 0 < low < op["total_s"] < high
    assert strict_json(output_of(capsys, *argv, "--json", "--cliffs", "0"))["cliffs"] == []
    assert "--cliffs" in refused(capsys, *argv, "--cliffs", "-1")


def test_predict_tells_no_cliffs_of_a_network_that_has_no_price(
    capsys: Capture, profiles_folder: Path, models: Path
) -> None:
    argv = (
        "predict",
        "latmorph_cli_models:Fourier",
        "--input",
        "2x16",
        "--profile",
        "here",
        "--allow-unknown",
    )
    assert strict_json(output_of(capsys, *argv, "--json"))["cliffs"] == []


def test_predict_draws_a_picture_when_asked(
    capsys: Capture, profiles_folder: Path, models: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "time.png"
    out = output_of(capsys, "predict", *SMALL, "--profile", "here", "--picture", str(path))
    assert str(path) in out.replace("\n", "")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def program(models: Path, tmp_path: Path) -> Path:
    """``Small``, exported and saved by torch."""
    import latmorph_cli_models  # type: ignore[import-not-found]

    path = tmp_path / "small.pt2"
    exported = torch.export.export(
        latmorph_cli_models.Small().eval(), (torch.rand(1, 3, 8, 8),), strict=False
    )
    torch.export.save(exported, path)
    return path


@pytest.mark.parametrize("shapes", [(), ("--input", "1x3x8x8")])
def test_predict_of_a_saved_program_is_that_of_its_module(
    capsys: Capture, profiles_folder: Path, program: Path, shapes: tuple[str, ...]
) -> None:
    rest = ("--profile", "here", "--json")
    saved = strict_json(output_of(capsys, "predict", str(program), *shapes, *rest))
    module = strict_json(output_of(capsys, "predict", *SMALL, *rest))
    assert saved["flops"] == SMALL_FLOPS
    assert saved["estimate"]["total_s"] == pytest.approx(module["estimate"]["total_s"])
    assert [op["module"] for op in saved["estimate"]["ops"]] == [
        op["module"] for op in module["estimate"]["ops"]
    ]


def test_measure_runs_a_saved_program(capsys: Capture, profiles_folder: Path, program: Path) -> None:
    argv = ("measure", str(program), "--profile", "here", "--passes", "3", "--json")
    assert len(strict_json(output_of(capsys, *argv))["measured"]["samples_s"]) == 3 * TIMED


@pytest.mark.parametrize("path", ["latmorph_cli_models:made", "latmorph_cli_models:Group.small"])
def test_predict_takes_a_module_and_a_dotted_attribute(
    capsys: Capture, profiles_folder: Path, models: Path, path: str
) -> None:
    argv = ("predict", path, "--input", "1x3x8x8", "--profile", "here", "--json")
    assert strict_json(output_of(capsys, *argv))["flops"] == SMALL_FLOPS


def test_predict_says_that_a_profile_is_of_another_machine(
    capsys: Capture, profiles_folder: Path, models: Path, cpu_profile: Profile
) -> None:
    other_machine(cpu_profile, name="another processor").save(profiles_folder / "there")
    capsys.readouterr()
    assert main(["predict", *SMALL, "--profile", "there"]) == 0
    out, err = capsys.readouterr()
    assert "predicted" in out
    assert "another machine" in err
    assert "another processor" in err
    found = strict_json(output_of(capsys, "predict", *SMALL, "--profile", "there", "--json"))
    assert any("another machine" in note for note in found["estimate"]["notes"])


def other_machine(profile: Profile, **changed: Any) -> Profile:
    """The same profile, said to be of another machine."""
    fingerprint = msgspec.structs.replace(profile.fingerprint, **changed)
    return Profile(
        msgspec.structs.replace(profile.header, fingerprint=fingerprint), profile.model, profile.visits
    )


def test_predict_goes_past_an_unknown_operator_when_allowed_and_says_so(
    capsys: Capture, profiles_folder: Path, models: Path
) -> None:
    argv = ("predict", "latmorph_cli_models:Fourier", "--input", "2x16", "--profile", "here")
    capsys.readouterr()
    assert main([*argv, "--allow-unknown"]) == 0
    out, err = capsys.readouterr()
    assert "linear" in out
    assert "fft" in err
    found = strict_json(output_of(capsys, *argv, "--allow-unknown", "--json"))
    assert any("fft" in name for name in found["estimate"]["unpriced"])
    assert found["flops"] == 2 * 2 * 16 * 16 + 2 * 2 * 16 * 4


# inspect


def test_inspect_shows_groups_who_is_in_them_and_why_others_are_frozen(capsys: Capture, models: Path) -> None:
    out = output_of(capsys, "inspect", *SMALL, "--all")
    # All parameters but the bias of the head: 10 of 224 + 90.
    assert "1 channel groups can shrink: in 100.0 % of the FLOPs, 96.8 % of the parameters" in out
    flat = " ".join(out.replace("\u2502", " ").split())
    assert "conv (weight output, bias bias)" in flat
    assert "head (weight input)" in flat
    assert "the network's output" in flat
    assert "conv reads the network's input" in flat


def test_inspect_as_json_counts_what_goes_with_a_group(capsys: Capture, models: Path) -> None:
    found = strict_json(output_of(capsys, "inspect", *SMALL, "--json"))
    (conv,) = (g for g in found["groups"] if g["frozen"] is None)
    assert (conv["name"], conv["width"], conv["flops"]) == ("conv", 8, SMALL_FLOPS)
    assert conv["parameters"] == 8 * 27 + 8 + 10 * 8
    assert conv["time_s"] is None
    assert {m["parameter"] for m in conv["members"]} == {"conv.weight", "conv.bias", "head.weight"}
    assert found["total_s"] is None


def test_inspect_tells_times_by_a_profile(capsys: Capture, profiles_folder: Path, models: Path) -> None:
    found = strict_json(output_of(capsys, "inspect", *SMALL, "--profile", "here", "--json"))
    (conv,) = (g for g in found["groups"] if g["frozen"] is None)
    assert 0 < conv["time_s"] <= found["total_s"]
    assert 0 <= conv["channel_s"] * conv["width"] <= found["total_s"] * 1.01
    out = output_of(capsys, "inspect", *SMALL, "--profile", "here")
    assert "a channel" in out


def test_inspect_names_operators_without_a_handler(capsys: Capture, models: Path) -> None:
    assert main(["inspect", "latmorph_cli_models:Fourier", "--input", "2x16"]) == 0
    captured = capsys.readouterr()
    assert "unknown operator" in " ".join(captured.out.split())
    assert "has no handler: its channels are frozen" in captured.err


def test_predict_as_a_process_prints_json_alone_and_finds_models_in_the_working_folder(
    profiles_folder: Path, models_folder: Path
) -> None:
    done = run_process(models_folder, "predict", *SMALL, "--profile", "here", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert strict_json(done.stdout)["flops"] == SMALL_FLOPS


def run_process(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in a folder, with the present environment."""
    return subprocess.run(
        [sys.executable, "-m", "latmorph.cli", *argv],
        cwd=folder,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        check=False,
    )


# measure


def test_measure_prints_predicted_beside_measured(
    capsys: Capture, profiles_folder: Path, models: Path
) -> None:
    out = output_of(capsys, "measure", *SMALL, "--profile", "here", "--passes", "7")
    header = next(line for line in out.splitlines() if "predicted" in line)
    row = next(line for line in out.splitlines() if "%" in line and line != header and "us" in line)
    assert "measured" in header
    assert [part for part in row.replace("│", " ").split() if part][-1] == str(7 * TIMED)


def test_measure_as_json_holds_the_raw_samples(capsys: Capture, profiles_folder: Path, models: Path) -> None:
    argv = ("measure", *SMALL, "--profile", "here", "--passes", "4", "--json")
    found = strict_json(output_of(capsys, *argv))
    assert found["profile"] == "here"
    assert found["estimate"]["total_s"] > 0
    measured = found["measured"]
    assert (len(measured["samples_s"]), len(measured["references_s"])) == (4 * TIMED, 4 * (TIMED + 1))
    assert all(t > 0 for t in (*measured["samples_s"], *measured["references_s"], measured["time_s"]))


# profiles


def test_profiles_lists_the_saved_ones_and_marks_those_of_this_machine(
    capsys: Capture, profiles_folder: Path, cpu_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_saved(monkeypatch)
    other_machine(cpu_profile, name="another processor").save(profiles_folder / "there")
    lines = output_of(capsys, "profiles").splitlines()
    assert sum("here *" in line for line in lines) == 1
    assert sum("another processor" in line and "*" not in line for line in lines) == 1
    found = strict_json(output_of(capsys, "profiles", "--json"))
    here = {row["profile"]["fingerprint"]["name"]: row["of_this_machine"] for row in found}
    assert here == {cpu_profile.fingerprint.name: True, "another processor": False}


def test_profiles_without_any_is_an_empty_list(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_saved(monkeypatch)
    monkeypatch.setenv("LATMORPH_PROFILES", str(tmp_path / "none yet"))
    assert strict_json(output_of(capsys, "profiles", "--json")) == []
    assert "held-out error" in output_of(capsys, "profiles")


def test_profiles_passes_over_a_damaged_one_and_names_it(
    capsys: Capture, profiles_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_saved(monkeypatch)
    (profiles_folder / "broken").mkdir()
    (profiles_folder / "broken" / "profile.json").write_text('{"format": "latmorph-profile"')
    assert main(["profiles", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["profile"]["name"] for row in strict_json(out)] == ["here"]
    assert "broken" in one_line(err)


def test_profiles_shows_one_with_its_roofs_and_errors(
    capsys: Capture, profiles_folder: Path, cpu_profile: Profile
) -> None:
    out = output_of(capsys, "profiles", "here")
    assert cpu_profile.fingerprint.name in out
    assert "FLOP/s" in out
    assert "B/s" in out
    assert "conv2d" in out
    found = strict_json(output_of(capsys, "profiles", "here", "--json"))
    assert found["roofs"]["peak_flops_per_s"] == cpu_profile.model.roofs.peak_flops_per_s
    assert found["profile"]["visits"] == len(cpu_profile.visits)


def test_profiles_shows_the_staircase_of_a_chosen_operator(
    capsys: Capture, profiles_folder: Path, cpu_profile: Profile
) -> None:
    out = output_of(capsys, "profiles", "here", "--operator", "depthwise")
    assert "depthwise by output width" in out
    assert "linear by" not in out
    sweep = next(s for s in cpu_profile.model.roofs.sweeps if s.kind == "depthwise")
    rows = out.split("depthwise by output width")[1].splitlines()
    shown = [row.split("│")[1].strip() for row in rows if row.startswith("│")]
    assert shown == [str(width) for width in sweep.widths]
    found = strict_json(output_of(capsys, "profiles", "here", "--operator", "linear", "--json"))
    assert [s["sweep"]["axis"] for s in found["staircases"]] == ["in", "out"]
    assert all(len(s["predicted_s"]) == len(s["sweep"]["times_s"]) for s in found["staircases"])


def test_profiles_draws_the_roofline_and_the_staircases(
    capsys: Capture, profiles_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    out = output_of(capsys, "profiles", "here", "-o", str(folder))
    drawn = sorted(path.name for path in folder.iterdir())
    stairs = ("conv2d-in", "conv2d-out", "depthwise-out", "linear-in", "linear-out")
    assert drawn == ["roofline.png", *(f"staircase-{name}.png" for name in stairs)]
    assert all(str(folder / name) in out.replace("\n", "") for name in drawn)
    output_of(capsys, "profiles", "here", "--operator", "linear", "-o", str(tmp_path / "fewer"))
    fewer = sorted(path.name for path in (tmp_path / "fewer").iterdir())
    assert fewer == ["roofline.png", "staircase-linear-in.png", "staircase-linear-out.png"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("here", "--operator", "relu"), ["'relu'", "conv2d, depthwise, linear"]),
        (("--operator", "conv2d"), ["--operator", "NAME"]),
        (("-o", "pictures"), ["--output", "NAME"]),
        (("no-such-profile",), ["'no-such-profile'"]),
    ],
)
def test_profiles_refuses_what_it_cannot_show(
    capsys: Capture, profiles_folder: Path, argv: tuple[str, ...], words: list[str]
) -> None:
    line = refused(capsys, "profiles", *argv)
    assert all(word in line for word in words)


# profile


def test_profile_prints_the_figures_and_writes_the_folder(
    capsys: Capture, quick_profile: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "made" / "mine"
    out = output_of(capsys, "profile", "--device", "cpu", "--budget", "1000", "-o", str(folder))
    assert str(folder) in out.replace("\n", "")
    assert "held-out error" in out
    saved = open_profile(folder)
    assert saved.name == "mine"
    assert len(saved.visits) == 10
    # The planted peak of the simulated device, less the 2 us that it adds to each call.
    assert saved.model.roofs.peak_flops_per_s == pytest.approx(1e11, rel=0.01)
    assert [p.name for p in folder.parent.iterdir()] == ["mine"]  # no journal, no half-written folder


def test_profile_as_json_says_where_it_is_saved_and_its_header(capsys: Capture, quick_profile: Path) -> None:
    found = strict_json(
        output_of(capsys, "profile", "--device", "cpu", "--budget", "1000", "--seed", "3", "--json")
    )
    folder = Path(found["folder"])
    assert folder.parent == quick_profile
    assert found["profile"]["seed"] == 3
    assert found["profile"]["budget_s"] == 1000
    assert open_profile(folder).header.created == found["profile"]["created"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("0.5H", 1800), ("1000", 1000), ("2.5", 2.5)],
)
def test_a_budget_is_written_as_people_do(
    capsys: Capture, quick_profile: Path, monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    given: list[float] = []

    def noted(*_: object, budget_s: float, **__: object) -> None:
        given.append(budget_s)
        raise UsageError("enough")

    monkeypatch.setattr(latmorph.latency.profiling, "run_profile", noted)
    assert "enough" in refused(capsys, "profile", "--device", "cpu", "--budget", text)
    assert given == [seconds]


def test_options_of_the_runtime_are_handed_on(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def opened(device: str, **settings: object) -> None:
        given.append((device, settings["runtime"], settings["options"]))
        raise UsageError("enough")

    monkeypatch.setattr(latmorph.device.registry, "open_backend", opened)
    argv = ("--runtime", "onnxruntime", "--option", "spinning=on", "--option", "optimisation=basic")
    assert "enough" in refused(capsys, "profile", "--device", "cpu", *argv)
    assert given == [("cpu", "onnxruntime", {"spinning": "on", "optimisation": "basic"})]


def test_a_profile_goes_on_by_name(capsys: Capture, quick_profile: Path) -> None:
    argv = ("profile", "--device", "cpu", "--json")
    base = strict_json(output_of(capsys, *argv, "--budget", "1000"))
    longer = strict_json(output_of(capsys, *argv, "--budget", "600", "--profile", base["folder"]))
    assert longer["folder"] == base["folder"]
    assert longer["profile"]["budget_s"] == 1600
    assert open_profile(longer["folder"]).header.created == longer["profile"]["created"]


def test_where_this_machine_has_no_profile_the_nearest_lends_its_measurements(
    capsys: Capture, quick_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_saved(monkeypatch)
    argv = ("profile", "--device", "cpu", "--json", "--budget", "1000")
    made = open_profile(strict_json(output_of(capsys, *argv))["folder"])
    shutil.rmtree(quick_profile / made.name)
    for name, changes in (
        ("threads", {"threads": 2, "cores": 2}),
        ("processor", {"name": "another"}),
        ("runtime", {"runtime": "another"}),
    ):
        other_machine(made, **changes).save(quick_profile / name)
    run = functools.partial(latmorph.latency.profiling.run_profile, most_visits=20)
    monkeypatch.setattr(latmorph.latency.profiling, "run_profile", run)
    assert main([*argv]) == 0
    out, err = capsys.readouterr()
    assert f"borrowing measurements (cores 2, not 1; threads 2, not 1) from {made.name}" in err
    found = open_profile(strict_json(out)["folder"])
    assert list(found.visits[:10]) == [dataclasses.replace(v, run=-1) for v in made.visits]
    assert [v.run for v in found.visits[10:]] == [0] * 10
    assert "10 of them to another device" in " ".join(output_of(capsys, "profiles", found.name).split())


def test_a_profile_goes_on_from_this_machines_newest_unless_told_to_start_afresh(
    capsys: Capture, quick_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_saved(monkeypatch)
    argv = ("profile", "--device", "cpu", "--json", "--budget")
    first = strict_json(output_of(capsys, *argv, "1000"))
    name = first["profile"]["name"]
    assert main([*argv, "600"]) == 0
    out, err = capsys.readouterr()
    assert f"going on from {name}" in err
    assert strict_json(out)["profile"]["budget_s"] == 1600
    assert strict_json(output_of(capsys, *argv, "600", "--fresh"))["profile"]["budget_s"] == 600
    with pytest.raises(SystemExit):
        main([*argv, "600", "--fresh", "--profile", name])
    assert "not allowed" in capsys.readouterr().err


# profile --model


FOCUS = ("profile", "--device", "cpu", "--model", "latmorph_cli_models:Small", "--input", "1x3x8x8")


@pytest.fixture
def quick_focus(quick_profile: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``latmorph profile --model`` adds four visits on the simulated device."""
    only_saved(monkeypatch)
    run = functools.partial(latmorph.morph.focus.focus, most_visits=4)
    monkeypatch.setattr(latmorph.morph.focus, "focus", run)
    return quick_profile


def test_profile_of_a_model_adds_to_this_machines_newest_profile_and_leaves_it(
    capsys: Capture, quick_focus: Path
) -> None:
    base = strict_json(output_of(capsys, "profile", "--device", "cpu", "--budget", "1000", "--json"))
    made = strict_json(output_of(capsys, *FOCUS, "--budget", "60s", "--json"))
    assert made["folder"] == f"{base['folder']}-small"
    focused, before = open_profile(made["folder"]), open_profile(base["folder"])
    assert focused.visits[:10] == tuple(before.visits)
    assert (focused.header.visits, focused.header.focused_visits, focused.header.budget_s) == (14, 4, 1060)
    assert before.header.created == base["profile"]["created"]
    assert sorted(p.name for p in quick_focus.iterdir()) == [before.name, focused.name]
    # A second model is added to the profile of sampled networks, not to that of the first model.
    again = strict_json(
        output_of(capsys, *FOCUS, "--budget", "60s", "-o", str(quick_focus / "again"), "--json")
    )
    assert again["profile"]["visits"] == 14


def test_profile_of_a_model_adds_to_a_named_profile(
    capsys: Capture, quick_focus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    output_of(capsys, "profile", "--device", "cpu", "--budget", "1000", "-o", str(folder))
    out = output_of(capsys, *FOCUS, "--profile", str(folder), "-o", str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in out.replace("\n", "")
    assert "4 of them of networks in focus" in out
    assert open_profile(tmp_path / "mine").header.budget_s == 1120  # two minutes, unless said


def test_profile_of_a_model_without_a_profile_measures_sampled_networks_too(
    capsys: Capture, quick_focus: Path
) -> None:
    made = strict_json(output_of(capsys, *FOCUS, "--budget", "1000", "--json"))
    header = made["profile"]
    assert header["visits"] == 10
    assert 0 < header["focused_visits"] < 10
    assert made["folder"].endswith("-small")


def test_an_interrupted_profile_of_a_model_resumes(
    capsys: Capture, quick_focus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_of(capsys, "profile", "--device", "cpu", "--budget", "1000", "-o", str(tmp_path / "base"))
    argv = [*FOCUS, "--profile", str(tmp_path / "base"), "-o", str(tmp_path / "mine")]
    visit, visited = latmorph.device.fresh.visit_network, []

    def until_interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(visited) == 2:
            raise KeyboardInterrupt
        visited.append(args[1:3])
        return visit(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(latmorph.device.fresh, "visit_network", until_interrupted)
        assert main(argv) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    assert main(argv) == 0
    assert "resumed after 2 network visits" in capsys.readouterr().err
    assert open_profile(tmp_path / "mine").header.focused_visits == 4
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_a_profile_of_something_else_is_not_added_to(
    capsys: Capture, quick_focus: Path, tmp_path: Path, cpu_profile: Profile
) -> None:
    cpu_profile.save(tmp_path / "other")
    line = refused(capsys, *FOCUS, "--profile", str(tmp_path / "other"))
    assert "profile here" in line  # as it was called when it was made
    assert "device cpu, not simulated" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--model", "latmorph_cli_models:Small"), ["--input"]),
        (("--model", "latmorph_cli_models:Gone", "--input", "1x3"), ["'Gone'"]),
        (("--model", "gone.pt2"), ["'gone.pt2'", "no such file"]),
        (("--input", "1x3x8x8"), ["--input", "--model"]),
        (("--profile", "gone"), ["'gone'"]),
        (("--model", "latmorph_cli_models:Fourier", "--input", "2x16"), ["fft"]),
    ],
)
def test_profile_of_a_model_refuses_bad_input(
    capsys: Capture, quick_focus: Path, argv: tuple[str, ...], words: list[str]
) -> None:
    line = refused(capsys, "profile", "--device", "cpu", *argv)
    assert all(word in line for word in words)


def test_an_interrupted_profile_says_where_it_is_kept_and_the_next_run_resumes(
    capsys: Capture, quick_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    argv = ["profile", "--device", "cpu", "--budget", "1000", "-o", str(folder)]
    visit, visited = latmorph.device.fresh.visit_network, []

    def until_interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(visited) == 4:
            raise KeyboardInterrupt
        visited.append((args[1], args[2]))
        return visit(*args, **kwargs)

    monkeypatch.setattr(latmorph.device.fresh, "visit_network", until_interrupted)
    capsys.readouterr()
    assert main(argv) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    journals = [p for p in tmp_path.iterdir() if p.is_file()]
    assert len(journals) == 1
    assert any(str(journals[0]) in line for line in err.splitlines())
    assert not folder.exists()

    first = list(visited)

    def second_run(*args: Any, **kwargs: Any) -> Any:
        visited.append((args[1], args[2]))
        return visit(*args, **kwargs)

    monkeypatch.setattr(latmorph.device.fresh, "visit_network", second_run)
    assert main(argv) == 0
    assert "resumed after 4 network visits" in capsys.readouterr().err
    assert len(visited) == 10  # the six that were missing, and none of the first four again
    assert len(set(visited)) == 10
    assert not journals[0].exists()
    saved = open_profile(folder)
    assert [(v.network, v.visit) for v in saved.visits[:4]] == first


def test_a_profile_interrupted_under_other_settings_starts_anew_and_says_so(
    capsys: Capture, quick_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["profile", "--device", "cpu", "--budget", "1000", "-o", str(tmp_path / "mine")]
    with monkeypatch.context() as patch:
        patch.setattr(latmorph.device.fresh, "visit_network", interrupt)
        assert main(argv) == 130
    capsys.readouterr()
    assert main([*argv, "--seed", "1"]) == 0
    assert "starting anew" in capsys.readouterr().err
    assert open_profile(tmp_path / "mine").header.seed == 1


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_budget_too_small_for_a_fit_is_refused_and_more_goes_on_from_there(
    capsys: Capture, quick_profile: Path, tmp_path: Path
) -> None:
    argv = ["profile", "--device", "cpu", "-o", str(tmp_path / "mine")]
    assert main([*argv, "--budget", "1e-6"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    # Progress may stand before it; what went wrong is said once, at the end.
    assert "networks" in one_line(err.splitlines(keepends=True)[-1])
    assert sum(line.startswith("latmorph: ") for line in err.splitlines()) == 1
    assert main([*argv, "--budget", "1000"]) == 0
    assert "resumed" in capsys.readouterr().err


def test_profile_leaves_a_folder_of_other_files_alone(
    capsys: Capture, quick_profile: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years of work")
    code = main(["profile", "--device", "cpu", "--budget", "1000", "-o", str(folder)])
    assert (folder / "thesis.txt").is_file()
    assert (folder / "thesis.txt").read_text() == "three years of work"
    assert code == 2
    assert "results" in capsys.readouterr().err


def test_profile_leaves_a_file_in_the_folders_place_alone(
    capsys: Capture, quick_profile: Path, tmp_path: Path
) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("three years of work")
    code = main(["profile", "--device", "cpu", "--budget", "1000", "-o", str(file)])
    assert file.is_file()
    assert file.read_text() == "three years of work"
    assert code == 2
    assert "thesis.txt" in capsys.readouterr().err


def test_profile_into_the_working_folder_is_saved_or_refused(
    capsys: Capture, quick_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    code = main(["profile", "--device", "cpu", "--budget", "1000", "-o", "."])
    assert code in (0, 2)
    assert (code == 0) == (tmp_path / "mine" / "profile.json").is_file()


def test_profile_replaces_an_older_profile(
    capsys: Capture, quick_profile: Path, tmp_path: Path, cpu_profile: Profile
) -> None:
    cpu_profile.save(tmp_path / "mine")
    output_of(capsys, "profile", "--device", "cpu", "--budget", "1000", "-o", str(tmp_path / "mine"))
    assert open_profile(tmp_path / "mine").fingerprint.device == "simulated"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


# bad input


def cut_header(folder: Path) -> None:
    data = (folder / "profile.json").read_bytes()
    (folder / "profile.json").write_bytes(data[: len(data) // 2])


def cut_model(folder: Path) -> None:
    data = (folder / "model.json.gz").read_bytes()
    (folder / "model.json.gz").write_bytes(data[: len(data) // 2])


def cut_measurements(folder: Path) -> None:
    data = (folder / "measurements.csv.gz").read_bytes()
    (folder / "measurements.csv.gz").write_bytes(data[:-1])


def remove_model(folder: Path) -> None:
    (folder / "model.json.gz").unlink()


def edit_header(folder: Path) -> None:
    head = json.loads((folder / "profile.json").read_text())
    head["reference_s"] /= 2
    (folder / "profile.json").write_text(json.dumps(head))


def edit_model(folder: Path) -> None:
    model = json.loads(gzip.decompress((folder / "model.json.gz").read_bytes()))
    model["scale"] *= 2
    (folder / "model.json.gz").write_bytes(gzip.compress(json.dumps(model).encode()))


def make_newer(folder: Path) -> None:
    head = json.loads((folder / "profile.json").read_text())
    head.update(version=99, something_new=True)
    (folder / "profile.json").write_text(json.dumps(head))


def make_foreign(folder: Path) -> None:
    (folder / "profile.json").write_text('{"name": "a package of something else"}')


@pytest.mark.parametrize(
    ("damage", "file", "word"),
    [
        (cut_header, "profile.json", "truncated"),
        (cut_model, "model.json.gz", "truncated"),
        (cut_measurements, "measurements.csv.gz", "truncated"),
        (remove_model, "model.json.gz", "no such file"),
        (edit_header, "profile.json", "edited"),
        (edit_model, "model.json.gz", "altered"),
        (make_newer, "profile.json", "newer"),
        (make_foreign, "profile.json", "not a latmorph profile"),
    ],
)
def test_a_damaged_profile_is_refused_by_the_name_of_the_file(
    capsys: Capture,
    profiles_folder: Path,
    models: Path,
    damage: Callable[[Path], None],
    file: str,
    word: str,
) -> None:
    damage(profiles_folder / "here")
    for argv in (("predict", *SMALL, "--profile", "here"), ("profiles", "here")):
        line = refused(capsys, *argv)
        assert str(profiles_folder / "here" / file) in line
        assert word in line


def test_a_newer_profile_is_refused_by_its_version_and_with_what_to_do(
    capsys: Capture, profiles_folder: Path
) -> None:
    make_newer(profiles_folder / "here")
    line = refused(capsys, "profiles", "here")
    assert "99" in line
    assert "update latmorph" in line


@pytest.mark.parametrize("command", ["predict", "measure"])
def test_a_missing_profile_is_refused_with_those_that_exist(
    capsys: Capture, profiles_folder: Path, models: Path, command: str
) -> None:
    line = refused(capsys, command, *SMALL, "--profile", "no-such-profile")
    assert "'no-such-profile'" in line
    assert "here" in line.split("no-such-profile")[1]


def test_a_device_without_profiles_is_refused_with_how_to_make_one(
    capsys: Capture, profiles_folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_saved(monkeypatch)
    line = refused(capsys, "predict", *SMALL, "--profile", "cuda")
    assert "latmorph profile --device cuda" in line


BAD_MODELS_AND_INPUTS = {
    # The model's path.
    "no colon": ("latmorph_cli_models", ["1x4"], ["'latmorph_cli_models'", "package.module:callable"]),
    "no callable": ("latmorph_cli_models:", ["1x4"], ["'latmorph_cli_models:'", "package.module:callable"]),
    "no module": (":Small", ["1x4"], ["':Small'", "package.module:callable"]),
    "no such package": ("no_such_package.nets:Net", ["1x4"], ["no_such_package.nets", "does not import"]),
    "import raises": ("latmorph_cli_broken:Net", ["1x4"], ["latmorph_cli_broken", "not import", "half"]),
    "syntax error": ("latmorph_cli_syntax:Net", ["1x4"], ["latmorph_cli_syntax", "does not import"]),
    "no attribute": ("latmorph_cli_models:Missing", ["1x4"], ["latmorph_cli_models", "'Missing'"]),
    "no inner attribute": ("latmorph_cli_models:Group.gone", ["1x4"], ["latmorph_cli_models", "'gone'"]),
    "callable fails": ("latmorph_cli_models:fails", ["1x4"], ["latmorph_cli_models:fails", "weights are"]),
    "callable needs more": ("latmorph_cli_models:needs_an_argument", ["1x4"], ["needs_an_argument", "width"]),
    "gives no model": ("latmorph_cli_models:no_module", ["1x4"], ["latmorph_cli_models:no_module", "int"]),
    # The inputs on their own.
    "shape of words": ("latmorph_cli_models:Small", ["1x3xtall"], ["'1x3xtall'", "1x3x224x224"]),
    "shape empty": ("latmorph_cli_models:Small", [""], ["''", "1x3x224x224"]),
    "size zero": ("latmorph_cli_models:Small", ["1x3x0x8"], ["'1x3x0x8'", "at least 1"]),
    "size negative": ("latmorph_cli_models:Small", ["1x3x-8x8"], ["'1x3x-8x8'", "at least 1"]),
    "unknown dtype": ("latmorph_cli_models:Small", ["1x3x8x8:float12"], ["'1x3x8x8:float12'", "'float12'"]),
    "no dtype": ("latmorph_cli_models:Small", ["1x3x8x8:nn"], ["'1x3x8x8:nn'", "'nn'"]),
    "quantized dtype": ("latmorph_cli_models:Small", ["1x3x8x8:qint8"], ["'1x3x8x8:qint8'"]),
    "larger than memory": ("latmorph_cli_models:Small", [f"{10**11}x{10**11}"], [f"'{10**11}x{10**11}'"]),
    "larger than a size": ("latmorph_cli_models:Small", [f"{10**30}"], [f"'{10**30}'"]),
    # The inputs and the model together.
    "wrong shape": ("latmorph_cli_models:Small", ["1x4x8x8"], ["Small", "(1, 4, 8, 8)"]),
    "wrong dtype": ("latmorph_cli_models:Small", ["1x3x8x8:int64"], ["Small", "(1, 3, 8, 8)", "int64"]),
    "input too many": ("latmorph_cli_models:Small", ["1x3x8x8", "1x4"], ["Small", "2 positional"]),
    "no input": ("latmorph_cli_models:Small", [], ["'latmorph_cli_models:Small'", "--input"]),
    "input too few": ("latmorph_cli_models:TwoInputs", ["2x5:int64"], ["TwoInputs", "1 positional"]),
    "data-dependent": ("latmorph_cli_models:Branching", ["1x4"], ["Branching", "control flow"]),
}


@pytest.mark.parametrize("command", ["predict", "measure"])
def test_a_truncated_program_is_refused(
    capsys: Capture, profiles_folder: Path, program: Path, command: str
) -> None:
    program.write_bytes(program.read_bytes()[:3000])
    line = refused(capsys, command, str(program), "--profile", "here")
    assert "archive" in line
    assert "small.pt2" in line


def test_a_program_of_other_shapes_is_refused(capsys: Capture, profiles_folder: Path, program: Path) -> None:
    line = refused(capsys, "predict", str(program), "--input", "2x3x8x8", "--profile", "here")
    assert "1x3x8x8" in line
    assert "--input" in line


def edited(program: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write the archive anew, every file in it as ``change`` makes it."""
    with zipfile.ZipFile(program) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(program, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, change(name, data))


class RunsCode:
    """What a pickle does when it is loaded: here, make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("part", ["/sample_inputs/", "weights_config.json"])
def test_a_program_that_would_run_code_is_refused_unrun(
    capsys: Capture, profiles_folder: Path, program: Path, tmp_path: Path, part: str
) -> None:
    ran = tmp_path / "ran"
    data = io.BytesIO()
    torch.save(RunsCode(ran), data)

    def change(name: str, old: bytes) -> bytes:
        if part not in name and not (part.endswith(".json") and name.endswith("/weight_0")):
            return old
        return (
            old.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            if ".json" in name
            else data.getvalue()
        )

    edited(program, change)
    line = refused(capsys, "predict", str(program), "--profile", "here")
    assert "pickled" in line
    assert not ran.exists()
    # The same file does run code in torch itself: so the test would see it.
    with contextlib.suppress(Exception):
        torch.export.load(str(program))
    assert ran.exists()


def test_a_file_that_is_not_there_is_refused(capsys: Capture, profiles_folder: Path) -> None:
    for name in ("gone.pt2", "gone.onnx"):
        assert f"'{name}'" in refused(capsys, "predict", name, "--profile", "here")


@pytest.mark.parametrize("command", ["predict", "measure"])
@pytest.mark.parametrize(
    ("model", "shapes", "words"), BAD_MODELS_AND_INPUTS.values(), ids=BAD_MODELS_AND_INPUTS
)
def test_a_bad_model_or_input_is_refused_by_name(
    capsys: Capture,
    profiles_folder: Path,
    models: Path,
    command: str,
    model: str,
    shapes: list[str],
    words: list[str],
) -> None:
    inputs = [f"--input={shape}" for shape in shapes]
    line = refused(capsys, command, model, *inputs, "--profile", "here")
    for word in words:
        assert word in line


def test_an_unknown_operator_is_refused_by_its_name_and_with_what_to_do(
    capsys: Capture, profiles_folder: Path, models: Path
) -> None:
    argv = ("predict", "latmorph_cli_models:Fourier", "--input", "2x16", "--profile", "here")
    line = refused(capsys, *argv)
    assert "fft" in line
    assert "--allow-unknown" in line  # as it is written on the command line


def test_data_dependent_control_flow_is_one_line_of_a_process_too(
    profiles_folder: Path, models_folder: Path
) -> None:
    # In a process of its own, because torch logs past what a test can capture.
    argv = ("predict", "latmorph_cli_models:Branching", "--input", "1x4", "--profile", "here")
    done = run_process(models_folder, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert "control flow" in one_line(done.stderr)


BAD_SETTINGS = {
    "device": (["--device", "tpu"], ["'tpu'", "cpu, cuda"]),
    "runtime": (["--device", "cpu", "--runtime", "onnx"], ["'onnx'", "eager"]),
    "dtype": (["--device", "cpu", "--dtype", "float12"], ["'float12'", "float32"]),
    "no threads": (["--device", "cpu", "--threads", "0"], ["threads", "0"]),
    "threads negative": (["--device", "cpu", "--threads", "-2"], ["threads", "-2"]),
    "budget negative": (["--device", "cpu", "--budget", "-5"], ["--budget", "-5"]),
    "no budget": (["--device", "cpu", "--budget", "0"], ["--budget", "0"]),
    "budget no number": (["--device", "cpu", "--budget", "nan"], ["--budget", "nan"]),
    "budget without end": (["--device", "cpu", "--budget", "inf"], ["--budget", "inf"]),
    "budget of a day": (["--device", "cpu", "--budget", "1d"], ["--budget", "'1d'", "90s"]),
    "budget of a unit": (["--device", "cpu", "--budget", "m"], ["--budget", "'m'"]),
    "budget empty": (["--device", "cpu", "--budget", ""], ["--budget", "''"]),
    "budget infinite minutes": (["--device", "cpu", "--budget", "infm"], ["--budget", "'infm'"]),
    "option without a value": (["--device", "cpu", "--option", "spinning"], ["--option", "'spinning'"]),
    "option of no name": (["--device", "cpu", "--option", "=on"], ["--option", "'=on'"]),
    "option that eager lacks": (["--device", "cpu", "--option", "spinning=on"], ["eager", "spinning"]),
}


@pytest.mark.parametrize(("given", "words"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_profile_refuses_a_setting_by_name_and_measures_nothing(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], words: list[str]
) -> None:
    def measures(*_: object, **__: object) -> None:
        raise AssertionError("the run began")

    monkeypatch.setattr(latmorph.latency.profiling, "run_profile", measures)
    line = refused(capsys, "profile", *given, "-o", str(tmp_path / "made"))
    for word in words:
        assert word in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["profile", "demo"])
def test_cuda_is_refused_where_there_is_none(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(capsys, command, "--device", "cuda", "-o", str(tmp_path / "made"))
    assert "'cuda'" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["measure", "demo"])
@pytest.mark.parametrize("device", ["cuda", "simulated"])
def test_measuring_is_refused_on_a_device_that_is_not_here(
    capsys: Capture,
    profiles_folder: Path,
    models: Path,
    cpu_profile: Profile,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    device: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    other_machine(cpu_profile, device=device).save(profiles_folder / "there")
    argv = (*SMALL,) if command == "measure" else ("-o", str(profiles_folder.parent / "made"))
    capsys.readouterr()
    assert main([command, *argv, "--profile", "there"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert device in one_line(err.splitlines(keepends=True)[-1])


@pytest.mark.parametrize("passes", ["0", "-3"])
def test_measure_refuses_a_number_of_passes_below_one(
    capsys: Capture, profiles_folder: Path, models: Path, passes: str
) -> None:
    line = refused(capsys, "measure", *SMALL, "--profile", "here", "--passes", passes)
    assert "passes" in line
    assert passes in line


@pytest.mark.parametrize("target", ["0", "1", "2.5", "-0.5", "nan"])
def test_demo_refuses_a_target_that_is_no_fraction(capsys: Capture, tmp_path: Path, target: str) -> None:
    line = refused(capsys, "demo", "--target", target, "-o", str(tmp_path / "made"))
    assert "--target" in line
    assert target in line
    assert not any(tmp_path.iterdir())


def test_profile_refuses_a_place_that_cannot_be_written(
    capsys: Capture, quick_profile: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    capsys.readouterr()
    code = main(["profile", "--device", "cpu", "--budget", "1000", "-o", str(tmp_path / "file" / "mine")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert str(tmp_path / "file") in one_line(err.splitlines(keepends=True)[-1])


def test_an_interrupt_is_one_line_and_its_own_exit_code(
    capsys: Capture, profiles_folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latmorph.report.measured.time_calls", interrupt)
    capsys.readouterr()
    assert main(["measure", *SMALL, "--profile", "here"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "latmorph: interrupted\n")
