"""Structures: what they keep, their file, and what they refuse."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import latmorph as lm


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 2))


@pytest.fixture(scope="module")
def graph() -> lm.Graph:
    return lm.capture(network(), (torch.zeros(1, 3, 6, 6),))


def test_a_saved_structure_loads_equal_and_shrinks_alike(graph: lm.Graph, tmp_path: Path) -> None:
    structure = lm.Structure.keep(graph, {"0": [5, 1, 2], "2": [0, 3]})
    structure.save(tmp_path / "deep" / "s.json")
    loaded = lm.Structure.load(tmp_path / "deep" / "s.json")
    assert loaded == structure
    assert loaded.widths == {"0": 3, "2": 2}
    assert loaded.groups["0"].kept == (1, 2, 5)
    model = network()
    assert torch.equal(lm.shrink(model, loaded)[0].weight, model[0].weight[[1, 2, 5]])


def test_the_file_is_plain_json_with_the_kept_indices(graph: lm.Graph, tmp_path: Path) -> None:
    lm.Structure.keep(graph, {"0": [1, 2]}).save(tmp_path / "s.json")
    data = json.loads((tmp_path / "s.json").read_text())
    assert (data["format"], data["version"]) == ("latmorph-structure", 1)
    assert data["groups"]["0"] == {"width": 8, "kept": [1, 2]}
    assert {"parameter": "2.weight", "axis": 1, "size": 8, "kept": [1, 2]} in data["slices"]


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({"nothing": [0]}, "no channel group 'nothing'.*groups are"),
        ({"0": [0, 8]}, r"'0' has channels 0 to 7, got 0 to 8"),
        ({"0": [-1, 2]}, r"'0' has channels 0 to 7, got -1 to 2"),
        ({"0": [1, 1]}, "'0': an index is given twice"),
        ({"4": [0]}, "'4' is frozen: the network's output"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_group_s_name(
    graph: lm.Graph, kept: dict[str, list[int]], says: str
) -> None:
    with pytest.raises(lm.StructureError, match=says):
        lm.Structure.keep(graph, kept)


def test_keeping_everything_changes_nothing(graph: lm.Graph) -> None:
    structure = lm.Structure.keep(graph, {})
    assert structure.slices == ()
    model = network()
    twin = lm.shrink(model, structure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_structure_s_widths_are_refused_for_another_network(graph: lm.Graph) -> None:
    structure = lm.Structure.keep(graph, {"0": [1]})
    other = lm.capture(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (torch.zeros(1, 3),))
    with pytest.raises(lm.StructureError, match="apply it to the model that it was learned on"):
        structure.widths_of(other)


def test_slices_that_are_not_those_of_the_groups_are_refused(graph: lm.Graph, tmp_path: Path) -> None:
    lm.Structure.keep(graph, {"0": [1, 2]}).save(tmp_path / "s.json")
    data = json.loads((tmp_path / "s.json").read_text())
    data["slices"][0]["kept"] = [1, 3]
    (tmp_path / "s.json").write_text(json.dumps(data))
    with pytest.raises(lm.StructureError, match="damaged"):
        lm.shrink(network(), lm.Structure.load(tmp_path / "s.json"))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.Flatten(), nn.Linear(20, 2)),
            "'2.weight' .* 8 indices along axis 1|group '2': the model has 5 channels in it, the structure 6",
        ),
        (
            nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.LayerNorm(4), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 2)
            ),
            "parameters or frozen groups differ",
        ),
        (
            nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 2)
            ),
            "group '0': the model has no such group that can shrink, the structure 8 channels",
        ),
    ],
)
def test_another_model_is_refused_with_the_first_difference(
    graph: lm.Graph, other: nn.Module, says: str
) -> None:
    structure = lm.Structure.keep(graph, {"0": [1, 2]})
    with pytest.raises(lm.StructureError, match=says):
        lm.shrink(other, structure)


def test_a_structure_file_is_enough_to_build_the_smaller_network_elsewhere(
    graph: lm.Graph, tmp_path: Path
) -> None:
    model = network()
    lm.Structure.keep(graph, {"0": [1, 2, 6], "2": [0, 3]}).save(tmp_path / "s.json")
    small = lm.shrink(model, lm.Structure.load(tmp_path / "s.json"))
    torch.save(small.state_dict(), tmp_path / "w.pt")
    elsewhere = lm.shrink(network(), lm.Structure.load(tmp_path / "s.json"))
    elsewhere.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(elsewhere(x), small(x))


def test_without_weights_layers_are_initialised_at_the_smaller_size(graph: lm.Graph) -> None:
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    small = lm.shrink(model, lm.Structure.keep(graph, {"0": [1, 2], "2": [0, 3]}), weights=False)
    bound = (
        2 * 9
    ) ** -0.5  # torch's own bound of a convolution's weights: one over the root of what it reads
    assert small[2].weight.abs().max() <= bound
    assert small[2].weight.abs().max() > 0.7 * bound
    assert small[2].weight.shape == (2, 2, 3, 3)


def damaged(change: Any) -> Any:
    def apply(data: dict[str, Any]) -> bytes:
        change(data)
        return json.dumps(data).encode()

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: json.dumps(data).encode()[:-40], "damaged"),
        (lambda data: b"", "damaged"),
        (lambda data: pickle.dumps(data), "damaged"),
        (lambda data: b'{"format": "something else"}', "not a latmorph structure"),
        (lambda data: b"[1, 2]", "not a latmorph structure"),
        (damaged(lambda d: d.update(version=2)), "format version 2 is newer than 1; update latmorph"),
        (damaged(lambda d: d.update(extra=1)), "damaged.*extra"),
        (damaged(lambda d: d["groups"]["0"].update(kept=[2, 1])), "damaged.*'0'"),
        (damaged(lambda d: d["groups"]["0"].update(kept=[1, 99])), "damaged.*'0'"),
        (damaged(lambda d: d["groups"]["0"].update(kept="all")), "damaged"),
        (damaged(lambda d: d["slices"][0].update(axis=-1)), "damaged.*axis -1"),
        (damaged(lambda d: d["slices"][0].update(kept=[2, 1])), "damaged"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(
    graph: lm.Graph, tmp_path: Path, damage: Any, says: str
) -> None:
    path = tmp_path / "s.json"
    lm.Structure.keep(graph, {"0": [1, 2]}).save(path)
    path.write_bytes(damage(json.loads(path.read_text())))
    with pytest.raises(lm.StructureError, match=rf"s\.json.*{says}"):
        lm.Structure.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(lm.StructureError, match=r"gone\.json: cannot be read"):
        lm.Structure.load(tmp_path / "gone.json")
