"""Whole networks on this machine's clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.device.timing import MOST_UNSETTLED, TIMED
from latmorph.latency.profile import Profile
from latmorph.report.measured import measure_together


class Watched(nn.Module):
    """A convolution and a norm that write down how each call found them."""

    def __init__(self, calls: list[str] | None = None, name: str = "") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.seen: list[tuple[bool, bool, bool, int]] = []
        self.calls = calls
        self.name = name
        self.raises_at = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        threads = torch.get_num_threads()
        self.seen.append((self.training, self.norm.training, torch.is_grad_enabled(), threads))
        if self.calls is not None:
            self.calls.append(self.name)
        if len(self.seen) == self.raises_at:
            raise RuntimeError("out of order")
        y: torch.Tensor = self.norm(self.conv(x))
        return y


X = (torch.zeros(2, 3, 8, 8),)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.fixture
def three_threads() -> Iterator[None]:
    """A number of threads that no profile of these tests has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def of_another_machine(profile: Profile) -> Profile:
    fingerprint = msgspec.structs.replace(profile.fingerprint, name="another processor")
    header = msgspec.structs.replace(profile.header, fingerprint=fingerprint)
    return Profile(header, profile.model, profile.visits)


def calmer_half(samples: Sequence[float]) -> float:
    kept = sorted(samples)[: -(-len(samples) // 2)]
    return sum(kept) / len(kept)


def test_the_model_runs_in_eval_mode_without_gradients_on_the_profiles_threads(
    cpu_profile: Profile, three_threads: None
) -> None:
    model = Watched().train()
    lm.measure(model, X, cpu_profile, passes=3)
    assert len(model.seen) >= 3
    assert set(model.seen) == {(False, False, False, 1)}


@pytest.mark.parametrize("raises_at", [0, 1, 4])
def test_modes_threads_gradients_and_weights_are_left_as_they_were(
    cpu_profile: Profile, three_threads: None, raises_at: int
) -> None:
    model = Watched().train()
    model.norm.eval()  # frozen statistics inside a network in training, as in fine-tuning
    model.raises_at = raises_at
    before, state = modes(model), {k: v.clone() for k, v in model.state_dict().items()}
    if raises_at:
        with pytest.raises(RuntimeError, match="out of order"):
            lm.measure(model, X, cpu_profile, passes=3)
    else:
        lm.measure(model, X, cpu_profile, passes=3)
    assert modes(model) == before == [True, True, False]
    assert torch.get_num_threads() == 3
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_every_sample_is_kept_and_the_references_on_both_sides(cpu_profile: Profile) -> None:
    timing = lm.measure(Watched(), X, cpu_profile, passes=6)
    assert (len(timing.samples_s), len(timing.references_s)) == (6 * TIMED, 6 * (TIMED + 1))
    assert all(t > 0 for t in (*timing.samples_s, *timing.references_s))
    assert min(timing.samples_s) <= timing.median_s <= max(timing.samples_s)


def test_the_time_is_scaled_to_the_calm_reference_of_this_machines_profile(cpu_profile: Profile) -> None:
    timing = lm.measure(Watched(), X, cpu_profile, passes=4)
    slower = calmer_half(timing.references_s) / cpu_profile.header.reference_s
    assert timing.time_s == pytest.approx(calmer_half(timing.samples_s) / slower)


def test_another_machines_calm_reference_says_nothing_here(cpu_profile: Profile) -> None:
    timing = lm.measure(Watched(), X, of_another_machine(cpu_profile), passes=4)
    # The calmest reference of this very run stands in for it, and cancels out.
    assert timing.time_s == pytest.approx(calmer_half(timing.samples_s))


def test_networks_take_turns_in_every_pass(cpu_profile: Profile) -> None:
    calls: list[str] = []
    networks = {name: (Watched(calls, name), X) for name in "abc"}
    timings = measure_together(networks, cpu_profile, passes=8)
    assert set(timings) == {"a", "b", "c"}
    assert all(len(t.samples_s) == 8 * TIMED for t in timings.values())
    # A turn is calls until the network, which is a small one, has settled, and then the timed ones.
    turn = MOST_UNSETTLED + TIMED
    turns = calls[::turn]
    assert calls == [name for name in turns for _ in range(turn)]
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 24, 3)]
    assert len(rounds) == 8
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1  # not always in the same order


@pytest.mark.parametrize("passes", [0, -1])
def test_a_number_of_passes_below_one_is_refused_before_the_model_runs(
    cpu_profile: Profile, passes: int
) -> None:
    model = Watched().train()
    with pytest.raises(lm.UsageError, match=f"passes.*{passes}"):
        lm.measure(model, X, cpu_profile, passes=passes)
    assert model.seen == []
    assert model.training


def test_a_device_that_is_not_here_is_refused_and_the_model_left_as_it_was(
    cpu_profile: Profile, simulated_profile: Profile
) -> None:
    model = Watched().train()
    with pytest.raises(lm.DeviceError, match="simulated"):
        lm.measure(model, X, simulated_profile)
    assert all(modes(model))


def test_inputs_that_are_no_tuple_are_refused_as_capture_refuses_them(cpu_profile: Profile) -> None:
    # A tensor would fall apart into its batch, and one picture without a batch be measured for it.
    with pytest.raises(lm.LatmorphError, match=r"\(x,\)"):
        lm.measure(Watched(), torch.zeros(1, 3, 8, 8), cpu_profile, passes=1)
