"""Every operator that has a handler: captured, built from its OpSpec alone, and run as torch runs it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from modules import Call
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import latmorph as lm
from latmorph import ops
from latmorph.graph.graph import Graph
from latmorph.ops import calls
from latmorph.opspec import OpSpec, TensorSpec

aten = torch.ops.aten


def replay(graph: Graph, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[Any]:
    """The graph's outputs, every operator built from its OpSpec; shapes and dtypes are those of the specs."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values: dict[int, torch.Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        own = [held[graph.tensors[t].parameter or ""] for t in node.inputs if graph.tensors[t].parameter]
        left = iter(own)

        def parameter(spec: TensorSpec, left: Any = left) -> torch.Tensor:
            return torch.zeros(()) if spec.name == "device" else next(left)

        module = ops.handler_of(node.spec.kind).build(node.spec, parameter)
        made = module(*(values[t] for t in node.inputs if graph.tensors[t].parameter is None))
        outputs = [made] if isinstance(made, torch.Tensor) else list(made)
        said = [(s.shape, f"torch.{s.dtype}") for s in node.spec.outputs]
        assert [(tuple(o.shape), str(o.dtype)) for o in outputs] == said, node.spec
        values.update(zip(node.outputs, outputs, strict=True))
    return [values[t] for t in graph.outputs]


torch.manual_seed(0)
X = torch.rand(2, 4, 6) * 0.8 + 0.1  # within the domain of every function
SIGNED = torch.randn(2, 4, 6)
Y = torch.rand(2, 1, 6) + 0.5
IMAGE = torch.randn(2, 4, 6, 8)
VIDEO = torch.randn(1, 4, 4, 6, 6)
WHOLE = torch.arange(24).reshape(2, 3, 4)
TRUE = torch.rand(2, 4, 6) > 0.5


