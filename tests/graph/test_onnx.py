"""Reading .onnx files: what torch's exporter writes reads as what torch.export shows of the same model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from modules import Call, Small, silence
from onnx import TensorProto, helper
from torch import nn

import latmorph as lm
from oracle import randomise
from tools import networks

torch.set_num_threads(1)


def export(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, optimise: bool = False, **more: Any
) -> Path:
    with silence():
        torch.onnx.export(model, inputs, str(path), dynamo=True, optimize=optimise, verbose=False, **more)
    return path


def prunable(graph: lm.Graph) -> list[int]:
    return sorted(int(graph.widths[i]) for i in graph.prunable)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small": (lambda: Small(12), (1, 3, 32, 32)),
    "residual": (lambda: networks.ResNet((1, 1, 1, 1), True, 10), (1, 3, 64, 64)),
    "vit": (lambda: networks.ViT(image=32, width=32, depth=2, heads=2, classes=10), (1, 3, 32, 32)),
    "1d": (
        lambda: nn.Sequential(
            *(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.SiLU(), nn.Conv1d(8, 8, 3, groups=8)),
            *(nn.PReLU(8), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3, bias=False)),
        ),
        (2, 4, 20),
    ),
}


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_reads_as_it_is_captured(name: str, optimise: bool, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    randomise(model, 0)  # the exporter makes one of equal weights
    x = torch.randn(*shape)
    captured = lm.capture(model, (x,))
    path = export(model, (x,), tmp_path / "network.onnx", optimise)
    read = lm.capture(path)
    assert read.onnx == path
    assert read.flops == captured.flops
    assert prunable(read) == prunable(captured)
    if not optimise:  # otherwise batch norms are folded into the convolutions
        assert read.parameters == captured.parameters
        names = [{g.name for g in graph.groups if not g.frozen} for graph in (read, captured)]
        assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("name", ["ResNet-50", "MobileNetV2", "Inception v3", "ViT-S/16"])
def test_well_known_networks_read_as_they_are_captured(name: str, optimise: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = networks.NETWORKS[name]().eval()
    randomise(model, 0)
    x = torch.randn(1, 3, *[299 if "Inception" in name else 224] * 2)
    captured = lm.capture(model, (x,))
    read = lm.capture(export(model, (x,), tmp_path / "network.onnx", optimise))
    assert (read.flops, prunable(read)) == (captured.flops, prunable(captured))


def test_weights_in_another_file_are_not_looked_for(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 4)).eval()
    path = export(model, (torch.zeros(1, 64),), tmp_path / "network.onnx", external_data=True)
    held = onnx.load(str(path), load_external_data=False)
    for tensor in held.graph.initializer:  # wherever it says that they are
        for entry in tensor.external_data:
            entry.value = "../../../../etc/passwd" if entry.key == "location" else entry.value
    path.write_bytes(held.SerializeToString())
    for other in tmp_path.glob("*.data"):
        other.unlink()
    graph = lm.capture(path)
    assert graph.flops == 2 * (64 * 96 + 96 * 4)
    assert graph.parameters == sum(p.numel() for p in model.parameters())


def test_open_sizes_are_asked_for_and_taken_from_inputs_or_shapes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()
    x = torch.randn(2, 3, 16, 16)
    batch = torch.export.Dim("batch")
    path = export(model, (x,), tmp_path / "open.onnx", dynamic_shapes=({0: batch},))
    with pytest.raises(lm.CaptureError, match=r"open sizes, \?x3x16x16"):
        lm.capture(path)
    wanted = lm.capture(model, (x,)).flops
    assert lm.capture(path, (x,)).flops == wanted
    assert lm.capture(str(path), [(2, 3, 16, 16)]).flops == wanted
    assert lm.capture(path, [(1, 3, 16, 16)]).flops == wanted // 2
    with pytest.raises(lm.CaptureError, match="2 inputs given"):
        lm.capture(path, (x, x))
    with pytest.raises(lm.CaptureError, match="has 4 axes"):
        lm.capture(path, [(2, 3)])


def test_what_only_computes_shapes_leaves_nothing(tmp_path: Path) -> None:
    shape_of = helper.make_node("Shape", ["x"], ["s"])
    batch = helper.make_node("Gather", ["s", "zero"], ["n"])
    wide = helper.make_node("Unsqueeze", ["n", "first"], ["n1"])
    joined = helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0)
    nodes = [shape_of, batch, wide, joined, helper.make_node("Reshape", ["x", "shape"], ["y"])]
    constants = {"zero": np.array(0), "first": np.array([0]), "rest": np.array([-1])}
    path = save(nodes, {"x": (2, 3, 4)}, {"y": None}, constants, tmp_path)
    (node,) = lm.capture(path).nodes
    assert (node.spec.kind, node.spec.attr("op"), node.spec.out.shape) == ("view", "reshape", (2, 12))


def save(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...] | None],
    constants: dict[str, np.ndarray],
    folder: Path,
    opset: int = 20,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "made.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def read_one(node: onnx.NodeProto, folder: Path, *shape: int, opset: int = 20, **constants: Any) -> lm.Graph:
    held = {n: np.asarray(a) for n, a in constants.items()}
    return lm.capture(save([node], {"x": shape}, {node.output[0]: None}, held, folder, opset))


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


SINGLE: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], str, int]] = {
    # node, shape of x, constants, kind, FLOPs
    "gemm": (
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        (5, 8),
        {"w": f32(3, 8), "b": f32(3)},
        "linear",
        2 * 5 * 8 * 3,
    ),
    "gemm, turned": (helper.make_node("Gemm", ["x", "w"], ["y"]), (5, 8), {"w": f32(8, 3)}, "linear", 240),
    "gemm, scaled": (
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5),
        (5, 8),
        {"w": f32(8, 3), "b": f32(3)},
        "addmm",
        240,
    ),
    "matmul": (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 5, 8), {"w": f32(8, 3)}, "linear", 480),
    "matmul of many": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        (2, 5, 8),
        {"w": f32(2, 8, 3)},
        "matmul",
        480,
    ),
    "conv, same": (
        helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2]),
        (1, 4, 9, 9),
        {"w": f32(6, 2, 3, 3)} | {"_group": 2},
        "conv2d",
        0,
    ),
    "transposed": (
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
        (1, 4, 5, 5),
        {"w": f32(4, 6, 2, 2)},
        "conv_transpose2d",
        2 * 5 * 5 * 4 * 6 * 2 * 2,
    ),
    "einsum": (
        helper.make_node("Einsum", ["x", "x"], ["y"], equation="bij,bkj->bik"),
        (2, 5, 8),
        {},
        "einsum",
        800,
    ),
    "softmax": (helper.make_node("Softmax", ["x"], ["y"], axis=1), (2, 5, 8), {}, "softmax", 0),
    "global pool": (
        helper.make_node("GlobalAveragePool", ["x"], ["y"]),
        (1, 4, 5, 5),
        {},
        "adaptive_avg_pool2d",
        0,
    ),
    "sum": (helper.make_node("Sum", ["x", "x"], ["y"]), (2, 5), {}, "add", 0),
    "mean": (helper.make_node("ReduceMean", ["x", "a"], ["y"]), (2, 5), {"a": np.array([1])}, "mean", 0),
    "resize": (
        helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear"),
        (1, 4, 5, 5),
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "upsample_bilinear2d",
        0,
    ),
    "clip": (
        helper.make_node("Clip", ["x", "a", "b"], ["y"]),
        (2, 5),
        {"a": np.float32(0), "b": np.float32(6)},
        "clamp",
        0,
    ),
    "embedding": (
        helper.make_node("Gather", ["w", "i"], ["y"]),
        (1,),
        {"w": f32(9, 4), "i": np.ones((1, 2), int)},
        "embedding",
        0,
    ),
    "one minus": (helper.make_node("Sub", ["a", "x"], ["y"]), (2, 5), {"a": np.float32(1)}, "rsub", 0),
    "pad": (helper.make_node("Pad", ["x", "p"], ["y"]), (2, 5), {"p": np.array([0, 1, 0, 2])}, "pad", 0),
    "slice": (
        helper.make_node("Slice", ["x", "a", "b", "a"], ["y"]),
        (4, 5),
        {"a": np.zeros(1, int), "b": np.full(1, 2)},
        "view",
        0,
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_node_becomes_the_operator_that_torch_would_call(name: str, tmp_path: Path) -> None:
    node, shape, constants, kind, flops = SINGLE[name]
    constants = dict(constants)
    if "_group" in constants:
        node.attribute.append(helper.make_attribute("group", constants.pop("_group")))
        flops = 2 * 5 * 5 * 6 * 2 * 9
    graph = read_one(node, tmp_path, *shape, **constants)
    assert [n.spec.kind for n in graph.nodes] == [kind]
    assert graph.flops == flops


def test_a_weight_that_lies_the_other_way_is_laid_out_as_torch_has_it(tmp_path: Path) -> None:
    graph = read_one(helper.make_node("MatMul", ["x", "w"], ["y"]), tmp_path, 5, 8, w=f32(8, 3))
    (node,) = graph.nodes
    assert node.spec["weight"].shape == (3, 8)


def test_a_slice_along_several_axes_is_one_slice_after_another(tmp_path: Path) -> None:
    node = helper.make_node("Slice", ["x", "a", "b", "c", "d"], ["y"])
    constants = {"a": [1, -3], "b": [4, 99], "c": [0, 2], "d": [2, 1]}
    graph = read_one(node, tmp_path, 4, 5, 6, **{n: np.array(v) for n, v in constants.items()})
    assert [n.spec.out.shape for n in graph.nodes] == [(2, 5, 6), (2, 5, 3)]
    x = torch.arange(120.0).view(4, 5, 6)
    for n in graph.nodes:
        x = torch.ops.aten.slice(x, *(n.spec.attr(k) for k in ("dim", "start", "end", "step")))
    assert torch.equal(x, torch.arange(120.0).view(4, 5, 6)[1:4:2, :, -3:])


def test_an_old_softmax_over_several_axes_has_no_equivalent(tmp_path: Path) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    with pytest.raises(lm.UnknownOperatorError, match="Softmax"):
        read_one(node, tmp_path, 2, 3, 4, opset=11)
    assert read_one(node, tmp_path, 2, 3, opset=11).nodes[0].spec.attr("dim") == 1


def test_an_unknown_operator_is_named_and_freezes_what_reaches_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"]),
        helper.make_node("QuickGelu", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("Conv", ["b", "second.weight"], ["y"]),
    ]
    weights = {"first.weight": f32(8, 3, 1, 1), "second.weight": f32(4, 8, 1, 1)}
    path = save(nodes, {"x": (1, 3, 5, 5)}, {"y": (1, 4, 5, 5)}, weights, tmp_path)
    with pytest.raises(lm.UnknownOperatorError, match=r"com\.microsoft\.QuickGelu"):
        lm.capture(path)
    graph = lm.capture(path, allow_unknown=True)
    assert "com.microsoft.QuickGelu" in graph.unknown
    group = graph.groups[graph.group("first")]
    assert group.width == 8
    assert "unknown operator com.microsoft.QuickGelu" in str(group.frozen)


def test_a_branch_is_named_and_freezes_what_its_inside_reads(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, (1, 8, 5, 5))
        return helper.make_graph([helper.make_node(op, ["a"], [f"{op}_out"])], op, [], [value])

    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    path = save(nodes, {"x": (1, 3, 5, 5)}, {"y": (1, 8, 5, 5)}, {"first.weight": f32(8, 3, 1, 1)}, tmp_path)
    with pytest.raises(lm.UnknownOperatorError, match="If"):
        lm.capture(path)
    graph = lm.capture(path, allow_unknown=True)
    assert "unknown operator If" in str(graph.groups[graph.group("first")].frozen)


def test_a_missing_file_and_one_of_something_else_are_told_in_one_line(tmp_path: Path) -> None:
    other = tmp_path / "text.onnx"
    other.write_text("no model at all\n" * 20)
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    for path, text in (
        (tmp_path / "none.onnx", "cannot be read"),
        (other, "not an ONNX"),
        (empty, "not an ONNX"),
    ):
        with pytest.raises(lm.CaptureError, match=text) as told:
            lm.capture(path)
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)


def test_a_weight_of_an_impossible_size_takes_no_memory(tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 8])
    weight.data_location = TensorProto.EXTERNAL
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    path = tmp_path / "huge.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(lm.CaptureError, match="no network has"):
        lm.capture(path)


def test_a_constant_of_an_impossible_size_is_never_computed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    path = save(nodes, {"x": (2, 3)}, {"y": None}, {"n": np.array([2**25, 2**20])}, tmp_path)
    assert [n.spec.kind for n in lm.capture(path).nodes] == ["full", "sum", "mul"]


def test_damaged_files_are_refused_or_read_and_never_crash(tmp_path: Path, fresh_seed: int) -> None:
    chance = random.Random(fresh_seed)
    model = Small(12).eval()
    whole = export(model, (torch.randn(1, 3, 32, 32),), tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "damaged.onnx"
    refused = 0
    for _ in range(60):
        data = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.choice((0, 1, 3, 30))):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(bytes(data))
        try:
            lm.capture(path, allow_unknown=True)
        except lm.CaptureError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused


def test_a_function_of_the_file_s_own_is_read_as_what_it_calls(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("own", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 20)])
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="own")],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 3))],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    path = tmp_path / "function.onnx"
    path.write_bytes(helper.make_model(graph, functions=[function], opset_imports=opsets).SerializeToString())
    assert [n.spec.kind for n in lm.capture(path).nodes] == ["relu", "neg"]


LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_models_of_other_frameworks_are_read(path: Path) -> None:
    graph = lm.capture(path, allow_unknown=True)
    assert graph.flops > 1e8
    assert set(graph.unknown) <= {"LRN"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.hardswish(x) + F.hardsigmoid(x) * F.gelu(x),
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1).roll(2, 2),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pad(x, (1, 1, 2, 0), mode="reflect"),
        lambda x: x.amax(1, keepdim=True).expand(2, 4, 6, 8),
        lambda x: x.flatten(1)[:, 3:20:2].topk(3)[0],
        lambda x: x[:, torch.tensor([1, 3])].argmax(-1),
        lambda x: torch.where(x > 0, x, -x).var((2, 3)),
    ],
)
def test_what_torch_exports_is_known(function: Callable[..., Any], tmp_path: Path) -> None:
    x = torch.randn(2, 4, 6, 8)
    graph = lm.capture(export(Call(function), (x,), tmp_path / "call.onnx", optimise=True))
    (out,) = graph.outputs
    assert graph.tensors[out].shape == tuple(function(x).shape)
