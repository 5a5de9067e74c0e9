"""The scripts behind the figures in docs: their arithmetic by hand, and pages made of all results."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tools.accuracy import Figures, NetworkFigures, table, write_page
from tools.bench_step import Pairs


def network(name: str, predicted_s: float, rounds_s: tuple[float, ...]) -> NetworkFigures:
    samples = tuple((r, 1.1 * r, 1.2 * r) for r in rounds_s)
    return NetworkFigures(
        name, 10**9, predicted_s, (0.9 * predicted_s, 1.2 * predicted_s), rounds_s, samples, ()
    )


def figures(threads: int, *networks: NetworkFigures, mismatch: tuple[str, ...] = ()) -> Figures:
    return Figures(
        *("Some CPU", "eager, torch 2", "float32", threads, 1, "some-profile", 190.0, "2026-01-02T03:04:05"),
        mismatch,
        "2026-01-03T00:00",
        (1.0, 1.0),
        networks,
    )


def test_errors_are_against_the_median_round() -> None:
    one = network("A", 0.011, (0.010, 0.012, 0.009))
    assert one.measured_s == 0.010
    assert one.error == pytest.approx(0.1)
    assert one.repeatability == pytest.approx(1 / 3)


def test_spread_is_half_the_quartiles_distance_over_the_median() -> None:
    one = NetworkFigures("A", 1, 1.0, (1.0, 1.0), (1.0,), ((1.0, 2.0, 3.0, 4.0, 5.0),), ())
    assert one.raw_spread == pytest.approx((4 - 2) / 2 / 3)


def test_the_table_shows_errors_their_median_and_their_largest() -> None:
    text = table(figures(2, network("A", 0.011, (0.010,)), network("B", 0.008, (0.010,))))
    assert "+10.0 %" in text
    assert "-20.0 %" in text
    assert "Median absolute error **15.0 %**, largest **20.0 %**" in text
    assert "Some CPU, 2 thread(s), batch 1" in text
    assert "another machine" not in text
    assert "another machine: cores 2" in table(figures(1, network("A", 1, (1,)), mismatch=("cores 2",)))


def test_the_page_holds_every_result_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "accuracy"
    folder.mkdir()
    for threads in (1, 2):
        one = figures(threads, network("A", 0.011, (0.010,)))
        (folder / f"{threads}.json").write_bytes(msgspec.json.encode(one))
    write_page(folder)
    page = (tmp_path / "accuracy.md").read_text()
    assert "1 thread(s)" in page
    assert "2 thread(s)" in page


def test_overhead_is_taken_pair_by_pair() -> None:
    assert Pairs("x", (1.0, 2.0), (1.5, 2.0)).ratios.tolist() == [1.5, 1.0]
