"""The picture of widths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from latmorph.report.plots import draw_widths

SECOND = "#b7791f"
"""The colour of the second network's rectangles."""

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
