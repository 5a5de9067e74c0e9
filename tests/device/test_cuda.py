"""On a real GPU: profile, predict and measure run as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import latmorph as lm
from latmorph.device.registry import open_backend
from latmorph.device.timing import StopRule
from latmorph.latency.profiling import run_profile
from tools.networks import resnet18


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
def test_a_gpu_is_profiled_predicted_and_measured(tmp_path: Path) -> None:
    profile = run_profile(
        open_backend("cuda"),
        tmp_path / "journal.jsonl",
        budget_s=1e6,
        rule=StopRule(least=2, most=3),
        most_visits=40,
    )
    assert profile.fingerprint.device == "cuda"
    assert profile.mismatch == ()
    model, x = resnet18().cuda().eval(), torch.zeros(8, 3, 224, 224, device="cuda")
    estimate = profile.predict(lm.capture(model, (x,)))
    timing = lm.measure(model, (x,), profile, passes=5)
    assert estimate.unpriced == ()
    assert estimate.total_s > 0
    assert min(timing.samples_s) > 0
