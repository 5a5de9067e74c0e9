"""Profiles for every test: of a formula, and of this machine's CPU in a few seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from latmorph.device.eager import CpuEager
from latmorph.device.simulated import Simulated
from latmorph.device.timing import StopRule
from latmorph.latency.model import Trees
from latmorph.latency.profile import Profile
from latmorph.latency.profiling import run_profile

# One thread a process: tests run side by side, and threads that wait for each other's cores crawl.
torch.set_num_threads(1)

NO_LIMIT_S = 1e6
"""A budget that never ends a run: the number of visits does, so that a slow machine gets as many."""


@pytest.fixture(autouse=True)
def no_saved_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user of this machine has profiled is no part of a test."""
    monkeypatch.setenv("LATMORPH_PROFILES", str(tmp_path / "no profiles"))


@pytest.fixture(scope="session")
def simulated_profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """A profile of the simulated device with its default roofs and no noise; the same in every run."""
    folder = tmp_path_factory.mktemp("simulated")
    return run_profile(
        Simulated(),
        folder / "journal.jsonl",
        folder=folder / "formula",
        budget_s=NO_LIMIT_S,
        rule=StopRule(least=1, most=1),  # without noise a second pass says nothing new
        most_visits=30,
    )


@pytest.fixture(scope="session")
def roofline_profile(simulated_profile: Profile) -> Profile:
    """The simulated device's profile without its learned residual: the roofline with its blocks alone."""
    bare = Trees(0, [], [], [], [], [])
    model = simulated_profile.model
    families = {name: msgspec.structs.replace(f, trees=bare) for name, f in model.families.items()}
    return replace(simulated_profile, model=msgspec.structs.replace(model, families=families))


@pytest.fixture(scope="session")
def cpu_profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """A real profile of this CPU, made in seconds: complete in form, much too coarse to be believed."""
    folder = tmp_path_factory.mktemp("cpu")
    return run_profile(
        CpuEager(),
        folder / "journal.jsonl",
        folder=folder / "here",
        budget_s=NO_LIMIT_S,
        largest_flops=3e7,
        rule=StopRule(least=4, most=4),  # with fewer, one interruption of a pass passes for a slow operator
        most_visits=12,
    )


@pytest.fixture
def profiles_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_profile: Profile) -> Path:
    """The folder that saved profiles are looked for in; ``here`` in it is one of this machine."""
    folder = tmp_path / "profiles"
    monkeypatch.setenv("LATMORPH_PROFILES", str(folder))
    cpu_profile.save(folder / "here")
    return folder
