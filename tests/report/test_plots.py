"""Pictures: of the right size, and with as much of each colour as what they show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from latmorph.device.timing import observations
from latmorph.errors import UsageError
from latmorph.latency.estimate import Estimate, OpEstimate
from latmorph.latency.profile import Profile
from latmorph.report.plots import (
    BOUND_COLORS,
    draw_estimate,
    draw_roofline,
    draw_staircase,
    draw_widths,
)
from latmorph.report.staircase import staircases

SECOND = "#b7791f"
"""The colour of the second network's rectangles."""

FLOPS_KINDS = ("conv", "linear", "addmm", "matmul", "bmm", "einsum", "scaled_dot_product", "lstm", "gru")
"""How the names of operators begin that multiply and add."""

PARENT = {"stem": 16, "block": 32, "head": 64}


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header that every PNG file starts with."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[12:16] == b"IHDR"
    assert data[-8:-4] == b"IEND"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def draw(folder: Path, second: Mapping[str, int], parent: Mapping[str, int] = PARENT) -> int:
    """Pixels of the second network's rectangles, in a picture of it beside a parent."""
    path = folder / "widths.png"
    draw_widths({"parent": parent, "second": second}, path)
    pixels = imread(path)[..., :3]
    return int(np.sum(np.all(np.abs(pixels - to_rgb(SECOND)) < 0.02, axis=-1)))


