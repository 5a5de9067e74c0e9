"""Reading an .onnx file: its nodes become the operators that torch would call for the same arithmetic.

Only shapes are read: weights in other files are never opened. What merely computes shapes is computed
here and leaves nothing behind. A node that no operator of torch's stands for keeps its own name, as an
unknown operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latmorph.errors import CaptureError, UnknownOperatorError
from latmorph.graph.channels import find_channels
from latmorph.graph.graph import Graph
from latmorph.graph.onnx_nodes import TABLE, Call, Shape, Values
from latmorph.onnx_ops import import_onnx

if TYPE_CHECKING:
    import onnx

FOLDED = 2**16
"""Elements up to which a constant is worth computing: what describes shapes is far smaller."""

LARGEST_AXIS = 2**26
"""Length of an axis, and of all axes of parameters together, beyond which no network is believed."""


def read_onnx(path: Path, inputs: Sequence[Any] = (), *, allow_unknown: bool = False) -> Graph:
    """The operators of a model in a file, and its channel groups.

    ``inputs`` are needed where the file leaves sizes open: tensors, or shapes, one for each of the
    model's inputs, in order.

    Raises CaptureError for a file that is no sound model, and where sizes are open and not given;
    UnknownOperatorError when an operator has no handler, unless ``allow_unknown``; UsageError where the
    onnx package is missing.
    """
    reader = _Reader(path, _load(path), inputs)
    try:
        reader.read()
        graph = reader.graph()
    except CaptureError:
        raise
    except (Exception, MemoryError) as error:  # a file can be wrong in more ways than can be named
        raise CaptureError(
            f"{path}: {reader.where}: {_first(error)}; the file is damaged, or an unusual one"
        ) from None
    if reader.unknown and not allow_unknown:
        raise UnknownOperatorError(reader.unknown)
    return graph


def _load(path: Path) -> onnx.ModelProto:
    package = import_onnx()
    try:
        model: onnx.ModelProto = package.load(str(path), load_external_data=False)
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise CaptureError(f"{path}: not an ONNX model ({_first(error)})") from None
    if not model.graph.node:
        raise CaptureError(f"{path}: not an ONNX model, or one without operators")
    return model


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class _Reader(Values):
    """The tensors and nodes read so far, and the constants among them."""

    def __init__(self, path: Path, model: onnx.ModelProto, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.path = path
        self.model = model
        self.given = inputs
        self.opsets = {o.domain: o.version for o in model.opset_import}
        self.opset = self.opsets.get("", self.opsets.get("ai.onnx", 1))
        self.inputs: list[int] = []
        self.where = "the model"
        self.axes_length = 0
        self.said = {v.name: v.type for v in (*model.graph.value_info, *model.graph.output)}

    def graph(self) -> Graph:
        outputs = [self.tensor(v.name) for v in self.model.graph.output if v.name in self.types]
        read = tuple(self.nodes), tuple(self.tensors), tuple(self.inputs), tuple(outputs)
        return Graph(*read, find_channels(*read), onnx=self.path)

    def read(self) -> None:
        graph = self.model.graph
        for tensor in graph.initializer:
            self._initializer(tensor)
        self._inputs([v for v in graph.input if v.name not in self.weights])
        for proto in graph.node:
            for name in proto.input:
                self.readers.setdefault(name, []).append(proto)
        for number, proto in enumerate(graph.node):
            self.where = f"node {proto.name or number} ({proto.op_type})"
            self._node(proto, number)

    def _initializer(self, tensor: onnx.TensorProto) -> None:
        shape = tuple(tensor.dims)
        self._check(tensor.name, shape)
        self.axes_length += sum(shape)
        if self.axes_length > LARGEST_AXIS:
            raise CaptureError(f"{self.path}: its initializers are larger than any network's")
        self.weights[tensor.name] = tensor
        self.types[tensor.name] = self.onnx.helper.make_tensor_type_proto(tensor.data_type, shape)
        inside = tensor.data_location != self.onnx.TensorProto.EXTERNAL
        if inside and int(np.prod(shape, dtype=np.float64)) <= FOLDED:
            self.constants[tensor.name] = self.onnx.numpy_helper.to_array(tensor)

    def _check(self, name: str, shape: Shape) -> None:
        if any(not 0 <= size <= LARGEST_AXIS for size in shape):
            raise CaptureError(f"{self.path}: {name!r} has a shape that no network has, {shape}")

    def _inputs(self, values: Sequence[onnx.ValueInfoProto]) -> None:
        shapes = [tuple(int(s) for s in getattr(x, "shape", x)) for x in self.given]
        if shapes and len(shapes) != len(values):
            wanted = ", ".join(v.name for v in values)
            raise CaptureError(f"{self.path}: {len(shapes)} inputs given, but the model reads {wanted}")
        for i, value in enumerate(values):
            held = value.type.tensor_type
            fixed = [d.dim_value if d.HasField("dim_value") else None for d in held.shape.dim]
            if not value.type.HasField("tensor_type") or not held.HasField("shape"):
                raise CaptureError(f"{self.path}: input {value.name!r} is no tensor of a known rank")
            shape = shapes[i] if shapes else tuple(-1 if s is None else s for s in fixed)
            if -1 in shape:
                sizes = "x".join("?" if s is None else str(s) for s in fixed)
                raise CaptureError(
                    f"{self.path}: input {value.name!r} has open sizes, {sizes}: give an example or a shape "
                    "of every input"
                )
            if len(shape) != len(fixed):
                raise CaptureError(
                    f"{self.path}: input {value.name!r} has {len(fixed)} axes, and {shape} was given"
                )
            self._check(value.name, shape)
            self.types[value.name] = self.onnx.helper.make_tensor_type_proto(held.elem_type, shape)
            self.inputs.append(self.tensor(value.name))

    # Types and constants.

    def _infer(self, proto: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        """Types of a node's outputs, as far as the node's schema, or else the file, gives them."""
        known = {name: self.types[name] for name in proto.input if name in self.types}
        data = {
            name: self.onnx.numpy_helper.from_array(np.asarray(self.constants[name]), name)
            for name in proto.input
            if name in self.constants
        }
        found: dict[str, onnx.TypeProto] = {}
        try:
            domain = proto.domain if proto.domain != "ai.onnx" else ""
            schema = self.onnx.defs.get_schema(proto.op_type, self.opsets.get(domain, 1), domain)
            found = self.onnx.shape_inference.infer_node_outputs(
                schema, proto, known, data, opset_imports=list(self.model.opset_import)
            )
        except Exception:  # no schema, or one whose rules do not fit: the file may say it itself
            found = {}
        types = {}
        for name in proto.output:
            # What the file says holds for the sizes that it was written for.
            for kind in (found.get(name), None if self.given else self.said.get(name)):
                if kind is not None and _is_fixed(kind) and name not in types:
                    self._check(name, _shape(kind))
                    types[name] = kind
        return types

    def _fold(self, proto: onnx.NodeProto) -> bool:
        """Whether the node only computes shapes, so that its outputs are constants from now on."""
        if proto.op_type == "Constant":
            value = self.onnx.helper.get_attribute_value(proto.attribute[0])
            if isinstance(value, self.onnx.TensorProto) and int(np.prod(value.dims)) > 1:
                value.name = proto.output[0]  # what an exporter writes here instead of among the weights
                self._initializer(value)
                return True
            if isinstance(value, self.onnx.TensorProto):
                value = self.onnx.numpy_helper.to_array(value)
            arrays = [np.asarray(value, np.float32 if "float" in proto.attribute[0].name else None)]
        elif proto.op_type in ("Shape", "Size") and proto.input[0] in self.types:
            shape = self.shape(proto.input[0])
            start, end = (next((a.i for a in proto.attribute if a.name == n), None) for n in ("start", "end"))
            sized = np.array(np.prod(shape)) if proto.op_type == "Size" else np.array(shape[start:end])
            arrays = [sized.astype(np.int64)]
        elif proto.op_type == "CastLike" and self._small(proto.input[0]) and proto.input[1] in self.types:
            like = self.types[proto.input[1]].tensor_type.elem_type
            dtype = self.onnx.helper.tensor_dtype_to_np_dtype(like)
            arrays = [np.asarray(self.constants[proto.input[0]]).astype(dtype)]
        elif proto.op_type in _FOLDABLE and all(not n or self._small(n) for n in proto.input):
            types = self._infer(proto)
            sizes = [np.prod(_shape(t), dtype=np.float64) for t in types.values()]
            if len(types) != len(proto.output) or max(sizes) > FOLDED:
                return False
            arrays = self._evaluate(proto)
        else:
            return False
        for name, array in zip(proto.output, arrays, strict=True):
            self.constants[name] = np.asarray(array)
            element = self.onnx.helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
            self.types[name] = self.onnx.helper.make_tensor_type_proto(element, np.shape(array))
        return True

    def _small(self, name: str) -> bool:
        """Whether a constant describes shapes or is a number, rather than holds what was learned."""
        if name not in self.constants:
            return False
        whole = self.types[name].tensor_type.elem_type in _WHOLE
        return name not in self.weights or whole or self.constants[name].size == 1

    def _evaluate(self, proto: onnx.NodeProto) -> list[np.ndarray]:
        from onnx.reference import ReferenceEvaluator

        helper = self.onnx.helper
        read = [name for name in dict.fromkeys(proto.input) if name]
        graph = helper.make_graph(
            [proto],
            "constant",
            [helper.make_value_info(name, self.types[name]) for name in read],
            [helper.make_empty_tensor_value_info(name) for name in proto.output],
        )
        model = helper.make_model(graph, opset_imports=list(self.model.opset_import))
        made = ReferenceEvaluator(model).run(None, {name: self.constants[name] for name in read})
        return [np.asarray(array) for array in made]

    # Nodes.

    def _node(self, proto: onnx.NodeProto, number: int) -> None:
        if self._fold(proto):
            return
        self.types.update(self._infer(proto))
        call = Call(self, proto, proto.name or f"{proto.op_type}_{number}")
        write = TABLE.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
        # Some operators have outputs that nobody reads and no rule describes.
        wanted = [n for n in proto.output if n in self.readers or n in self.said]
        ready = all(not n or n in self.types for n in (*proto.input, *proto.output[:1], *wanted))
        if write is None or not ready or not write(call):
            call.unknown()


_FOLDABLE = frozenset(
    {
        *("Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Add", "Sub", "Mul", "Div", "Cast"),
        *(
            "Range",
            "ConstantOfShape",
            "Equal",
            "Where",
            "Min",
            "Max",
            "Floor",
            "Ceil",
            "ReduceProd",
            "Expand",
        ),
        *(
            "Mod",
            "Transpose",
            "Neg",
            "Sqrt",
            "Not",
            "And",
            "Or",
            "Less",
            "Greater",
            "Identity",
            "Split",
            "Abs",
        ),
        *("Pow", "Reciprocal", "CastLike", "LessOrEqual", "GreaterOrEqual", "ReduceSum", "Tile", "CumSum"),
        *("ReduceMax", "ReduceMin", "Trilu", "ScatterND", "Pad"),
    }
)
_WHOLE = frozenset({2, 3, 5, 6, 7, 9, 12, 13})
"""Element types of integers and truth values."""


def _shape(kind: onnx.TypeProto) -> Shape:
    return tuple(d.dim_value for d in kind.tensor_type.shape.dim)


def _is_fixed(kind: onnx.TypeProto) -> bool:
    held = kind.tensor_type
    fixed = all(d.HasField("dim_value") and d.dim_value >= 0 for d in held.shape.dim)
    return bool(kind.HasField("tensor_type") and held.elem_type and held.HasField("shape") and fixed)
