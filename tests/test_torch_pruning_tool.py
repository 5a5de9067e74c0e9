"""The comparison with Torch-Pruning: its oracle on networks pruned by hand, what it records, its page."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from tools import torch_pruning as tool
from tools.oracle import apart, outputs, randomise
from tools.torch_pruning_networks import CASES, PEERS, nms
from tools.torch_pruning_page import Record, page
from tools.zoo_run import read_records


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model = nn.Sequential(*layers).double().eval()
    randomise(model, 0)
    return model


def cut(x: torch.Tensor, axis: int, kept: list[int]) -> nn.Parameter:
    return nn.Parameter(x.detach().index_select(axis, torch.tensor(kept)))


def pruned(first: list[int], second: list[int], read: list[int]) -> tool.Pruned:
    """The network with these channels of its first and second layer kept, ``read`` those the last reads."""
    twin = network()
    small = copy.deepcopy(twin)
    tool.positions(small)
    one, norm, _, two, _, last = small
    one.weight, one.bias = cut(one.weight, 0, first), cut(one.bias, 0, first)
    norm.weight, norm.bias = cut(norm.weight, 0, first), cut(norm.bias, 0, first)
    norm.normalized_shape = (len(first),)
    two.weight = cut(cut(two.weight, 1, first), 0, second)
    two.bias, last.weight = cut(two.bias, 0, second), cut(last.weight, 1, read)
    return tool.resolved(small, twin, 0.0)


def error(found: tool.Pruned) -> float:
    x = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with tool.NewWidth(found.narrow):
        expected = outputs(found.twin, (x,))
    return apart(expected, outputs(found.small, (x,)))


def test_what_is_pruned_right_agrees_with_its_twin_and_norms_take_the_new_width() -> None:
    found = pruned([0, 2, 3, 5], [1, 4], [1, 4])
    assert error(found) < 1e-15
    assert found.new_width
    assert [at.tolist() for at in found.narrow.values()] == [[0, 2, 3, 5]]
    assert found.twin[0].weight[1].abs().sum() == found.twin[3].weight[:, 4].abs().sum() == 0


def test_what_is_pruned_wrong_does_not_agree() -> None:
    assert error(pruned([0, 1, 2, 3, 4, 5], [1, 4], [1, 3])) > 1e-3


def test_narrower_attention_is_held_against_scores_of_its_own_width() -> None:
    torch.manual_seed(0)
    twin = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    randomise(twin, 0)
    small = copy.deepcopy(twin)
    tool.positions(small)
    kept = [0, 1, 3, 4, 5, 7]
    rows = [8 * part + i for part in range(3) for i in kept]
    small.in_proj_weight = cut(cut(small.in_proj_weight, 0, rows), 1, kept)
    small.in_proj_bias = cut(small.in_proj_bias, 0, rows)
    small.out_proj.weight = cut(cut(small.out_proj.weight, 0, kept), 1, kept)
    small.out_proj.bias = cut(small.out_proj.bias, 0, kept)
    small.embed_dim = small.kdim = small.vdim = 6
    small.head_dim = 3
    found = tool.resolved(small, twin, 0.0)
    x = torch.zeros(2, 5, 8, dtype=torch.float64)
    x[..., kept] = torch.randn(2, 5, 6, dtype=torch.float64)
    wide, narrow = found.twin(x, x, x)[0], found.small(*[x[..., kept]] * 3)[0]
    assert found.new_width
    torch.testing.assert_close(wide[..., kept], narrow, rtol=1e-12, atol=1e-12)


def test_tied_weights_are_found_by_all_their_names() -> None:
    model = CASES["tied embedding and head"][0]()
    assert tool.tied(model) == [["embedding.weight", "head.weight"]]
    assert tool.parameters(model) == 100 * 32 + 32 * 64 + 64 + 64 * 32 + 32


def test_nms_keeps_the_best_of_those_that_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]
    assert nms(boxes[:0], torch.zeros(0), 0.5).tolist() == []


RECORDS = [
    Record("latmorph", "cases", "plain", "passed", parameters=10, flops=20, error=1e-16, tool_s=1.0),
    Record("Torch-Pruning", "cases", "plain", "silent error", "differs by 0.1 | of it", error=0.1),
    Record("latmorph", "torchvision", "ssd300_vgg16", "not exported", "why"),
    Record("Torch-Pruning", "torchvision", "ssd300_vgg16", "passed", flops_removed=0.5),
    Record("latmorph", "timm", "dla34", "passed", flops_removed=0.4, parameters_removed=0.3, tool_s=2.0),
    Record("Torch-Pruning", "timm", "dla34", "passed", flops_removed=0.5, parameters_removed=0.3, tool_s=1.0),
    Record("Torch-Pruning", "timm", "dpn68", "crashed", "not tried with the other"),
]


def test_the_page_says_where_either_tool_does_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    text = page(RECORDS)
    peer, ours = text.index("## Where Torch-Pruning is right"), text.index("## Where latmorph is right")
    assert peer < text.index("torchvision ssd300_vgg16 | not exported: why | passed") < ours
    assert ours < text.index("cases plain | passed | silent error: differs by 0.1 \\| of it")
    assert "latmorph 30 % of the parameters and 40 % of the FLOPs, in 2.0 s" in text
    assert "dpn68" not in text and "timeout" not in text.partition("## Summary")[2]
    assert "removes more of the FLOPs, by over 2 points, on 1 of them" in text


def test_records_are_kept_by_tool_and_architecture(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    again = msgspec.structs.replace(RECORDS[0], verdict="timeout")
    path.write_bytes(b"\n".join(msgspec.json.encode(r) for r in (*RECORDS, again)) + b'\n{"half')
    assert read_records(path, Record) == [again, *RECORDS[1:]]


def test_a_tool_that_hangs_is_ended_by_its_processor_time() -> None:
    with pytest.raises(TimeoutError, match="after 0 s of processor time"), tool.processor_limit(0.2):
        while True:
            pass
    with tool.processor_limit(60.0):
        pass


def test_the_peers_list_has_85_models() -> None:
    assert len(set(PEERS.split())) == len(PEERS.split()) == 85


@pytest.mark.parametrize(
    ("case", "verdict"),
    [("plain", "passed"), ("channel shuffle", "silent error"), ("tied embedding and head", "weights untied")],
)
def test_torch_pruning_on_cases_whose_outcome_is_known(case: str, verdict: str) -> None:
    pytest.importorskip("torch_pruning")
    build, inputs = CASES[case]
    trial = tool.Trial("cases", case, lambda: build().eval(), inputs, "Torch-Pruning", 60.0)
    news: dict[str, Any] = {}
    assert tool.examine(trial, lambda **known: news.update(known))[0] == verdict
    if verdict == "passed":
        assert news["error"] < 1e-15
        assert news["flops_removed"] > 0.3
