"""ONNX models written from steps, against torch itself and against torch's own exporter."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import test_zoo
import torch
import torch.nn.functional as F
from modules import Call, Small, silence
from torch import nn

import latmorph as lm
from latmorph import ops
from latmorph.device.sampling import NetworkBuilder, sample_network
from latmorph.onnx_model import default_parameter, to_onnx
from latmorph.onnx_ops import TABLE
from latmorph.opspec import OpSpec, Step, TensorSpec
from latmorph.values import ParameterValues
from oracle import randomise
from tools import networks
from tools.zoo import import_torchvision

torch.set_num_threads(1)


class With(nn.Module):
    """A function of inputs and of buffers ``p0``, ``p1``, ... that the module holds."""

    def __init__(self, function: Callable[..., Any], *held: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.count = len(held)
        for i, tensor in enumerate(held):
            self.register_buffer(f"p{i}", tensor)

    def forward(self, *x: torch.Tensor) -> Any:
        return self.function(*x, *(getattr(self, f"p{i}") for i in range(self.count)))


class First(nn.Module):
    """The first of the outputs of a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        return self.inner(*x)[0]


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(len(shape)).standard_normal(shape)).float()


def session(model: onnx.ModelProto, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[tuple[str, str]]:
    """Kernels that ONNX Runtime runs for a model."""
    session(model, folder / "optimised.onnx")
    found = onnx.load(str(folder / "optimised.onnx")).graph.node
    return Counter((node.domain, node.op_type) for node in found)


def written(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    """The model as latmorph writes it, with the model's own parameters."""
    graph = lm.capture(model, inputs)
    steps = graph.steps_at(graph.widths)
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    names = {
        id(operand): graph.tensors[tensor].parameter
        for node, step in zip(graph.nodes, steps, strict=True)
        for tensor, operand in zip(node.inputs, step.spec.inputs, strict=True)
    }
    made = to_onnx(steps, lambda t: held[names[id(t)]].detach().numpy())
    onnx.checker.check_model(made)
    return made


def exported(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    """The model as torch's own exporter writes it."""
    with silence():
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto


def disagreement(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Largest difference between the model in torch and as ONNX, over the largest value."""
    with torch.no_grad():
        wanted = model(*(x.clone() for x in inputs))
    wanted = torch.utils._pytree.tree_leaves(wanted)
    ort = session(written(model, inputs))
    names = {v.name: int(v.name.removeprefix("input") or 0) for v in ort.get_inputs()}
    found = ort.run(None, {name: inputs[k].numpy() for name, k in names.items()})
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == tuple(b.shape)
        assert str(a.dtype) == str(b.dtype).removeprefix("torch.")
        scale = max(1e-6, float(np.abs(b.numpy().astype(float)).max()))
        worst = max(worst, float(np.abs(a.astype(float) - b.numpy().astype(float)).max()) / scale)
    return worst


PICTURE, S, V = random(1, 6, 8, 8), random(2, 5, 8), random(1, 2, 4, 4, 4)
INDEX = torch.tensor([0, 2])
Q, K = random(1, 4, 5, 8), random(1, 2, 5, 8)
INTS = torch.tensor([[0, 3, 1]])

CASES: dict[str, tuple[nn.Module | Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "conv1d": (nn.Conv1d(5, 4, 3, padding=1), (S,)),
    "conv2d": (nn.Conv2d(6, 8, (3, 1), stride=2, padding=(1, 0), groups=2, dilation=2), (PICTURE,)),
    "conv2d, same": (nn.Conv2d(6, 4, (4, 3), padding="same", bias=False), (PICTURE,)),
    "conv2d, no batch": (nn.Conv2d(6, 4, 3), (PICTURE[0],)),
    "conv3d": (nn.Conv3d(2, 3, 3, padding=1), (V,)),
    "conv_transpose1d": (nn.ConvTranspose1d(5, 4, 3, stride=2), (S,)),
    "conv_transpose2d": (nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2), (PICTURE,)),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False), (V,)),
    "linear": (nn.Linear(8, 3), (S,)),
    "linear, rows": (nn.Linear(8, 3, bias=False), (S[0],)),
    "linear, computed": (lambda x, w: F.linear(x, w * 2), (S, random(3, 8))),
    "matmul": (lambda x: x @ x.transpose(1, 2), (S,)),
    "bmm": (lambda x: torch.bmm(x, x.mT), (S,)),
    "mm": (lambda x: x[0].t().mm(x[0]), (S,)),
    "mv": (lambda x: torch.mv(x[0], x[0, 0]), (S,)),
    "dot": (lambda x: torch.dot(x[0, 0], x[0, 1]), (S,)),
    "addmm": (With(lambda x, a, b: torch.addmm(a, x[0], b, beta=0.5), random(3), random(8, 3)), (S,)),
    "baddbmm": (lambda x: torch.baddbmm(x[:, :, :5], x, x.mT, alpha=0.5, beta=2), (S,)),
    "einsum": (lambda x: torch.einsum("bij,bkj->bik", x, x), (S,)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x + 1), (Q,)),
    "attention, causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3), (Q,)),
    "attention, masked": (With(lambda x, m: F.scaled_dot_product_attention(x, x, x, m), random(5, 5)), (Q,)),
    "attention, hidden": (
        With(lambda x, m: F.scaled_dot_product_attention(x, x, x, m), torch.eye(5).bool()),
        (Q,),
    ),
    "attention, grouped": (lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), (Q, K)),
    "batch_norm": (nn.BatchNorm2d(6), (PICTURE,)),
    "batch_norm, bare": (nn.BatchNorm2d(6, affine=False), (PICTURE,)),
    "batch_norm, of the batch": (lambda x: F.batch_norm(x, None, None, training=True), (PICTURE,)),
    "layer_norm": (nn.LayerNorm((5, 8)), (S,)),
    "layer_norm, bare": (nn.LayerNorm(8, elementwise_affine=False), (S,)),
    "group_norm": (nn.GroupNorm(3, 6), (PICTURE,)),
    "instance_norm": (nn.InstanceNorm2d(6), (PICTURE,)),
    "rms_norm": (nn.RMSNorm(8), (S,)),
    "_weight_norm": (With(lambda x, v, g: x @ torch._weight_norm(v, g, 0), random(8, 3), random(8, 1)), (S,)),
    "lstm": (First(nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)), (S,)),
    "lstm, states": (nn.LSTM(8, 6, bias=False), (S,)),
    "gru": (First(nn.GRU(8, 6)), (S,)),
    "rnn_relu": (First(nn.RNN(8, 6, nonlinearity="relu", bidirectional=True)), (S,)),
    "cosine_similarity": (lambda x: F.cosine_similarity(x, x * x, 1), (S,)),
    "hardtanh": (F.hardtanh, (S,)),
    "leaky_relu": (F.leaky_relu, (S,)),
    "elu": (F.elu, (S,)),
    "celu": (lambda x: F.celu(x, 2.0), (S,)),
    "gelu": (F.gelu, (S,)),
    "gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"), (S,)),
    "softplus": (lambda x: F.softplus(x, 2.0), (S,)),
    "prelu": (nn.PReLU(5), (S,)),
    "prelu, one": (nn.PReLU(), (S,)),
    "glu": (lambda x: F.glu(x, 2), (S,)),
    "rrelu": (nn.RReLU(), (S,)),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.2), (S,)),
    "clamp": (lambda x: torch.clamp(x, -1, 0.5), (S,)),
    "clamp, tensors": (lambda x: torch.clamp(x, x - 1, x * 0.5), (S,)),
    "clamp_min": (lambda x: torch.clamp_min(x, 0.1), (S,)),
    "clamp_max": (lambda x: torch.clamp_max(x, 0.1), (S,)),
    "logit": (lambda x: torch.logit(x.sigmoid()), (S,)),
    "nan_to_num": (lambda x: torch.nan_to_num((x - x) / (x - x), nan=3.0), (S,)),
    "add": (lambda x: torch.add(x, x[:1], alpha=2) + 1, (S,)),
    "sub": (lambda x: x - x.mean(), (S,)),
    "rsub": (lambda x: 1 - x, (S,)),
    "mul": (lambda x: x * 2.5 * x[:, :1], (S,)),
    "mul, integers": (lambda x: x * 2 + torch.arange(3), (INTS,)),
    "mul, mixed": (lambda x, y: x[:, :1] * y, (S[:, :, :3], INTS)),
    "div": (lambda x: x / 3, (S,)),
    "div, floor": (lambda x: torch.div(x, 0.3, rounding_mode="floor"), (S,)),
    "div, trunc": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), (S,)),
    "floor_divide": (lambda x: x // 0.3, (S,)),
    "remainder": (lambda x: x % 0.7, (S,)),
    "fmod": (lambda x: torch.fmod(x, 0.7), (S,)),
    "pow": (lambda x: 2.0**x + x**2, (S,)),
    "maximum": (lambda x: torch.maximum(x, -x) + torch.minimum(x, x * 2), (S,)),
    "atan2": (lambda x: torch.atan2(x, x + 0.3), (S,)),
    "lerp": (lambda x: torch.lerp(x, x * x, 0.3), (S,)),
    "lerp, tensor": (lambda x: torch.lerp(x, x * x, x.sigmoid()), (S,)),
    "addcmul": (lambda x: torch.addcmul(x, x, x, value=0.5), (S,)),
    "addcdiv": (lambda x: torch.addcdiv(x, x, x.exp(), value=0.5), (S,)),
    "comparisons": (lambda x: ((x > 0) & (x <= 1)) | (~(x >= 0.5) ^ (x != 0)) & (x < 2), (S,)),
    "logical": (lambda x: torch.logical_or(torch.logical_not(x), torch.logical_and(x > 0, x < 1)), (S,)),
    "eq": (lambda x: x == 3, (INTS,)),
    "where": (lambda x: torch.where(x > 0, x, 0.0) + torch.where(x > 1, x, -x), (S,)),
    "masked_fill": (lambda x: x.masked_fill(x > 0, -3.0), (S,)),
    "copy_": (lambda x: torch.zeros(2, 5, 8).copy_(x[:, :1]), (S,)),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), (S,)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (PICTURE,)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (V,)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), (S,)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (PICTURE,)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (V,)),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 1) + F.adaptive_avg_pool1d(x, 4).sum(), (S,)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), (PICTURE,)),
    "adaptive_avg_pool2d, even": (lambda x: F.adaptive_avg_pool2d(x, (4, 2)), (PICTURE,)),
    "adaptive_avg_pool2d, uneven": (lambda x: F.adaptive_avg_pool2d(x, (3, 5)), (PICTURE,)),
    "adaptive_avg_pool2d, last": (lambda x: F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1), (PICTURE,)),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 1), (V,)),
    "adaptive_max_pool2d": (
        lambda x: F.adaptive_max_pool2d(x, 1) + F.adaptive_max_pool2d(x, 4).sum(),
        (PICTURE,),
    ),
    "upsample_nearest1d": (lambda x: F.interpolate(x, scale_factor=2), (S,)),
    "upsample_nearest2d": (lambda x: F.interpolate(x, size=(12, 20)), (PICTURE,)),
    "upsample_nearest3d": (lambda x: F.interpolate(x, scale_factor=2), (V,)),
    "upsample_linear1d": (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), (S,)),
    "upsample_bilinear2d": (lambda x: F.interpolate(x, size=(15, 9), mode="bilinear"), (PICTURE,)),
    "upsample_bilinear2d, corners": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        (PICTURE,),
    ),
    "upsample_bicubic2d": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), (PICTURE,)),
    "upsample_trilinear3d": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), (V,)),
    "_upsample_nearest_exact2d": (lambda x: F.interpolate(x, size=(5, 9), mode="nearest-exact"), (PICTURE,)),
    "grid_sampler": (
        With(
            lambda x, g: F.grid_sample(x, g, padding_mode="border", align_corners=False), random(1, 3, 3, 2)
        ),
        (PICTURE,),
    ),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(torch.cat([x, x], 1), 2), (PICTURE,)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (PICTURE,)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), (PICTURE,)),
    "im2col": (lambda x: F.unfold(x, (3, 2), dilation=2, padding=1, stride=2), (PICTURE,)),
    "col2im": (lambda x: F.fold(F.unfold(x, 2), 8, 2), (PICTURE,)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, -1), value=0.5), (PICTURE,)),
    "pad, reflect": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), (PICTURE,)),
    "pad, replicate": (lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"), (PICTURE,)),
    "pad, circular": (lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"), (PICTURE,)),
    "mean": (lambda x: x.mean((1, 2)) + x.mean(), (S,)),
    "sum": (lambda x: x.sum(1, keepdim=True) + x.sum(), (S,)),
    "sum, of a mask": (lambda x: (x > 0).sum(1), (S,)),
    "amax": (lambda x: x.amax(1) + x.amin((0, 1)) + x.max() - x.min(), (S,)),
    "max": (lambda x: x.max(1), (S,)),
    "min, of two": (lambda x: torch.min(x, -x), (S,)),
    "argmax": (lambda x: (x.argmax(1), x.argmin()), (S,)),
    "any": (lambda x: ((x > 2).any(1), (x > -9).all()), (S,)),
    "var": (lambda x: x.var(1) + x.std((0, 1), correction=0), (S,)),
    "var_mean": (lambda x: torch.var_mean(x, 1), (S,)),
    "prod": (lambda x: x.prod(1) + x.logsumexp(1), (S,)),
    "norm": (lambda x: x.norm(2, 1) + torch.linalg.vector_norm(x, 3, 1) + x.norm(), (S,)),
    "softmax": (lambda x: x.softmax(1) + x.log_softmax(-1), (S,)),
    "cumsum": (lambda x: x.cumsum(1), (S,)),
    "diff": (lambda x: torch.diff(x, n=2, dim=1), (S,)),
    "topk": (lambda x: x.topk(2), (S,)),
    "sort": (lambda x: x.sort(1, descending=True), (S,)),
    "views": (lambda x: x.view(2, -1).unflatten(1, (5, 8)).flatten(1)[:, None].squeeze(1).view_as(x), (S,)),
    "permute": (lambda x: x.permute(2, 0, 1).transpose(0, 2).movedim(0, 1), (S,)),
    "expand": (lambda x: x[:, None].expand(2, 3, 5, 8).contiguous(), (S,)),
    "repeat": (lambda x: x.repeat(2, 1, 2, 1), (S,)),
    "tile": (lambda x: x.tile(2), (S,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), (S,)),
    "select": (lambda x: x[:, -1] + x[0, 1:3:2].sum(), (S,)),
    "chunk": (lambda x: torch.cat([c * i for i, c in enumerate(x.chunk(3, 1))], 1), (PICTURE,)),
    "split": (lambda x: x.split([1, 5], 1)[1], (PICTURE,)),
    "tensor_split": (lambda x: torch.tensor_split(x, 2, 1)[0], (S,)),
    "unbind": (lambda x: sum(a * i for i, a in enumerate(x.unbind(1))), (S,)),
    "stack": (lambda x: torch.stack([x, -x], 1), (S,)),
    "hstack": (lambda x: torch.hstack([x, -x]) + torch.vstack([x, x]).sum(), (S,)),
    "roll": (lambda x: x.roll((1, -2), (2, 3)), (PICTURE,)),
    "roll, flat": (lambda x: x.roll(3), (S,)),
    "flip": (lambda x: x.flip(1, 2) + x.fliplr(), (S,)),
    "tril": (lambda x: x.tril() + x.triu(1), (S,)),
    "unfold": (lambda x: x.unfold(1, 2, 2), (S,)),
    "diagonal": (lambda x: x.diagonal(1, 1, 2), (S,)),
    "as_strided": (lambda x: x.contiguous().as_strided((2, 3), (1, 2), 1), (S,)),
    "meshgrid": (lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"), (S,)),
    "embedding": (nn.Embedding(10, 4), (INTS,)),
    "index": (With(lambda x, i: x[:, i] * 2, INDEX), (S,)),
    "index, rows": (With(lambda x, i: x[i - 1, i], torch.tensor([1, 1])), (S,)),
    "index, apart": (With(lambda x, i: x[i - 1, :, i], torch.tensor([1, 1])), (S,)),
    "index_put": (With(lambda x, i: torch.index_put(x, (i * 0, i), x[0, 0]), INDEX), (S,)),
    "index_add": (With(lambda x, i: x.index_add(1, i, x[:, :2]), INDEX), (S,)),
    "index_select": (With(lambda x, i: x.index_select(1, i), INDEX), (S,)),
    "gather": (With(lambda x, i: x.gather(1, i), torch.zeros(2, 2, 8, dtype=torch.long)), (S,)),
    "scatter": (With(lambda x, i: x.scatter(1, i, 1.5), torch.zeros(2, 1, 8, dtype=torch.long)), (S,)),
    "scatter_add": (
        With(lambda x, i: x.scatter_add(1, i, x[:, :1]), torch.zeros(2, 1, 8, dtype=torch.long)),
        (S,),
    ),
    "select_scatter": (lambda x: torch.select_scatter(x, x[:, 0] * 2, 1, 3), (S,)),
    "slice_scatter": (lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 1, 5, 2), (S,)),
    "one_hot": (lambda x: F.one_hot(x, 5), (INTS,)),
    "creation": (lambda x: x + torch.zeros(8) + torch.ones_like(x) + torch.full((5, 8), 2.0), (S,)),
    "arange": (lambda x: x + torch.arange(8) * 0.5 + torch.linspace(0, 1, 8) + torch.eye(5, 8), (S,)),
    "to": (lambda x: (x > 0).float() + x.to(torch.float64), (S,)),
    "written in place": (lambda x: _written_in_place(x), (S,)),
}

SIMPLE = [
    *("relu", "sigmoid", "tanh", "exp", "neg", "abs", "sin", "cos", "tan", "erf", "ceil", "floor", "round"),
    *("sign", "mish", "hardswish", "hardsigmoid", "selu", "isnan", "isinf", "isfinite", "atan", "sinh"),
    *("cosh", "silu", "relu6", "log_sigmoid", "square", "exp2", "expm1", "erfc", "trunc", "frac"),
    *("hardshrink", "softshrink", "reciprocal", "sgn", "negative", "positive"),
]
POSITIVE = ["log", "sqrt", "rsqrt", "log1p", "log2", "log10"]
BOUNDED = ["asin", "acos"]


def _written_in_place(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 0].fill_(0.5)
    y[:, 1:3].add_(1)
    y[0, :, 2:].relu_()
    return y + 1


def aten(name: str) -> Callable[..., Any]:
    return lambda x: getattr(torch.ops.aten, name)(x)


for _names, _input in ((SIMPLE, S), (POSITIVE, S.abs() + 1), (BOUNDED, S.tanh())):
    CASES.update({name: (aten(name), (_input,)) for name in _names})


def case(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model, inputs = CASES[name]
    module = model if isinstance(model, nn.Module) else Call(model)
    for key, held in module.named_buffers():
        if "running" in key:
            held.uniform_(0.5, 1.5)
    return module.eval(), inputs


@pytest.mark.parametrize("name", CASES)
def test_an_operator_written_as_onnx_computes_what_torch_computes(name: str) -> None:
    model, inputs = case(name)
    assert disagreement(model, inputs) <= 1e-5


def test_every_name_in_the_table_has_a_handler() -> None:
    assert [name for name in TABLE if ops.by_aten(name) is None] == []


def test_most_names_in_the_table_stand_in_some_case() -> None:
    met: set[str] = set()
    for name in CASES:
        model, inputs = case(name)
        specs = lm.capture(model, inputs).specs
        met |= {str(s.attr("op")) if s.kind in ("view", "copy") else s.kind for s in specs}
    assert len(met & TABLE.keys()) >= 150  # the others are spellings that torch.export does not use


@pytest.mark.parametrize("seed", range(20))
def test_sampled_networks_compute_what_their_steps_compute_in_torch(seed: int) -> None:
    steps = sample_network(seed, largest_flops=3e7)
    random = np.random.default_rng(seed)
    held: dict[int, torch.Tensor] = {}

    def parameter(spec: TensorSpec) -> torch.Tensor:
        if id(spec) not in held:
            fan_in = max(1, int(np.prod(spec.shape[1:])))
            drawn = torch.as_tensor(random.standard_normal(spec.shape) / np.sqrt(fan_in))
            if spec.name == "running_var":
                drawn = drawn.abs() + 0.5
            held[id(spec)] = drawn.to(getattr(torch, spec.dtype))
        return held[id(spec)]

    # The specs' own identity says which parameter is meant, so each must be an object of its own.
    steps = tuple(Step(OpSpec.from_json(s.spec.to_json()), s.sources) for s in steps)
    calls = [ops.handler_of(s.spec.kind).build(s.spec, parameter) for s in steps]
    ort = session(to_onnx(steps, lambda spec: parameter(spec).numpy()))
    feeds = {
        v.name: random.random(v.shape).astype(np.float32 if "float" in v.type else np.int64)
        for v in ort.get_inputs()
    }
    values: dict[int, Any] = {
        -1: {int(name.removeprefix("input") or 0): torch.from_numpy(x.copy()) for name, x in feeds.items()}
    }
    with torch.no_grad():
        for i, (call, step) in enumerate(zip(calls, steps, strict=True)):
            made = call(*(values[s][k] for s, k in step.sources))
            values[i] = (made,) if isinstance(made, torch.Tensor) else made
    for output, found in zip(ort.get_outputs(), ort.run(None, feeds), strict=True):
        i, k = (int(n) for n in output.name[1:].split("_"))
        wanted = values[i][k].numpy()
        difference = np.abs(found.astype(float) - wanted.astype(float)).max()  # masks are outputs too
        assert difference <= 1e-4 * max(1.0, float(np.abs(wanted).max()))


KERNEL_CASES = {
    "small": (Small(16), (random(1, 3, 32, 32),)),
    "convnext": (
        nn.Sequential(
            *(nn.Conv2d(3, 16, 4, 4), Call(lambda x: x.permute(0, 2, 3, 1)), nn.LayerNorm(16)),
            *(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), Call(lambda x: x.permute(0, 3, 1, 2))),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
        ),
        (random(1, 3, 32, 32),),
    ),
    "reshapes": (Call(lambda x: x.view(2, 40).view(4, 20).reshape(2, 5, 8) + 1), (S,)),
    "old attention": (
        Call(lambda x: torch.bmm(x.view(4, 5, 8), x.transpose(2, 3).reshape(4, 8, 5)).view(1, 4, 5, 5)),
        (Q,),
    ),
    **{
        name: case(name)
        for name in (
            *("linear", "attention, causal", "attention, grouped", "attention, hidden", "group_norm"),
            *("rms_norm", "silu", "softplus", "glu", "adaptive_avg_pool2d, uneven", "upsample_linear1d"),
            *("roll", "repeat"),
            *("index", "index_put", "lstm", "gru", "im2col", "var_mean", "baddbmm", "lerp", "unbind"),
        )
    },
}


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_the_runtime_makes_the_kernels_that_it_makes_of_the_exporters_file(name: str, tmp_path: Path) -> None:
    model, inputs = KERNEL_CASES[name]
    model.eval()
    assert kernels(written(model, inputs), tmp_path) == kernels(exported(model, inputs), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_well_known_networks_make_the_exporters_kernels(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = networks.NETWORKS[name]().eval()
    size = 299 if "Inception" in name else 224
    inputs = (torch.randn(1, 3, size, size),)
    graph = lm.capture(model, inputs)
    assert kernels(to_onnx(graph.steps_at(graph.widths)), tmp_path) == kernels(
        exported(model, inputs), tmp_path
    )


@pytest.mark.zoo
@pytest.mark.parametrize("name", test_zoo.NETWORKS)
def test_networks_of_the_zoos_make_the_exporters_kernels(name: str, tmp_path: Path) -> None:
    import_torchvision()
    torch.manual_seed(0)
    model = test_zoo.NETWORKS[name]().eval()
    randomise(model, 0)  # the exporter makes one of equal weights
    size = 299 if "inception" in name else 224
    inputs = (torch.randn(1, 3, size, size),)
    graph = lm.capture(model, inputs)
    made = kernels(to_onnx(graph.steps_at(graph.widths)), tmp_path)
    assert made == kernels(exported(model, inputs), tmp_path)


def test_values_and_parameters_have_the_names_that_they_promise() -> None:
    net = NetworkBuilder((1, 3, 8, 8))
    net.activation(net.batch_norm(net.conv(-1, 4, bias=True)), "relu")
    model = to_onnx(net.steps)
    assert [v.name for v in model.graph.input] == ["input"]
    assert [v.name for v in model.graph.output] == ["t2_0"]
    assert [node.output[0] for node in model.graph.node] == ["t0_0", "t1_0", "t2_0"]
    assert {"p0_weight", "p0_bias", "p1_running_var"} <= {t.name for t in model.graph.initializer}


def test_a_network_of_several_inputs_reads_each_under_its_number() -> None:
    model = Call(lambda a, b, c: a + c * 2)
    graph = lm.capture(model, (S, S + 1, S + 2))
    made = to_onnx(graph.steps_at(graph.widths))
    assert [v.name for v in made.graph.input] == ["input", "input2"]


def test_only_what_is_returned_is_written() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.b(x)
            return self.a(x)

    graph = lm.capture(Two(), (S,))
    made = to_onnx(graph.steps_at(graph.widths))
    assert {tuple(t.dims) for t in made.graph.initializer} == {(8, 3), (3,)}


def test_a_value_that_is_read_and_returned_is_an_output() -> None:
    model = Call(lambda x: ((y := x.relu()), y * 2))
    graph = lm.capture(model, (S,))
    made = to_onnx(graph.steps_at(graph.widths))
    assert [v.name for v in made.graph.output] == ["t0_0", "t1_0"]


def test_a_constant_is_written_as_a_parameter() -> None:
    model = Call(lambda x: x + torch.tensor([1.0, 2.0] * 4))
    graph = lm.capture(model, (S,))
    assert len(to_onnx(graph.steps_at(graph.widths)).graph.input) == 1


def test_an_output_that_is_an_input_gets_a_name_of_its_own() -> None:
    step = Step(
        OpSpec("view", (TensorSpec("self", (2, 3)),), (TensorSpec("out", (2, 3)),), (("op", "alias"),)),
        ((-1, 0),),
    )
    ort = session(to_onnx([step]))
    x = np.ones((2, 3), np.float32)
    assert (ort.run(None, {"input": x})[0] == x).all()


def test_default_parameters_average() -> None:
    weight = default_parameter(TensorSpec("weight", (4, 5, 3, 3), parameter=True))
    assert weight.shape == (4, 5, 3, 3)
    assert weight.dtype == np.float32
    assert float(weight[0].sum()) == pytest.approx(1.0)
    assert weight.base is not None  # one number, not its copies
    assert not default_parameter(TensorSpec("bias", (4,), parameter=True)).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_are_written(dtype: str) -> None:
    net = NetworkBuilder((1, 8), dtype)
    net.linear(-1, 4)
    for parameter in (None, ParameterValues()):  # which gives float32 for all of them
        onnx.checker.check_model(to_onnx(net.steps, parameter), full_check=True)


def test_an_operator_that_cannot_be_written_is_named() -> None:
    spec = OpSpec("cumprod", (TensorSpec("self", (3,)),), (TensorSpec("out", (3,)),), (("dim", 0),))
    with pytest.raises(lm.UsageError, match="cumprod"):
        to_onnx([Step(spec, ((-1, 0),))])
    spec = OpSpec("repeat_interleave", (TensorSpec("repeats", (3,)),), (TensorSpec("out", (3,)),))
    with pytest.raises(lm.UsageError, match="repeat_interleave"):
        to_onnx([Step(spec, ((-1, 0),))])


def test_a_network_that_no_file_holds_is_refused_before_any_memory_is_taken() -> None:
    net = NetworkBuilder((1, 2**15))
    net.linear(-1, 2**15)
    with pytest.raises(lm.UsageError, match=r"4\.0 GB"):
        to_onnx(net.steps)


def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    net = NetworkBuilder((1, 8))
    net.linear(-1, 8)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(lm.UsageError, match=r"pip install latmorph\[onnx\]"):
        to_onnx(net.steps)
