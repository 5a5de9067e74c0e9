"""The kernels of a network, read from the graph that ONNX Runtime has optimised.

Which operators are fused, reordered or folded is the runtime's to say: it is asked to write down what it
would run. Shapes are in what it writes, but for values that only its own layout has; those follow from
the others by ONNX's rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latmorph import kernels, ops
from latmorph.opspec import OpSpec, TensorSpec

if TYPE_CHECKING:
    import onnx

NCHWC = "com.microsoft.nchwc"
"""The domain of the kernels that run on channels in blocks."""

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    14: "complex64",
    16: "bfloat16",
}
"""Names of ONNX's element types."""

NUMBERS = {name: number for number, name in DTYPES.items()}

IGNORED = frozenset(
    {
        *("auto_pad", "storage_order", "ceil_mode", "stash_type", "epsilon", "momentum", "training_mode"),
        *("allowzero", "alpha", "beta", "noop_with_empty_axes", "activation_params", "count_include_pad"),
        *("channels", "keepdims"),
    }
)
"""Attributes that say nothing about time."""

AXES = {"Slice": 3}
"""Where operators take their axes as an operand, if not as the second."""


@dataclass(frozen=True)
class Kernel:
    """One kernel: what it is, what the runtime calls it, and the step that it came from, -1 if none is known.

    ``network`` tells apart the networks of a model that holds several: it is the number of the model's
    input that the kernel's values come from. ``depth`` is the number of kernels on the longest way there.
    """

    spec: OpSpec
    name: str
    step: int = -1
    network: int = 0
    depth: int = 0


def read_kernels(
    model: onnx.ModelProto, block: int, values: Iterable[onnx.ValueInfoProto]
) -> tuple[Kernel, ...]:
    """The kernels of an optimised model, in the order in which they run.

    ``block`` is the number of channels in a block of the layout ``nchwc``; ``values`` are types of values
    that are known from elsewhere. A kernel without a handler, or whose shapes depend on the data, is of
    unknown kind.
    """
    return _Reader(model, block, values).kernels()


def order_of_steps(kernels: Sequence[Kernel]) -> list[int]:
    """The kernels' positions, sorted by the steps that they came from, and each after those that it reads.

    The runtime runs branches now in one order, now in another, even of one model loaded twice.
    """

    def key(position: int) -> tuple[int, int, str]:
        kernel = kernels[position]
        return kernel.step, kernel.depth, kernel.spec.to_json()

    return sorted(range(len(kernels)), key=key)


