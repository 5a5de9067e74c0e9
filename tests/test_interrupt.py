"""A real profiling run of this CPU, interrupted by a signal as by a user, goes on where it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BUDGET_S = 24


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "latmorph.cli", "profile", "--device", "cpu", "--budget", str(BUDGET_S)]
    return subprocess.Popen(
        [*command, "-o", str(folder)], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_profile_resumes(tmp_path: Path, how: signal.Signals) -> None:
    folder, journal = tmp_path / "mine", tmp_path / ".mine.unfinished.jsonl"
    run = start(folder)
    assert run.stderr is not None
    while not (journal.exists() and journal.read_text().count('"network"') >= 20):
        assert run.poll() is None
        time.sleep(0.2)
    run.send_signal(how)
    said = run.stderr.read()
    assert run.wait() == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert f"kept in {journal}" in said
    assert not folder.exists()
    # A killed run may leave half a line; whole ones all count.
    kept = sum(line.endswith("}") and '"network"' in line for line in journal.read_text().splitlines())
    again = start(folder)
    assert again.stderr is not None
    said = again.stderr.read()
    assert again.wait() == 0
    found = re.search(r"resumed after (\d+) network visits", said)
    assert found is not None
    assert int(found[1]) == kept >= 20
    assert "measuring roofs" not in said
    assert sorted(p.name for p in folder.iterdir()) == [
        "measurements.csv.gz",
        "model.json.gz",
        "profile.json",
    ]
    assert not journal.exists()