def test_the_picture_has_a_sane_size_that_grows_with_layers_and_networks(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "widths.png"
    draw_widths({"parent": PARENT, "small": PARENT}, path, {"parent": "2.00 ms, 81.0 %"})
    width, height = size_of(path)
    assert 300 < height < width < 3000
    draw_widths({"parent": PARENT, "small": PARENT, "other": PARENT}, path)
    assert size_of(path)[0] > width
    draw_widths({"parent": {f"layer {k}": 8 for k in range(30)}}, path)
    assert height < size_of(path)[1] < 5000


def test_a_layer_is_drawn_as_wide_as_it_has_channels(tmp_path: Path) -> None:
    whole = draw(tmp_path, PARENT)
    half = draw(tmp_path, {name: width // 2 for name, width in PARENT.items()})
    assert whole > 1000
    assert half == pytest.approx(whole / 2, rel=0.05)


def test_a_layer_that_a_network_lacks_is_drawn_as_nothing(tmp_path: Path) -> None:
    whole = draw(tmp_path, PARENT)
    without = draw(tmp_path, {"stem": 16, "block": 32})
    assert without == pytest.approx(whole * (16 + 32) / (16 + 32 + 64), rel=0.05)


def test_a_network_wider_than_the_parent_fits_into_the_picture(tmp_path: Path) -> None:
    double = draw(tmp_path, {"stem": 128}, {"stem": 64})
    same = draw(tmp_path, {"stem": 64}, {"stem": 128})
    # Both pictures are scaled to 128 channels, so nothing of the wider one is cut off.
    assert double == pytest.approx(2 * same, rel=0.05)


@pytest.mark.parametrize("step", ["draw", "write"])
def test_a_picture_that_fails_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "widths.png"
    draw_widths({"parent": PARENT}, path)
    old = path.read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise OSError("no space left")

    if step == "draw":
        monkeypatch.setattr(Figure, "savefig", fails)
    else:
        monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        draw_widths({"parent": PARENT, "second": PARENT}, path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


# where the time goes


ESTIMATE = Estimate(
    total_s=2e-3,
    interval_s=(1.6e-3, 2.5e-3),
    ops=(
        OpEstimate("conv2d_1", "features.0", "conv2d", 27_648, 1.2e-3, 2e-4, 1e-4, 1.3e-3, (1.1e-3, 1.5e-3)),
        OpEstimate("relu_1", "", "relu", 0, 0.0, 3e-4, 1e-4, 4e-4, (3e-4, 5e-4)),
        OpEstimate("linear_1", "head", "linear", 160, 1e-5, 9e-5, 2e-4, 3e-4, (2e-4, 4e-4)),
    ),
    unpriced=(),
    unmeasured=(),
    notes=(),
)


def colored(path: Path, color: str) -> int:
    """Pixels of a colour."""
    pixels = imread(path)[..., :3]
    return int(np.sum(np.all(np.abs(pixels - to_rgb(color)) < 0.02, axis=-1)))


def test_the_picture_of_an_estimate_shares_its_area_out_by_bound(tmp_path: Path) -> None:
    path = tmp_path / "estimate.png"
    draw_estimate(ESTIMATE, path)
    assert min(size_of(path)) > 300
    whole = {bound: colored(path, color) for bound, color in BOUND_COLORS.items()}
    assert all(pixels > 500 for pixels in whole.values())
    # Without its only operator under compute, nothing but the legend is drawn in that colour.
    draw_estimate(replace(ESTIMATE, ops=ESTIMATE.ops[1:], total_s=7e-4), path)
    assert colored(path, BOUND_COLORS["compute"]) < 0.1 * whole["compute"]


def test_the_picture_of_an_estimate_draws_only_the_largest_operators_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "estimate.png"
    many = replace(ESTIMATE, ops=ESTIMATE.ops * 40, total_s=8e-2)
    draw_estimate(many, path)
    few = size_of(path)[1]
    draw_estimate(many, path, rows=60)
    assert size_of(path)[1] > few


def test_a_network_without_operators_has_a_picture_too(tmp_path: Path) -> None:
    draw_estimate(replace(ESTIMATE, ops=(), total_s=0.0, interval_s=(0.0, 0.0)), tmp_path / "empty.png")
    assert min(size_of(tmp_path / "empty.png")) > 100


# roofline and staircase


def test_the_roofline_has_a_point_for_every_operator_with_flops(
    tmp_path: Path, simulated_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray] = []
    scatter = Axes.scatter

    def noted(self: Axes, x: np.ndarray, y: np.ndarray, **how: object) -> object:
        drawn.append(np.stack([x, y], axis=1))
        return scatter(self, x, y, **how)

    monkeypatch.setattr(Axes, "scatter", noted)
    observed = observations(simulated_profile.visits)[0]
    draw_roofline(observed, simulated_profile.model.roofs, tmp_path / "roofline.png", "a device")
    assert min(size_of(tmp_path / "roofline.png")) > 600
    points = np.concatenate(drawn)
    assert len(points) == sum(o.spec.kind.startswith(FLOPS_KINDS) for o in observed)
    # No operator is above the planted roofs: 1e11 FLOP/s, and 1e10 B/s times its intensity.
    assert np.all(points[:, 1] <= 1.001 * np.minimum(1e11, 1e10 * points[:, 0]))
    assert np.max(points[:, 1]) > 0.5e11


def test_the_roofline_without_any_operator_draws_the_roofs(
    tmp_path: Path, simulated_profile: Profile
) -> None:
    draw_roofline([], simulated_profile.model.roofs, tmp_path / "roofline.png", "a device")
    assert colored(tmp_path / "roofline.png", "#374151") > 1000


def test_the_staircases_of_a_simulated_device_are_predicted(
    tmp_path: Path, simulated_profile: Profile
) -> None:
    found = {(s.sweep.kind, s.sweep.axis): s for s in staircases(simulated_profile)}
    assert set(found) == {
        ("conv2d", "in"),
        ("conv2d", "out"),
        ("depthwise", "out"),
        ("linear", "in"),
        ("linear", "out"),
    }
    stairs = found["conv2d", "out"]
    measured = np.array(stairs.sweep.times_s)
    assert stairs.ratio == pytest.approx(np.array(stairs.predicted_s) / measured)
    assert np.all(np.abs(np.log(stairs.ratio)) < 0.5)  # of a small profile: the right size, no more
    path = tmp_path / "staircase.png"
    draw_staircase(replace(stairs, predicted_s=tuple(2 * measured)), path, "a device")
    assert colored(path, "#b7791f") > 300
    assert colored(path, "#2b6cb0") > 300


def test_a_staircase_of_one_kind_is_chosen_and_of_none_refused(simulated_profile: Profile) -> None:
    assert [s.sweep.axis for s in staircases(simulated_profile, "linear")] == ["in", "out"]
    with pytest.raises(UsageError, match=r"'relu'.*conv2d, depthwise, linear"):
        staircases(simulated_profile, "relu")
    roofs = msgspec.structs.replace(simulated_profile.model.roofs, sweeps=())
    old = replace(simulated_profile, model=msgspec.structs.replace(simulated_profile.model, roofs=roofs))
    assert staircases(old) == ()
    with pytest.raises(UsageError, match="profile the device again"):
        staircases(old, "conv2d")