def of(name: str, *more: Any) -> Callable[..., Any]:
    """The operator of a name in aten, with these arguments after the tensors."""
    return lambda *x: getattr(aten, name)(*x, *more)


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "clamp": (0.2, 0.6),
    "clamp_min": (0.4,),
    "clamp_max": (0.4,),
    "threshold": (0.3, 2.0),
    "rrelu": (),
}
UNARY = {
    name: (of(name, *ARGUMENTS.get(name, ())), (X,))
    for name in ops.Elementwise.aten
    if name not in ("bitwise_not",)
}
BINARY = {
    name: (of(name), (X, Y))
    for name in (
        *("add", "sub", "rsub", "mul", "multiply", "div", "divide", "true_divide", "subtract", "pow"),
        *("maximum", "minimum", "fmax", "fmin", "floor_divide", "remainder", "fmod", "atan2", "hypot"),
        *("xlogy", "float_power", "logaddexp", "copysign", "eq", "ne", "lt", "le", "gt", "ge"),
        *("logical_and", "logical_or", "logical_xor", "isin", "max", "min", "isclose"),
    )
}
WHOLE_NUMBERS = {
    name: (of(name), (WHOLE, WHOLE // 2 % 5))
    for name in (
        *("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__"),
        *("bitwise_left_shift", "bitwise_right_shift"),
    )
}
SELECTIONS = {
    "bitwise_not": (torch.bitwise_not, (TRUE,)),
    "where": (torch.where, (TRUE, X, Y)),
    "masked_fill": (lambda x, m: x.masked_fill(m, -1.0), (X, TRUE)),
    "addcmul": (lambda x, a, b: torch.addcmul(x, a, b, value=0.5), (X, Y, X)),
    "addcdiv": (lambda x, a, b: torch.addcdiv(x, a, b, value=0.5), (X, Y, Y)),
    "lerp": (lambda a, b, w: torch.lerp(a, b, w), (X, X + 1, Y)),
    "lerp by a number": (lambda a, b: torch.lerp(a, b, 0.3), (X, X + 1)),
    "div with rounding": (lambda a, b: torch.div(a, b, rounding_mode="floor"), (SIGNED, Y)),
    "clamp by tensors": (lambda x, y: torch.clamp(x, min=y - 0.9), (X, Y)),
    "pow of a number": (lambda x: 2**x, (X,)),
    "where with a number": (lambda x: torch.where(x > 0, x, 0.5), (SIGNED,)),
    "copy_": (lambda x, y: torch.zeros_like(x).copy_(y), (X, Y)),
    "prelu": (nn.PReLU(4), (SIGNED,)),
    "glu": (lambda x: F.glu(x, 1), (X,)),
    "add of a number": (lambda x: x + 2, (X,)),
    "inplace": (lambda x: (x * 2).relu_().add_(1).clamp_(0.1, 2), (SIGNED,)),
}
REDUCTIONS: dict[str, Any] = {
    **{
        name: (of(name, [1, 2], True), (X,))
        for name in ("mean", "sum", "nansum", "amax", "amin", "logsumexp")
    },
    **{name: (of(name, 1), (X,)) for name in ("softmax", "log_softmax")},
    **{name: (of(name, 1, False), (X,)) for name in ("_softmax", "_log_softmax")},
    **{
        name: (of(name, 1), (X,))
        for name in (
            *("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "argmax", "argmin", "prod", "any"),
            *("all", "median", "nanmedian", "mode", "sort", "argsort", "nanmean", "count_nonzero"),
        )
    },
    "max of an axis": (lambda x: x.max(1), (X,)),
    "max of all": (lambda x: x.max() + x.min() + x.sum() + x.mean() + x.prod(), (X,)),
    "aminmax": (lambda x: torch.aminmax(x, dim=1), (X,)),
    "norm": (lambda x: aten.norm(x, 2, [1]), (X,)),
    "linalg_vector_norm": (lambda x: torch.linalg.vector_norm(x, dim=(1, 2)), (X,)),
    **{
        name: (lambda x, n=name: getattr(torch, n)(x, dim=(0, 2), keepdim=True), (X,))
        for name in ("var", "std", "var_mean", "std_mean")
    },
    "topk": (lambda x: x.topk(2, -1), (X,)),
    "kthvalue": (lambda x: x.kthvalue(2, 1), (X,)),
    "cosine_similarity": (F.cosine_similarity, (X, Y)),
    "pairwise_distance": (F.pairwise_distance, (X, Y)),
    "diff": (lambda x: torch.diff(x, dim=1), (X,)),
    "diff with more": (lambda x, y: torch.diff(x, dim=1, prepend=y), (X, Y)),
}
SHAPES = {
    "flatten": (lambda x: x.flatten(1), (X,)),
    "view": (lambda x: x.view(2, 24), (X,)),
    "reshape": (lambda x: x.transpose(0, 1).reshape(4, 12), (X,)),
    "unflatten": (lambda x: x.unflatten(1, (2, 2)), (X,)),
    "unsqueeze": (lambda x: x.unsqueeze(1).squeeze(1), (X,)),
    "view_as": (lambda x, y: x.view_as(y) + x.reshape_as(y), (X, X.reshape(4, 2, 6))),
    "ravel": (lambda x: x.ravel(), (X,)),
    "_unsafe_view": (lambda x: aten._unsafe_view(x, [2, 24]), (X,)),
    "_reshape_alias": (lambda x: aten._reshape_alias(x, [2, 24], [24, 1]), (X,)),
    "atleast": (lambda x: torch.atleast_3d(torch.atleast_2d(torch.atleast_1d(x[0, 0]))), (X,)),
    "permute": (lambda x: x.permute(2, 0, 1), (X,)),
    "transpose": (lambda x: x.transpose(1, 2).swapaxes(0, 1).swapdims(0, 2), (X,)),
    "t": (lambda x: x[0].t(), (X,)),
    "T": (lambda x: x[0].T + x[0].mT + x[0].mH + x[0].H + x[0].adjoint(), (X,)),
    "movedim": (lambda x: x.movedim(0, 2).moveaxis((0, 1), (1, 0)), (X,)),
    "expand": (lambda y: y.expand(2, 4, 6), (Y,)),
    "expand_as": (lambda y, x: y.expand_as(x) + y.broadcast_to(2, 4, 6), (Y, X)),
    "select": (lambda x: x[:, 1] + x[:, -1], (X,)),
    "slice": (lambda x: x[:, 1:3] + x.narrow(1, 0, 2), (X,)),
    "unbind": (lambda x: x.unbind(1)[2], (X,)),
    "split": (lambda x: x.split(2, 1)[1] + x.split([2, 2], 1)[0], (X,)),
    "tensor_split": (lambda x: x.tensor_split(2, 1)[1] + x.tensor_split((1, 3), 1)[1], (X,)),
    "unsafe_split": (lambda x: x.unsafe_split(2, 1)[0] + x.unsafe_split_with_sizes([2, 2], 1)[1], (X,)),
    "hsplit": (
        lambda x: x.hsplit(2)[0] + x.vsplit(2)[0][:, :2] + x.dsplit(2)[0].repeat(1, 1, 2)[:, :2],
        (X,),
    ),
    "chunk": (lambda x: x.chunk(2, 1)[1] + x.unsafe_chunk(2, 1)[0], (X,)),
    "dropout": (
        lambda x: F.alpha_dropout(F.dropout1d(F.dropout(x, 0.5, False), 0.5, False), 0.5, False),
        (X,),
    ),
    "dropout in place": (
        lambda x: F.dropout2d(F.dropout(2 * x, 0.5, False, True), 0.5, False, True),
        (IMAGE,),
    ),
    "feature_alpha_dropout": (lambda x: F.feature_alpha_dropout(x, 0.5, False), (IMAGE,)),
    "clone": (lambda x: x.transpose(1, 2).contiguous().clone().detach(), (X,)),
    "to": (lambda x: x.to(torch.float64).half().float().type_as(x), (X,)),
    "_to_copy": (lambda x: aten._to_copy(x, dtype=torch.float64), (X,)),
    "alias": (lambda x: aten.alias(x) * 1, (X,)),
    "lift_fresh": (lambda x: aten.lift_fresh_copy(x) * 1, (X,)),
    "complex": (
        lambda x: torch.view_as_real(torch.view_as_complex(x).conj().resolve_conj().resolve_neg()),
        (torch.randn(3, 2),),
    ),
    "real": (lambda x: torch.view_as_complex(x).real + torch.view_as_complex(x).imag, (torch.randn(3, 2),)),
    "meshgrid": (lambda a, b: torch.meshgrid(a, b, indexing="ij")[1], (X[0, 0], X[0, :, 0])),
    "broadcast_tensors": (lambda x, y: torch.broadcast_tensors(x, y)[1] * 1, (X, Y)),
    "unfold": (lambda x: x.unfold(1, 2, 1), (X,)),
    "diagonal": (lambda x: x.diagonal(0, 1, 2), (X,)),
    "as_strided": (lambda x: x.as_strided((2, 3), (1, 2)), (X,)),
}
MOVES = {
    "cat": (lambda x, y: torch.cat([x, y, x], 1), (X, Y)),
    "concat": (lambda x, y: aten.concat([x, y], 1) + aten.concatenate([y, x], 1), (X, Y)),
    "stack": (lambda x: torch.stack([x, x], -1), (X,)),
    "hstack": (lambda x: torch.hstack([x, x]), (X,)),
    "vstack": (lambda x: torch.vstack([x, x]), (X,)),
    "dstack": (lambda x: torch.dstack([x, x]), (X,)),
    "column_stack": (lambda x: torch.column_stack([x, x]), (X[0],)),
    "repeat": (lambda x: x.repeat(2, 1, 1, 3), (X,)),
    "tile": (lambda x: x.tile(2, 1), (X,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), (X,)),
    "roll": (lambda x: x.roll((1, -2), (1, 2)), (X,)),
    "flip": (lambda x: x.flip(1).fliplr().flipud(), (X,)),
    "rot90": (lambda x: x.rot90(1, (1, 2)), (X,)),
    "triangles": (lambda x: x.tril() + x.triu(1), (X,)),
    "index": (lambda x, i: x[:, i], (X, torch.tensor([[0, 2], [1, 1]]))),
    "index at two axes": (lambda x, i: x[i, :, i], (X, torch.tensor([0, 1]))),
    "_unsafe_index": (lambda x, i: aten._unsafe_index(x, [None, i]), (X, torch.tensor([0, 2]))),
    "index_select": (lambda x, i: x.index_select(1, i), (X, torch.tensor([0, 2, 2]))),
    "gather": (lambda x, i: x.gather(1, i), (X, torch.zeros(2, 2, 6, dtype=torch.int64))),
    "take": (lambda x, i: torch.take(x, i), (X, torch.tensor([0, 5]))),
    "take_along_dim": (
        lambda x, i: torch.take_along_dim(x, i, 1),
        (X, torch.zeros(2, 1, 6, dtype=torch.int64)),
    ),
    "one_hot": (lambda i: F.one_hot(i, 30), (WHOLE,)),
    "histc": (lambda x: torch.histc(x, 4, 0, 1), (X,)),
    "bucketize": (
        lambda x, b: torch.bucketize(x, b) + torch.searchsorted(b, x),
        (X, torch.tensor([0.2, 0.5])),
    ),
    "index_put": (lambda x, i: x.index_put((i,), x[0]), (X, torch.tensor([1]))),
    "index_put_": (lambda x, i: x.clone().index_put_((i,), x[0]), (X, torch.tensor([1]))),
    "scatter": (lambda x, i: x.scatter(1, i, x) + x.scatter_add(1, i, x), (X, torch.zeros(2, 2, 6).long())),
    "scatter_reduce": (lambda x, i: x.scatter_reduce(1, i, x, "amax"), (X, torch.zeros(2, 2, 6).long())),
    "index_add": (
        lambda x, i: x.index_add(1, i, x[:, :2]) + x.index_copy(1, i, x[:, :2]) + x.index_fill(1, i, 0.5),
        (X, torch.tensor([0, 2])),
    ),
    "index_reduce": (lambda x, i: x.index_reduce(1, i, x[:, :2], "amax"), (X, torch.tensor([0, 2]))),
    "masked_scatter": (lambda x, m: x.masked_scatter(m, x), (X, TRUE)),
    "select_scatter": (lambda x, y: x.select_scatter(y[:, 0], 1, 2), (X, Y)),
    "slice_scatter": (lambda x, y: x.slice_scatter(y, 1, 2, 3), (X, Y)),
    "diagonal_scatter": (lambda x: x.diagonal_scatter(x.diagonal(0, 1, 2), 0, 1, 2), (X,)),
    "embedding": (nn.Embedding(30, 5), (WHOLE,)),
    "embedding_bag": (nn.EmbeddingBag(30, 5), (WHOLE[0],)),
}
CREATIONS: dict[str, Any] = {
    "sizes": (lambda x: torch.zeros(6) + torch.ones(6) + torch.full((6,), 3.0) + x, (X,)),
    "new": (lambda x: x.new_zeros(6) + x.new_ones(6) + x.new_full((6,), 3.0) + x, (X,)),
    "like": (
        lambda x: torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 3.0) + x,
        (X,),
    ),
    "fill": (lambda x: aten.fill(x, 2.0) + aten.zero(x) + torch.zeros_like(x).fill_(1.0).zero_(), (X,)),
    "ranges": (lambda x: torch.arange(6) + torch.linspace(0, 1, 6) + torch.eye(6)[0] + x, (X,)),
    "arange from": (lambda x: torch.arange(2, 14, 2, dtype=torch.float32) + x, (X,)),
    "scalar_tensor": (lambda x: aten.scalar_tensor(2.0) + x, (X,)),
    "indices": (lambda x: (aten.tril_indices(3, 3) + aten.triu_indices(3, 3)) + 0, (X,)),
    "window": (lambda x: torch.hann_window(6) + x, (X,)),
}
RANDOM: dict[str, Any] = {
    "empty": (lambda x: torch.empty(6) + x.new_empty(6) + torch.empty_like(x), (X,)),
    "empty_strided": (lambda x: aten.empty_strided([6], [1]) + aten.empty_permuted([6], [0]) + x, (X,)),
    "rand": (lambda x: torch.rand(6) + torch.randn(6) + torch.rand_like(x) + torch.randn_like(x), (X,)),
    "randint": (lambda x: torch.randint(0, 4, (6,)) + torch.randperm(6), (X,)),
    "bernoulli": (lambda x: torch.bernoulli(x) + torch.zeros_like(x).normal_() + x.clone().uniform_(), (X,)),
}
POOLS = {
    **{
        f"pool{rank}d": (
            lambda x, r=rank: (
                getattr(F, f"max_pool{r}d")(x, 2, 1) + getattr(F, f"avg_pool{r}d")(x, 2, 1),
                getattr(F, f"adaptive_avg_pool{r}d")(x, 2) + getattr(F, f"adaptive_max_pool{r}d")(x, 2),
            ),
            (image,),
        )
        for rank, image in ((1, X), (2, IMAGE), (3, VIDEO))
    },
    **{
        f"pool{rank}d with indices": (
            lambda x, r=rank: getattr(aten, f"max_pool{r}d_with_indices")(x, [2] * r)[0],
            (image,),
        )
        for rank, image in ((1, X), (2, IMAGE), (3, VIDEO))
    },
    "unbatched": (lambda x: F.max_pool2d(x[0], 2), (IMAGE,)),
    "lp_pool": (lambda x: F.lp_pool2d(x, 2, 2), (IMAGE,)),
    **{
        f"nearest{rank}d": (
            lambda x: (
                F.interpolate(x, scale_factor=2) + F.interpolate(x, scale_factor=2, mode="nearest-exact")
            ),
            (image,),
        )
        for rank, image in ((1, X), (2, IMAGE), (3, VIDEO))
    },
    **{
        mode: (lambda x, m=mode: F.interpolate(x, scale_factor=2, mode=m, align_corners=False), (image,))
        for mode, image in (("linear", X), ("bilinear", IMAGE), ("bicubic", IMAGE), ("trilinear", VIDEO))
    },
    **{
        f"{mode} smoothed": (lambda x, m=mode: F.interpolate(x, (3, 4), mode=m, antialias=True), (IMAGE,))
        for mode in ("bilinear", "bicubic")
    },
    "grid_sampler": (lambda x, g: F.grid_sample(x, g, align_corners=False), (IMAGE, torch.rand(2, 3, 3, 2))),
    "pad": (lambda x: F.pad(x, (1, 2), value=1.0) + F.pad(x, (1, 2), mode="reflect"), (X,)),
    "constant_pad_nd": (lambda x: aten.constant_pad_nd(x, [1, 1], 2.0), (X,)),
    **{
        f"{how}_pad{rank}d": (
            lambda x, r=rank, f=how: getattr(aten, f"{f}_pad{r}d")(x, [1] * (2 * r)),
            (image,),
        )
        for how in ("reflection", "replication")
        for rank, image in ((1, X), (2, IMAGE), (3, VIDEO))
    },
    "im2col": (lambda x: F.fold(F.unfold(x, 2, stride=2), (6, 8), 2, stride=2), (IMAGE,)),
    "pixel_shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), (IMAGE,)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2) + aten.native_channel_shuffle(x, 2), (IMAGE,)),
}
NORMS = {
    "batch_norm": (nn.BatchNorm2d(4), (IMAGE,)),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), (IMAGE,)),
    "instance_norm bare": (nn.InstanceNorm2d(4), (IMAGE,)),
    "group_norm": (nn.GroupNorm(2, 4), (IMAGE,)),
    "layer_norm": (nn.LayerNorm(6), (X,)),
    "layer_norm bare": (nn.LayerNorm(6, elementwise_affine=False), (X,)),
    "rms_norm": (nn.RMSNorm(6), (X,)),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 5, 3)), (X,)),
    "weight norm's own": (
        Call(lambda x, v, g: aten._weight_norm(v, g) @ x, v=torch.randn(3, 4), g=torch.rand(3, 1)),
        (X,),
    ),
    "local response": (lambda x: F.local_response_norm(x, 3), (IMAGE,)),
}
PRODUCTS: dict[str, Any] = {
    **{
        f"conv{rank}d": (make(4, 6, 3, stride=2, padding=1, dilation=1, groups=2), (image,))
        for rank, make, image in ((1, nn.Conv1d, X), (2, nn.Conv2d, IMAGE), (3, nn.Conv3d, VIDEO))
    },
    "conv2d of a size": (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (IMAGE,)),
    "conv2d unbatched": (nn.Conv2d(4, 6, 3), (IMAGE[0],)),
    **{
        f"conv_transpose{rank}d": (make(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (image,))
        for rank, make, image in (
            (1, nn.ConvTranspose1d, X),
            (2, nn.ConvTranspose2d, IMAGE),
            (3, nn.ConvTranspose3d, VIDEO),
        )
    },
    "linear": (nn.Linear(6, 5), (X,)),
    "addmm": (Call(lambda x, b, w: torch.addmm(b, x[0], w), b=torch.randn(3), w=torch.randn(6, 3)), (X,)),
    "matmul": (lambda x: x @ x.transpose(1, 2), (X,)),
    "mm": (lambda x: x[0].mm(x[1].t()) + torch.bmm(x, x.transpose(1, 2))[0], (X,)),
    "mv": (lambda x: x[0].mv(x[0, 0]).dot(x[0].mv(x[0, 1])), (X,)),
    "baddbmm": (lambda x: torch.baddbmm(x @ x.mT, x, x.mT, beta=0.5, alpha=2), (X,)),
    "einsum": (lambda x, y: torch.einsum("bnc,bmc->bnm", x, y), (X, Y)),
    "attention": (F.scaled_dot_product_attention, (IMAGE, IMAGE, IMAGE)),
    "attention causal": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.2),
        (IMAGE,),
    ),
    "attention masked": (
        lambda x, m: F.scaled_dot_product_attention(x, x, x, m),
        (IMAGE, torch.ones(6, 6) > 0),
    ),
    "attention shared": (
        lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True),
        (IMAGE,),
    ),
    "lstm": (nn.LSTM(6, 3, 2, bidirectional=True, batch_first=True), (X,)),
    "gru": (nn.GRU(6, 3), (X,)),
    "rnn": (nn.RNN(6, 3), (X,)),
    **{name: (getattr(nn, name)(6, 5), (X[0],)) for name in ("LSTMCell", "GRUCell", "RNNCell")},
    "rnn_relu_cell": (nn.RNNCell(6, 5, nonlinearity="relu"), (X[0],)),
    "bilinear": (nn.Bilinear(6, 6, 3), (X, X)),
    "rnn_relu": (nn.RNN(6, 3, nonlinearity="relu", bias=False), (X,)),
}
CASES: dict[str, tuple[Any, tuple[torch.Tensor, ...]]] = {
    **{f"of one: {k}": v for k, v in UNARY.items()},
    **{f"of two: {k}": v for k, v in (BINARY | WHOLE_NUMBERS).items()},
    **{f"chosen: {k}": v for k, v in SELECTIONS.items()},
    **{f"over axes: {k}": v for k, v in REDUCTIONS.items()},
    **{f"shape: {k}": v for k, v in SHAPES.items()},
    **{f"moved: {k}": v for k, v in MOVES.items()},
    **{f"made: {k}": v for k, v in CREATIONS.items()},
    **{f"by chance: {k}": v for k, v in RANDOM.items()},
    **{f"in space: {k}": v for k, v in POOLS.items()},
    **{f"norm: {k}": v for k, v in NORMS.items()},
    **{f"product: {k}": v for k, v in PRODUCTS.items()},
}
NOT_RUN_HERE = {
    "_grouped_mm",  # of bfloat16 alone on a CPU
    "_weight_norm_interface",  # what a GPU runs for _weight_norm
    "nonzero",  # of constants alone has it a size that is known
    "transformers.grouped_mm_fallback",  # of another package; below
}


