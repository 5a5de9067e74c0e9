"""One step being written as ONNX, and the table of the functions that write them.

What a runtime does with a model depends on how the model spells it: its fusions look for patterns. So
every function of the table writes an operator as ``torch.onnx.export(dynamo=True)`` does, down to the
order of a product's factors, and constants that the exporter folds are written folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from latmorph.errors import UsageError
from latmorph.opspec import OpSpec, TensorSpec

if TYPE_CHECKING:
    import onnx

Parameters = Callable[[TensorSpec], np.ndarray]
"""Gives the values of a parameter, of the spec's shape and dtype."""


def import_onnx() -> ModuleType:
    """The ``onnx`` package. Raises UsageError, which says how to install it, where it is missing."""
    try:
        import onnx
    except ImportError:
        raise UsageError("the onnx package is not installed: pip install latmorph[onnx]") from None
    return onnx


def name_of(spec: OpSpec) -> str:
    """The operator's name in aten, without the underscore of in-place forms."""
    return str(spec.attr("op")) if spec.kind in ("view", "copy") else spec.kind


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype of a name of torch's."""
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16  # numpy has none of its own
    return np.dtype(dtype)


class Writer:
    """The nodes and constants of the model that is being written."""

    def __init__(self, parameter: Parameters) -> None:
        self.onnx = import_onnx()
        self.parameter = parameter
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._shared: dict[tuple[bytes, str, tuple[int, ...]], str] = {}

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        """The name of a constant; those without a name of their own are one where they are equal."""
        if name is None:
            key = (array.tobytes(), str(array.dtype), array.shape)
            if key not in self._shared:
                self._shared[key] = self.constant(array, f"c{len(self._shared)}")
            return self._shared[key]
        self.constants[name] = array
        return name

    def element_type(self, dtype: str) -> int:
        """ONNX's number of a dtype."""
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype)))


