"""Steps as an ONNX model: the one that torch's own exporter would write for the same network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from latmorph import ops
from latmorph.errors import UsageError
from latmorph.onnx_ops import TABLE, Parameters, Site, Writer, import_onnx, name_of, numpy_dtype
from latmorph.opspec import OpSpec, Step, TensorSpec, network_inputs, network_outputs

if TYPE_CHECKING:
    import onnx

__all__ = ["LARGEST_BYTES", "OPSET", "default_parameter", "import_onnx", "to_onnx"]

OPSET = 20
"""The version of ONNX's operators, the one that torch's exporter writes by default."""

LARGEST_BYTES = 2**31 - 2**20
"""What one file can hold: protobuf's limit, less some room for the nodes."""

APART_BYTES = 1024
"""Smaller weights stay in a model, where a runtime's optimiser may look for a constant."""

Typed = tuple[str, TensorSpec]


def to_onnx(
    steps: Sequence[Step],
    parameter: Parameters | None = None,
    apart: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """The network as an ONNX model; the value of step ``i``'s output ``k`` is called ``t{i}_{k}``.

    Inputs are called ``input``, ``input1``, ``input2``, ... and parameters ``p{i}_{name}``. Outputs are
    what the steps return or, where no step says so, the values of the steps of which nothing is read.
    ``parameter`` gives the values of parameters; by default they are those of :func:`default_parameter`.
    Where ``apart`` is given, large ones go into it, by name, and the model only refers to them.

    Raises UsageError for operators that have no form here, for a network of over 2 GB, and where the
    onnx package is missing.
    """
    _check(steps)
    writer = Writer(parameter or default_parameter)
    inputs = {k: (f"input{k or ''}", t) for k, t in sorted(network_inputs(steps).items())}
    values = {(-1, k): name for k, (name, _) in inputs.items()}
    views = {(i, 0): step for i, step in enumerate(steps) if name_of(step.spec) in _WRITES_BACK}
    for i, step in enumerate(steps):
        sources = iter(step.sources)
        read = [None if t.parameter else values[next(sources)] for t in step.spec.inputs]
        values.update({(i, k): name for k, name in enumerate(Site(writer, i, step.spec, read).write())})
        if step.sources and (step.spec.attr("inplace") or step.spec.kind.endswith("_")):
            _write_back(writer, i, values, views, step.sources[0])
    outputs = [
        (_own(writer, values[i, k], f"t{i}_{k}"), steps[i].spec.outputs[k]) for i, k in network_outputs(steps)
    ]
    names = {name for name, _ in outputs}
    shapes = {name: tensor.shape for name, tensor in inputs.values()}
    shapes |= {values[i, k]: t.shape for i, step in enumerate(steps) for k, t in enumerate(step.spec.outputs)}
    _merge_reshapes(writer, names, shapes)
    _merge_products(writer, names, shapes)
    _drop_unread(writer, names)
    return _proto(writer, list(inputs.values()), outputs, apart)


def default_parameter(spec: TensorSpec) -> np.ndarray:
    """One value all over, without the memory: ``1 / fan_in``, so that activations stay near one.

    A single number is a half, because a runtime leaves out products with one and sums with zero.
    """
    fan_in = ops.prod(spec.shape[1:]) if len(spec.shape) > 1 else 1
    value = 0.0 if spec.name in ("bias", "running_mean") else 1.0 / max(fan_in, 1)
    if spec.numel == 1 and "float" in spec.dtype:
        value = 0.5
    return np.broadcast_to(np.asarray(value).astype(numpy_dtype(spec.dtype)), spec.shape)


def _check(steps: Sequence[Step]) -> None:
    missing = sorted({name_of(s.spec) for s in steps} - TABLE.keys())
    if missing:
        raise UsageError(
            f"no way to write {', '.join(missing)} as ONNX: predict and measure this network in eager"
        )
    total = sum(int(s.spec.parameter_bytes) for s in steps)
    if total > LARGEST_BYTES:
        raise UsageError(
            f"the network's parameters take {total / 2**30:.1f} GB, and an ONNX file holds 2 GB: "
            "use a smaller network or a narrower dtype"
        )


_WRITES_BACK = {"select": "select_scatter", "slice": "slice_scatter"}
"""How what is written into a view of a tensor gets into the tensor."""


def _write_back(
    writer: Writer,
    i: int,
    values: dict[tuple[int, int], str],
    views: Mapping[tuple[int, int], Step],
    written: tuple[int, int],
) -> None:
    """Step ``i`` wrote in place: its value is that of the views that it wrote into, and of their tensor."""
    values[written] = values[i, 0]
    depth = 0
    while written in views and views[written].sources:
        spec, whole = views[written].spec, views[written].sources[0]
        scatter = OpSpec(
            _WRITES_BACK[name_of(spec)],
            (replace(spec.inputs[0], name="self"), replace(spec.out, name="src")),
            (replace(spec.out, shape=spec.inputs[0].shape),),
            spec.attrs,
        )
        site = Site(writer, f"{i}.back{depth}", scatter, [values[whole], values[written]])
        values[whole] = site.write()[0]
        written, depth = whole, depth + 1


def _own(writer: Writer, name: str, wanted: str) -> str:
    """The value under a name that a node gives it, as an output of a model must have."""
    if any(name in node.output for node in writer.nodes):
        return name
    writer.nodes.append(writer.onnx.helper.make_node("Identity", [name], [wanted], name=wanted))
    return wanted


def _merge_reshapes(writer: Writer, outputs: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A reshape of a reshape that nothing else reads is one, or none, as in what the exporter writes."""
    readers = Counter(name for node in writer.nodes for name in node.input)
    readers.update(outputs)
    made = {node.output[0]: node for node in writer.nodes if node.op_type == "Reshape"}
    same: dict[str, str] = {}
    for node in made.values():
        before = made.get(node.input[0])
        if before is None or readers[node.input[0]] > 1:
            continue
        node.input[0] = source = before.input[0]
        node.ClearField("attribute")  # nothing but allowzero, which keeps a runtime from merging more
        name = node.output[0]
        if source in shapes and shapes[source] == shapes.get(name) and name not in outputs:
            same[name] = same.get(source, source)
    for node in writer.nodes:
        node.input[:] = [same.get(name, name) for name in node.input]


def _merge_products(writer: Writer, outputs: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A product between reshapes that broadcasting makes needless is one, as in what the exporter writes."""
    readers = Counter(name for node in writer.nodes for name in node.input)
    readers.update(outputs)
    made = {node.output[0]: node for node in writer.nodes if node.op_type in ("Reshape", "MatMul")}

    def before(name: str, op: str) -> onnx.NodeProto | None:
        node = made.get(name)
        return node if node is not None and node.op_type == op and readers[name] == 1 else None

    for node in made.values():
        product = before(node.input[0], "MatMul") if node.op_type == "Reshape" else None
        first = before(product.input[0], "Reshape") if product is not None else None
        if product is None or first is None:
            continue
        second = before(product.input[1], "Reshape")
        pair = (first.input[0], product.input[1] if second is None else second.input[0])
        a, b, c = (shapes.get(name) for name in (*pair, node.output[0]))
        if a is not None and b is not None and c == _product_shape(a, b):
            node.op_type = "MatMul"
            node.ClearField("attribute")
            node.input[:] = pair


def _product_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of the product, where the first operand's leading axes are those of the second, or one."""
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        return None
    if any(x not in (1, y) for x, y in zip(a[-3::-1], b[-3::-1], strict=False)):
        return None
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _drop_unread(writer: Writer, outputs: Collection[str]) -> None:
    """Leave out nodes and constants that no output needs."""
    read = set(outputs)
    kept = []
    for node in reversed(writer.nodes):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    writer.nodes = kept[::-1]
    writer.constants = {name: array for name, array in writer.constants.items() if name in read}


def _proto(
    writer: Writer,
    inputs: Sequence[Typed],
    outputs: Sequence[Typed],
    apart: dict[str, np.ndarray] | None,
) -> onnx.ModelProto:
    helper = writer.onnx.helper

    def info(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
        made: onnx.ValueInfoProto = helper.make_tensor_value_info(
            name, writer.element_type(spec.dtype), spec.shape
        )
        return made

    graph = helper.make_graph(
        writer.nodes,
        "latmorph",
        [info(*x) for x in inputs],
        [info(*x) for x in dict(outputs).items()],
        [_tensor(writer, name, array, apart) for name, array in writer.constants.items()],
    )
    # The oldest format that holds this opset: a runtime may be older than the onnx package.
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
    )
    return model


def _tensor(
    writer: Writer, name: str, array: np.ndarray, apart: dict[str, np.ndarray] | None
) -> onnx.TensorProto:
    tensor: onnx.TensorProto = writer.onnx.TensorProto(
        name=name, dims=array.shape, data_type=writer.element_type(str(array.dtype))
    )
    if apart is not None and array.nbytes > APART_BYTES and array.dtype.kind == "f":
        apart[name] = array
        tensor.data_location = writer.onnx.TensorProto.EXTERNAL
        for key, value in (("location", "apart"), ("offset", "0"), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=value)
        return tensor
    one_value = array.size > 1 and not any(array.strides)
    tensor.raw_data = array.flat[0].tobytes() * array.size if one_value else array.tobytes()
    return tensor