@functools.cache
def captured(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], Graph]:
    function, inputs = CASES[name]
    model = (function if isinstance(function, nn.Module) else Call(function)).eval()
    return model, inputs, lm.capture(model, inputs)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_built_from_its_spec_is_torch_s(name: str) -> None:
    model, inputs, graph = captured(name)
    with torch.no_grad():
        found = replay(graph, model, tuple(x.clone() for x in inputs))
        expected = tree_leaves(model(*(x.clone() for x in inputs)))
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert name.startswith("by chance") or torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_every_operator_that_has_a_handler_is_among_the_cases() -> None:
    graphs = [captured(name)[2] for name in CASES]
    met = {str(s.attr("op") or s.kind) for graph in graphs for s in graph.specs}
    assert set(ops._BY_ATEN) - met == NOT_RUN_HERE


def test_experts_are_priced_by_the_rows_that_they_get_between_them() -> None:
    spec = OpSpec(
        "transformers.grouped_mm_fallback",
        (TensorSpec("input", (6, 5)), TensorSpec("weight", (3, 5, 4), parameter=True)),
        (TensorSpec("out", (6, 4)),),
    )
    assert ops.flops(spec) == 2 * 6 * 5 * 4
    weight, x = torch.randn(3, 5, 4), torch.randn(6, 5)
    made = ops.handler_of(spec.kind).build(spec, lambda _: weight)(x)
    assert torch.allclose(made, torch.cat([x[2 * k : 2 * k + 2] @ weight[k] for k in range(3)]))