class Site:
    """One step being written: what it reads, by the names of its schema, and how to add nodes."""

    def __init__(self, writer: Writer, index: int | str, spec: OpSpec, names: Sequence[str | None]) -> None:
        self.writer = writer
        self.index = index
        self.spec = spec
        self.given = names
        self.added: list[tuple[str, list[str], list[str], dict[str, Any]]] = []

    def write(self) -> list[str]:
        """Adds the step's nodes; the names of its outputs."""
        made = TABLE[name_of(self.spec)](self)
        outputs = [made] if isinstance(made, str) else made
        own = {name for _, _, produced, _ in self.added for name in produced}
        final = {name: f"t{self.index}_{k}" for k, name in reversed(list(enumerate(outputs))) if name in own}
        for n, (op, read, produced, attributes) in enumerate(self.added):
            node = self.writer.onnx.helper.make_node(
                op,
                [final.get(x, x) for x in read],
                [final.get(x, x) for x in produced],
                name=f"t{self.index}.{n}",
                **attributes,
            )
            self.writer.nodes.append(node)
        return [final.get(name, name) for name in outputs]

    def __call__(self, op: str, *read: str, **attributes: Any) -> str:
        """Adds a node of one output; the output's name. An operand that is absent is ``""``."""
        return self.several(op, read, 1, **attributes)[0]

    def several(self, op: str, read: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Adds a node of ``count`` outputs; their names."""
        kept = list(read)
        while kept and not kept[-1]:
            kept.pop()
        made = [f"t{self.index}.{len(self.added)}.{k}" for k in range(count)]
        self.added.append((op, kept, made, attributes))
        return made

    def transposed(self, x: str, order: Iterable[int]) -> str:
        """A value with its axes in another order; the value itself where the order is theirs."""
        perm = [int(a) for a in order]
        return x if perm == sorted(perm) else self("Transpose", x, perm=perm)

    # What the step reads.

    def attr(self, name: str, default: Any = None) -> Any:
        return self.spec.attr(name, default)

    def sizes(self, name: str, rank: int, default: int = 0) -> list[int]:
        """An attribute with one integer an axis, of which torch lets one stand for all."""
        value = self.attr(name)
        given = list(value) if isinstance(value, tuple | list) else [default if value is None else value]
        return [int(v) for v in given] * (rank if len(given) == 1 else 1)

    def operands(self, name: str | None = None) -> list[str]:
        """The operands called ``name``, or all, in order."""
        chosen = [i for i, t in enumerate(self.spec.inputs) if name is None or t.name == name]
        return [self._value(i) for i in chosen]

    def __getitem__(self, name: str) -> str:
        return next(iter(self.operands(name)), "")

    def has(self, name: str) -> bool:
        return self.spec.operand(name) is not None

    @property
    def x(self) -> str:
        """The first operand."""
        return self._value(0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first operand."""
        return self.spec.inputs[0].shape

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.spec.out.shape

    def axis(self, default: int = 0) -> int:
        """The attribute ``dim``, counted from the first axis."""
        return int(self.attr("dim", default)) % max(len(self.shape), 1)

    def _value(self, i: int) -> str:
        return self.given[i] or self.parameter(i)

    def array(self, i: int) -> np.ndarray:
        """The values of operand ``i``. Raises UsageError where it is computed."""
        if self.given[i] is not None:
            operand = self.spec.inputs[i].name
            raise UsageError(f"{self.spec.kind} with a computed {operand} cannot be written as ONNX")
        tensor = self.spec.inputs[i]
        return self.writer.parameter(tensor).astype(numpy_dtype(tensor.dtype), copy=False)

    def parameter(self, i: int, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> str:
        """Operand ``i``, a parameter, as a constant, changed as the exporter folds it."""
        name = self.spec.inputs[i].name
        same = sum(t.name == name for t in self.spec.inputs[:i])
        array = change(self.array(i))
        return self.writer.constant(array, f"p{self.index}_{name}{same or ''}")

    def position(self, name: str) -> int:
        """Where among the operands the one called ``name`` stands."""
        return next(i for i, t in enumerate(self.spec.inputs) if t.name == name)

    # Constants.

    def ints(self, *values: int) -> str:
        """A list of integers."""
        return self.writer.constant(np.array(values, dtype=np.int64))

    def array_of(self, values: Any, dtype: str | None = None) -> str:
        """Any constant, in the first operand's dtype unless one is given."""
        chosen = dtype or (self.spec.inputs[0].dtype if self.spec.inputs else self.spec.out.dtype)
        return self.writer.constant(np.asarray(values).astype(numpy_dtype(chosen)))

    def cast(self, value: str, before: str, after: str) -> str:
        """The value in another dtype."""
        if before == after:
            return value
        return self("Cast", value, to=self.writer.element_type(after))

    def operand_as(self, name: str, dtype: str) -> str:
        """An operand or, where torch takes a number there, the number, in the given dtype."""
        tensor = self.spec.operand(name)
        if tensor is not None:
            return self.cast(self[name], tensor.dtype, dtype)
        return self.array_of(self.attr(name), dtype)

    def refuse(self, why: str) -> UsageError:
        return UsageError(f"{self.spec.kind} {why} cannot be written as ONNX")


Write = Callable[[Site], "str | list[str]"]
TABLE: dict[str, Write] = {}


def writes(*names: str) -> Callable[[Write], Write]:
    """Enters a function in the table, under names in aten."""

    def enter(function: Write) -> Write:
        TABLE.update(dict.fromkeys(names, function))
        return function

    return enter


def batched(at: Site, rank: int, write: Callable[[str], str]) -> str:
    """What ``write`` makes of the first operand, which may lack the batch axis."""
    if len(at.shape) == rank + 2:
        return write(at.x)
    return at("Squeeze", write(at("Unsqueeze", at.x, at.ints(0))), at.ints(0))


def per_channel(at: Site, name: str, shape: tuple[int, ...], default: float) -> str:
    """The operand ``name (C)`` in another shape; where there is none, one value all over."""
    if not at.has(name):
        return at.array_of(np.full(shape, default))
    i = at.position(name)
    if at.spec.inputs[i].parameter:
        return at.parameter(i, lambda x: x.reshape(shape))
    return at("Reshape", at[name], at.ints(*shape))
