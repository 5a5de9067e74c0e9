"""Figures in words, tables and JSON."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import latmorph as lm
from latmorph.device.roofs import Sweep
from latmorph.device.timing import Timing
from latmorph.latency.estimate import Estimate, OpEstimate
from latmorph.latency.profile import Profile
from latmorph.morph.cliffs import Cliff
from latmorph.report.comparison import ComparedNetwork, Comparison
from latmorph.report.staircase import Staircase
from latmorph.report.tables import (
    cliffs_table,
    comparison_table,
    count_text,
    estimate_table,
    kinds_table,
    measure_table,
    plain,
    profile_tables,
    profiles_table,
    staircase_table,
    time_text,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (1.0, "1.00 s"),
        (12.34, "12.3 s"),
        (123.4, "123 s"),
        (0.5, "500 ms"),
        (1.5e-3, "1.50 ms"),
        (42.42e-3, "42.4 ms"),
        (999e-6, "999 us"),
        (12.34e-6, "12.3 us"),
        (1.0e-6, "1.00 us"),
        (0.123e-6, "0.123 us"),
        (-2.5e-3, "-2.50 ms"),
        # Rounding up moves to one more digit before the point, or to the next unit.
        (999.6e-6, "1.00 ms"),
        (999.4e-6, "999 us"),
        (0.9996, "1.00 s"),
        (9.996e-6, "10.0 us"),
        (99.96e-3, "100 ms"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
    ],
)
def test_a_time_has_three_significant_digits_and_a_fitting_unit(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (0, "B", "0 B"),
        (7, "", "7"),
        (999, "", "999"),
        (1000, "", "1.00 k"),
        (1234, "B", "1.23 kB"),
        (27648, "", "27.6 k"),
        (123456, "", "123 k"),
        (1.5e6, "B", "1.50 MB"),
        (4.2e9, "FLOP/s", "4.20 GFLOP/s"),
        (1.0e12, "FLOP/s", "1.00 TFLOP/s"),
        (-1234, "", "-1.23 k"),
        (999_600, "", "1.00 M"),
        (999_400, "", "999 k"),
        (9996, "", "10.0 k"),
        (999_999_999, "B", "1.00 GB"),
    ],
)
def test_a_count_has_three_significant_digits_and_a_decimal_prefix(
    value: float, unit: str, text: str
) -> None:
    assert count_text(value, unit) == text


@dataclass(frozen=True)
class Inner:
    total_s: float
    pair: tuple[float, ...]


class Outer(msgspec.Struct):
    name: str
    inner: Inner
    by_width: dict[int, list[float]]


def test_plain_makes_json_with_null_for_times_that_are_not_known() -> None:
    value = Outer("a", Inner(math.nan, (1.5, math.inf, -math.inf)), {8: [0.25, math.nan]})
    text = json.dumps(plain([value, None, True, 3]), allow_nan=False)
    assert json.loads(text) == [
        {"name": "a", "inner": {"total_s": None, "pair": [1.5, None, None]}, "by_width": {"8": [0.25, None]}},
        None,
        True,
        3,
    ]


def test_plain_of_a_profiles_header_reads_back_as_that_header(simulated_profile: Profile) -> None:
    text = json.dumps(plain(simulated_profile.header), allow_nan=False)
    assert msgspec.json.decode(text, type=type(simulated_profile.header)) == simulated_profile.header


def text_of(*tables: Table) -> str:
    """What a terminal of 160 columns would show."""
    console = Console(width=160, file=io.StringIO(), color_system=None)
    for table in tables:
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_with(text: str, word: str) -> list[str]:
    """The cells of the only row that holds a word."""
    (line,) = (line for line in text.splitlines() if word in line and line.startswith("│"))
    return [cell.strip() for cell in line.strip("│").split("│")]


ESTIMATE = Estimate(
    total_s=2e-3,
    interval_s=(1.6e-3, 2.5e-3),
    ops=(
        OpEstimate("relu_1", "", "relu", 0, 0.0, 3e-4, 1e-4, 4e-4, (3e-4, 5e-4)),
        OpEstimate("conv2d_1", "features.0", "conv2d", 27_648, 1.2e-3, 2e-4, 1e-4, 1.3e-3, (1.1e-3, 1.5e-3)),
        OpEstimate("linear_1", "head", "linear", 160, 1e-5, 9e-5, 2e-4, 3e-4, (2e-4, 4e-4)),
    ),
    unpriced=(),
    unmeasured=(),
    notes=(),
)


def test_the_estimate_table_shows_the_largest_operators_first_with_their_terms() -> None:
    text = text_of(estimate_table(ESTIMATE, None))
    assert "predicted 2.00 ms, 90 % interval 1.60 ms to 2.50 ms" in text
    assert row_with(text, "conv2d") == [
        "features.0",
        "conv2d",
        "27.6 k",
        "1.20 ms",
        "200 us",
        "100 us",
        "1.30 ms",
        "1.10 ms to 1.50 ms",
        "65.0 %",
        "compute",
    ]
    # An operator without FLOPs has no compute term, and one called in no module goes by its own name.
    assert row_with(text, "relu") == [
        "relu_1",
        "relu",
        "",
        "",
        "300 us",
        "100 us",
        "400 us",
        "300 us to 500 us",
        "20.0 %",
        "memory",
    ]
    assert row_with(text, "linear")[-1] == "overhead"
    assert text.index("conv2d") < text.index("relu") < text.index("linear")
    assert "others" not in text


def test_the_estimate_table_sums_up_the_operators_that_it_leaves_out() -> None:
    text = text_of(estimate_table(ESTIMATE, 1))
    assert "relu" not in text
    assert row_with(text, "2 others")[-4:] == ["700 us", "", "35.0 %", ""]


def test_the_estimate_table_of_a_network_without_operators_is_empty(simulated_profile: Profile) -> None:
    graph = lm.capture(nn.Identity(), (torch.zeros(1),))
    text = text_of(estimate_table(simulated_profile.predict(graph), None))
    assert "predicted 0 us" in text


def test_totals_by_kind_add_up_to_the_networks_the_largest_first() -> None:
    second = OpEstimate("relu_2", "", "relu", 0, 0.0, 9e-4, 1e-4, 1e-3, (9e-4, 1.1e-3))
    both = replace(ESTIMATE, ops=(*ESTIMATE.ops, second), total_s=3.3e-3, overhead_s=3e-4)
    text = text_of(kinds_table(both))
    assert row_with(text, "relu") == ["relu", "2", "", "1.40 ms", "42.4 %"]
    assert row_with(text, "conv2d") == ["conv2d", "1", "27.6 k", "1.30 ms", "39.4 %"]
    assert row_with(text, "total ") == ["total", "4", "27.8 k", "3.30 ms", ""]
    assert text.index("relu") < text.index("conv2d") < text.index("linear")
    assert row_with(text, "beside")[-2:] == ["300 us", "9.1 %"]
    # 1.3 of 3.3 ms are under compute, both activations under memory, the linear layer under its overhead.
    assert "39.4 % compute, 42.4 % memory, 9.1 % overhead" in " ".join(text.split())


def test_cliffs_are_told_as_what_narrowing_saves_or_costs() -> None:
    cliffs = (
        Cliff("layer3.0.conv2", 65, 65, 64, -0.18, -0.18),
        Cliff("layer2.0.conv1", 70, 64, 63, 0.034, -0.021),
    )
    text = text_of(cliffs_table(cliffs, None))
    saving = ["layer3.0.conv2", "65", "65 -> 64 channels saves 18.0 %", "-18.0 %", ""]
    assert row_with(text, "layer3.0.conv2") == saving
    trap = ["layer2.0.conv1", "70", "64 -> 63 channels costs 3.4 %", "-2.1 %", "trap"]
    assert row_with(text, "layer2.0.conv1") == trap
    assert "smaller" not in text
    assert row_with(text_of(cliffs_table(cliffs, 1)), "smaller")[0] == "1 smaller ones"


def test_a_staircase_shows_measured_predicted_and_their_ratio() -> None:
    sweep = Sweep("conv2d", "in", (30, 31), (1e-4, 2e-4))
    text = text_of(staircase_table(Staircase(sweep, (1.1e-4, 1e-4))))
    assert "conv2d by input width" in text
    assert row_with(text, "30 ") == ["30", "100 us", "110 us", "1.10"]
    assert row_with(text, "31 ") == ["31", "200 us", "100 us", "0.50"]


def test_the_measure_table_shows_the_error_of_the_prediction() -> None:
    timing = Timing((2.5e-3, 2.5e-3, 2.6e-3, 2.7e-3, 2.7e-3), (1e-3,) * 5, 2.5e-3)
    text = text_of(measure_table(ESTIMATE, timing))
    # Predicted 2.0 of measured 2.5: 20 % too low. Quartiles 2.5 and 2.7 about a median of 2.6: 3.8 %.
    assert row_with(text, "2.60 ms") == [
        "2.00 ms",
        "1.60 ms to 2.50 ms",
        "2.50 ms",
        "-20.0 %",
        "2.60 ms",
        "3.8 %",
        "5",
    ]


def test_the_list_of_profiles_marks_those_of_this_machine(simulated_profile: Profile) -> None:
    header = simulated_profile.header
    there = msgspec.structs.replace(header, name="other")
    text = text_of(profiles_table([(header, True), (there, False)]))
    assert row_with(text, "formula *")[2] == "formula, 1"
    cells = row_with(text, "other")
    assert cells[0] == "other"
    assert cells[3:6] == ["float32", "1", header.created[:10]]
    assert cells[6] == f"{header.validation.median_error_percent:.1f} %"


def test_the_tables_of_a_profile_show_its_roofs_and_the_error_of_every_family(
    simulated_profile: Profile,
) -> None:
    text = text_of(*profile_tables(simulated_profile))
    # What the simulated device was planted with.
    assert row_with(text, "peak")[1] == "100 GFLOP/s"
    assert row_with(text, "bandwidth at 131 kB")[1] == "10.0 GB/s"
    assert "conv2d 1, 8" in row_with(text, "channel blocks")[1]
    assert f"{len(simulated_profile.visits)} network visits" in row_with(text, "measured")[1]
    assert set(simulated_profile.header.validation.families) == set(simulated_profile.model.families)
    for family, checked in simulated_profile.header.validation.families.items():
        (cells,) = (
            [cell.strip() for cell in line.strip("│").split("│")]
            for line in text.splitlines()
            if line.strip("│").split("│")[0].strip() == family and line.startswith("│")
        )
        assert cells[1] == str(checked.operators)


def network(name: str, **changed: Any) -> ComparedNetwork:
    given: dict[str, Any] = {
        "accuracy_percent": 81.25,
        "flops": 4_000_000,
        "parameters": 120_000,
        "predicted_s": 2e-3,
        "predicted_interval_s": (1.5e-3, 3e-3),
        "measured_s": 2.2e-3,
        "measured_median_s": 2.4e-3,
        "measured_spread": 0.031,
        "samples_s": (2.2e-3, 2.4e-3),
        "references_s": (1e-3, 1e-3),
        "widths": {"conv": 16},
        **changed,
    }
    return ComparedNetwork(name, **given)


def test_the_comparison_shows_ratios_to_the_parent() -> None:
    small = network("small", flops=1_000_000, predicted_s=1.5e-3, measured_s=1.1e-3, accuracy_percent=79.0)
    result = Comparison("here", "a device", 0.5, 32, 5000, 1000, 0, (network("parent"), small), ())
    text = text_of(comparison_table(result))
    assert "a device" in text
    assert "batch of 32" in text
    assert row_with(text, "small") == [
        "small",
        "79.0 %",
        "1.00 M (0.25)",
        "120 k",
        "1.50 ms (0.75)",
        "1.10 ms",
        "0.50",
        "3.1 %",
    ]
    assert row_with(text, "parent")[2] == "4.00 M (1.00)"