WITHOUT_BINDING = {
    *("_reshape_alias", "_to_copy", "_unsafe_index", "_unsafe_view", "alias", "contiguous", "index", "slice"),
    *("lift_fresh_copy", "linalg_vector_norm", "mH", "mT", "matrix_H", "numpy_T", "randint", "randperm"),
    *("tril_indices", "triu_indices", "zero"),
}
"""What Python reaches by indexing, as a property, or with arguments in an order of its own."""


def test_operators_are_called_as_a_network_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: set[str] = set()
    filled = calls._Arguments.filled

    def spied(self: Any, function: Any, held: Any) -> Any:
        if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            slow.add(str(function).split(".")[1])
        return filled(self, function, held)

    monkeypatch.setattr(calls._Arguments, "filled", spied)
    for name in CASES:
        model, inputs, graph = captured(name)
        replay(graph, model, tuple(x.clone() for x in inputs))
    assert slow == WITHOUT_BINDING


def test_a_batch_norm_is_the_module_that_a_network_has() -> None:
    model, _, graph = captured("norm: batch_norm")
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    (spec,) = (s for s in graph.specs if s.kind == "batch_norm")
    built = ops.handler_of(spec.kind).build(spec, lambda t: held[t.name])
    assert isinstance(built, nn.BatchNorm2d)
    assert not built.training
    assert all(p.device.type == "cpu" for p in built.parameters())