class _Reader:
    def __init__(self, model: onnx.ModelProto, block: int, values: Iterable[onnx.ValueInfoProto]) -> None:
        graph = model.graph
        self.graph = graph
        self.block = block
        self.opset = {o.domain: o.version for o in model.opset_import}
        self.constants = {t.name: t for t in graph.initializer}
        self.types: dict[str, Any] = {
            v.name: v.type for v in (*values, *graph.value_info, *graph.output, *graph.input)
        }
        self.blocked: set[str] = set()
        self.depth: dict[str, int] = {}
        self.network = {v.name: k for k, v in enumerate(graph.input) if v.name not in self.constants}

    def kernels(self) -> tuple[Kernel, ...]:
        import onnx

        for name, tensor in self.constants.items():
            self.types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        return tuple(self._kernel(node) for node in self.graph.node)

    def _kernel(self, node: onnx.NodeProto) -> Kernel:
        import onnx

        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.g.node}
        if any(name and name not in self.types for name in node.output):
            self._infer(node, attributes)
        self._mark_blocked(node)
        network = next((self.network[x] for x in node.input if x in self.network), 0)
        self.network.update(dict.fromkeys(node.output, network))
        kind = kernels.kind_of(node.domain, node.op_type)
        names = kernels.operand_names(kind, len(node.input))
        read = [k for k, name in enumerate(node.input) if name and not self._is_setting(node, k)]
        inputs = [self._tensor(names[k], node.input[k]) for k in read]
        outputs = [self._tensor("out", name) for name in node.output if name]
        at = AXES.get(node.op_type, 1)
        if self._is_setting(node, at) and node.op_type.startswith(
            ("Reduce", "Slice", "Squeeze", "Unsqueeze", "CumSum")
        ):
            attributes["axes"] = self._values(node.input[at])
        if node.domain == NCHWC and node.op_type == "Conv" and node.input[0] not in self.blocked:
            attributes["plain_input"] = 1
        known = [t for t in (*inputs, *outputs) if t is not None]
        whole = len(known) == len(inputs) + len(outputs) and inputs and outputs
        if not whole and not kind.startswith(ops.UNKNOWN):
            kind = ops.UNKNOWN + kind
        spec = OpSpec(
            kind,
            tuple(t for t in inputs if t is not None),
            tuple(t for t in outputs if t is not None),
            tuple(sorted((k, v) for k, v in _plain(attributes) if k not in IGNORED)),
        )
        depth = max((self.depth.get(x, 0) for x in node.input), default=0)
        self.depth.update(dict.fromkeys(node.output, depth + 1))
        return Kernel(spec, node.name, self._step(node), network, depth)

    def _is_setting(self, node: onnx.NodeProto, k: int) -> bool:
        """Whether an operand is a few constant integers: sizes, axes, starts, but no indices to gather."""
        tensor = self.constants.get(node.input[k]) if 0 < k < len(node.input) else None
        if tensor is None or node.op_type.startswith(("Gather", "Scatter")):
            return False
        return DTYPES.get(tensor.data_type) in ("int32", "int64") and math.prod(tensor.dims) <= 16

    def _tensor(self, operand: str, value: str) -> TensorSpec | None:
        shape = self._shape(value)
        if shape is None:
            return None
        dtype = DTYPES.get(self.types[value].tensor_type.elem_type, "float32")
        return TensorSpec(operand, shape, dtype, value in self.constants)

    def _shape(self, value: str) -> tuple[int, ...] | None:
        kind = self.types.get(value)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        dims = kind.tensor_type.shape.dim
        return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None

    def _values(self, name: str) -> tuple[int, ...]:
        from onnx import numpy_helper

        return tuple(int(v) for v in numpy_helper.to_array(self.constants[name]).ravel())

    def _mark_blocked(self, node: onnx.NodeProto) -> None:
        if node.op_type == "ReorderOutput":
            return
        if node.domain == NCHWC or any(x in self.blocked for x in node.input):
            self.blocked.update(node.output)

    def _infer(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
        """Types of outputs that the model does not tell; those that no rule gives stay unknown."""
        import onnx

        shapes = [self._shape(x) for x in node.input if x]
        if not shapes or any(s is None for s in shapes):
            return
        made = _own_rule(node, attributes, shapes, self.block)
        if made is None and kernels.is_elementwise(kernels.kind_of(node.domain, node.op_type)):
            made = _broadcast(shapes)
        if made is not None:
            element = self.types[node.input[0]].tensor_type.elem_type
            self.types[node.output[0]] = onnx.helper.make_tensor_type_proto(element, made)
        elif node.domain in ("", NCHWC) or node.op_type in ("FusedConv", "FusedGemm"):
            # Kernels of the runtime's own have the shapes of the operators that they stand for.
            self._infer_by_schema(node, node.op_type.removeprefix("Fused"))

    def _infer_by_schema(self, node: onnx.NodeProto, operator: str) -> None:
        import onnx

        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.domain, twin.op_type = "", operator
        if operator in ("Conv", "Gemm"):
            kept = [a for a in twin.attribute if not a.name.startswith("activation")]
            del twin.attribute[:], twin.input[3:]
            twin.attribute.extend(kept)
        given = {x: self.types[x] for x in node.input if x}
        data = {x: t for x in node.input if (t := self.constants.get(x)) is not None and not t.external_data}
        try:
            schema = onnx.defs.get_schema(operator, self.opset[""], "")
            found = onnx.shape_inference.infer_node_outputs(schema, twin, given, data)
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, ValueError, RuntimeError):
            return
        self.types.update({name: kind for name, kind in found.items() if name not in self.types})

    def _step(self, node: onnx.NodeProto) -> int:
        """The step whose value the kernel writes, or else reads, by the names that ``to_onnx`` gives."""
        for name in (node.name, *node.output, *node.input):
            match = _OF_STEP.match(name)
            if match:
                return int(match[1])
        return -1


_OF_STEP = re.compile(r"t(\d+)[._]")


def _own_rule(
    node: onnx.NodeProto, attributes: Mapping[str, Any], shapes: Sequence[Any], block: int
) -> tuple[int, ...] | None:
    """Shape of what a kernel writes whose operator is no one's but the runtime's; None for others."""
    first = shapes[0]
    if node.domain == NCHWC and node.op_type == "ReorderInput":
        channels, size = (
            (first[-1], first[1:-1]) if attributes.get("channels_last") else (first[1], first[2:])
        )
        return (first[0], math.ceil(channels / block) * block, *size)
    if node.domain == NCHWC and node.op_type == "ReorderOutput":
        channels, size = (attributes["channels"],), first[2:]
        return (first[0], *((*size, *channels) if attributes.get("channels_last") else (*channels, *size)))
    if node.domain == NCHWC and node.op_type == "Upsample":
        return tuple(int(size * scale) for size, scale in zip(first, attributes["scales"], strict=True))
    if node.op_type == "FusedMatMul" and min(map(len, shapes)) > 1:
        a, b = (_turned(shapes[k], attributes, letter) for k, letter in enumerate("AB"))
        return (*_broadcast([a[:-2], b[:-2]]), a[-2], b[-1])
    if node.op_type.startswith("Skip") and node.op_type.endswith("LayerNormalization"):
        return tuple(first)
    return None


def _turned(shape: Sequence[int], attributes: Mapping[str, Any], operand: str) -> tuple[int, ...]:
    """The shape of a fused product's operand as it is multiplied, ``(*batch, rows, columns)``."""
    if attributes.get(f"transBatch{operand}"):  # rows lie before the batch
        shape = (*shape[1:-1], shape[0], shape[-1])
    if attributes.get(f"trans{operand}"):
        shape = (*shape[:-2], shape[-1], shape[-2])
    return tuple(shape)


def _broadcast(shapes: Sequence[Any]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def _plain(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Attributes as JSON can hold them; tensors and lists of many are left out."""
    for name, value in attributes.items():
        if isinstance(value, bytes):
            yield name, value.decode(errors="replace")
        elif isinstance(value, int | float):
            yield name, value
        elif (
            isinstance(value, list | tuple)
            and len(value) <= 16
            and all(isinstance(v, int | float) for v in value)
        ):
            yield name, tuple(value)
