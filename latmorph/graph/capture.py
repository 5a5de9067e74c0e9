"""Capture: a torch model becomes a Graph, by torch.export in non-strict mode, and stays as it was."""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import logging
import operator
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latmorph import ops
from latmorph.errors import CaptureError, UnknownOperatorError
from latmorph.graph.channels import find_channels
from latmorph.graph.graph import Graph, Node, Tensor
from latmorph.graph.onnx import read_onnx
from latmorph.opspec import OpSpec, TensorSpec


def capture(
    model: torch.nn.Module | torch.export.ExportedProgram | str | Path,
    inputs: Sequence[Any] = (),
    *,
    allow_unknown: bool = False,
) -> Graph:
    """The model's operators, as one forward pass in eval mode runs them, and its channel groups.

    ``inputs`` are the positional arguments of ``model.forward``. The model is left as it was: mode,
    parameters, buffers, gradients and the random state. An ExportedProgram is read as it is, at the shapes
    that it was exported for. The path of an .onnx file stands for the model in it; there ``inputs`` are
    needed only for sizes that the file leaves open, and shapes do as well as tensors.

    Raises CaptureError when ``model`` is no module or no sound file, when it rejects ``inputs``, or when
    its control flow depends on data; UnknownOperatorError when an operator has no handler, unless
    ``allow_unknown``, which freezes that operator's channels and leaves it without a price.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return read(model, allow_unknown).graph
    if isinstance(model, str | Path) and Path(model).suffix.lower() == ".onnx":
        return read_onnx(Path(model), inputs, allow_unknown=allow_unknown)
    if not isinstance(model, torch.nn.Module):
        raise CaptureError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; "
            "pass an instance, not a class, a function or a state dict"
        )
    if not isinstance(inputs, list | tuple):
        raise CaptureError(
            f"inputs must be a tuple of the arguments of forward, got {type(inputs).__name__}; "
            "write (x,) for a single tensor"
        )
    _check_signature(model, inputs)
    return read(export(model, tuple(inputs)), allow_unknown).graph


@dataclass(frozen=True, eq=False)
class Read:
    """A graph and the program it was read from: which node each of the program's is, and which tensors."""

    graph: Graph
    exported: torch.export.ExportedProgram
    origins: dict[torch.fx.Node, int]
    values: dict[torch.fx.Node, Any]


def read(exported: torch.export.ExportedProgram, allow_unknown: bool = False) -> Read:
    """The graph of an exported program. Raises as :func:`capture` does."""
    with _without_collecting():
        reader = _Reader(exported)
        if reader.unknown and not allow_unknown:
            raise UnknownOperatorError(reader.unknown)
        return Read(reader.graph(), exported, reader.origins, reader.values)


def operators(exported: torch.export.ExportedProgram) -> tuple[Node, ...]:
    """The operators of an exported program, in execution order, known or not; channels are not looked for."""
    return tuple(_Reader(exported).nodes)


@contextlib.contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode, without gradients; afterwards it and the random state are as they were.

    Attributes of modules, and lists and dictionaries in them, are theirs to keep things in between passes
    (attention biases, anchors); what a pass without values leaves there is no tensor.
    """
    modes = [(module, module.training) for module in model.modules()]
    attributes = [vars(module) for module in model.modules()]
    held = [*attributes, *(v for a in attributes for v in a.values() if type(v) in (list, dict))]
    kept = [(container, container.copy()) for container in held]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        for container, before in kept:
            container.clear()
            extend = container.extend if isinstance(container, list) else container.update
            extend(before)
        for module, training in modes:
            module.training = training


def named_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by every name that they have."""
    held: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    held.update(model.named_buffers(remove_duplicate=False))
    return held


def holds_numbers(model: torch.nn.Module) -> bool:
    """Whether the model can be computed with: its tensors are neither fake nor on the meta device."""
    from torch._subclasses.fake_tensor import FakeTensor

    held = named_tensors(model).values()
    return not any(isinstance(t, FakeTensor) or t.device.type == "meta" for t in held)


def _check_signature(model: torch.nn.Module, inputs: Sequence[Any]) -> None:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*inputs)
    except TypeError as error:
        raise CaptureError(
            f"{type(model).__name__}.forward{signature} does not take {len(inputs)} positional "
            f"argument(s): {error}"
        ) from None


TALKATIVE = ("fx.experimental.symbolic_shapes", "_subclasses.fake_tensor")
"""Modules of torch that log what export fails at, which raises what we tell."""


def export(
    model: torch.nn.Module, inputs: tuple[Any, ...], *, any_batch: bool = False
) -> torch.export.ExportedProgram:
    """One pass in eval mode, exported; with ``any_batch`` for a first axis of any size, where it can be.

    Raises CaptureError when the model rejects the inputs or its control flow depends on data.
    """
    shapes = [{0: torch.export.Dim.AUTO} if isinstance(x, torch.Tensor) and x.ndim else None for x in inputs]
    with untouched(model):
        return _export(model, inputs, tuple(shapes) if any_batch else None)


def _export(model: torch.nn.Module, inputs: tuple[Any, ...], shapes: Any) -> torch.export.ExportedProgram:
    said = io.StringIO()
    logs = [logging.getLogger(f"torch.{name}") for name in TALKATIVE]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)  # torch tells a failure at length on stderr; we tell it in one line
    try:
        with (
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
            _without_stack_traces(),
            _without_collecting(),
        ):
            # Recurrent layers keep lists of their weights, which torch puts back itself.
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
            exported = torch.export.export(model, inputs, strict=False, dynamic_shapes=shapes)
        sys.stderr.write(said.getvalue())
        return exported
    except Exception as error:
        name = type(model).__name__
        text = str(error)
        first = next((line.strip() for line in text.splitlines() if line.strip()), repr(error))
        kind = type(error).__name__
        if "DataDependent" in kind or "data-dependent" in text or "DataDependent" in text:
            raise CaptureError(
                f"{name}: control flow depends on the values of a tensor, which has no fixed list of "
                f"operators ({first}); rewrite that branch with torch.where or torch.cond, or capture a "
                "module that holds the model and calls its layers without deciding anything"
            ) from error
        shapes = ", ".join(
            f"{tuple(x.shape)} {x.dtype}" if isinstance(x, torch.Tensor) else type(x).__name__ for x in inputs
        )
        raise CaptureError(
            f"{name} could not be captured with inputs {shapes}: {first}; check the inputs' shapes "
            "and dtypes by calling the model with them"
        ) from error
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Tracing without a stack trace for every operator, which nobody reads: 30 % less time.

    A torch that does not know the switch yet ignores it.
    """
    config: Any = torch.fx.config
    before = getattr(config, "do_not_emit_stack_traces", False)
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Without looking for garbage in cycles over and over, through all of a graph that grows: 20 % less time.

    What is in no cycle, as tensors are, goes at once all the same.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Reader:
    """Reads an exported program into nodes and tensors."""

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        self.exported = exported
        self.tensors: list[Tensor] = []
        self.values: dict[Any, Any] = {}
        self.nodes: list[Node] = []
        self.unknown: dict[str, list[str]] = {}
        self.parameters: set[torch.fx.Node] = set()
        self.origins: dict[torch.fx.Node, int] = {}
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self._read()

    def graph(self) -> Graph:
        read = tuple(self.nodes), tuple(self.tensors), tuple(self.inputs), tuple(self.outputs)
        return Graph(*read, find_channels(*read))

    def _read(self) -> None:
        signature = self.exported.graph_signature
        parameters = signature.inputs_to_parameters
        names = {**parameters, **signature.inputs_to_buffers}
        given = set(signature.user_inputs)
        counted = self._counted()
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                value = node.meta.get("val")
                if isinstance(value, torch.Tensor):
                    self.values[node] = self._tensor(value, names.get(node.name), node.name in counted)
                    if node.name in given:
                        self.inputs.append(self.values[node])
                    elif node.name in names:
                        self.parameters.add(node)
            elif node.op == "output":
                self.outputs = [t for arg in _nodes(node.args) for t in _ids(self.values.get(arg))]
            else:
                self._node(node, self.exported.graph_module)

    def _counted(self) -> set[str]:
        """Placeholders of parameters: where a tensor has several names, of those that it is read by."""
        parameters, held = self.exported.graph_signature.inputs_to_parameters, self.exported.state_dict
        named: dict[int, list[torch.fx.Node]] = {}
        for node in self.exported.graph.nodes:
            if node.op == "placeholder" and node.name in parameters:
                named.setdefault(id(held.get(parameters[node.name])), []).append(node)
        return {n.name for nodes in named.values() for n in [n for n in nodes if n.users] or nodes[:1]}

    def _node(self, node: torch.fx.Node, owner: torch.nn.Module) -> None:
        """Read a node that is neither input nor output of the graph that ``owner`` holds."""
        if node.op == "get_attr":
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                self.values[node] = self._tensor(value)
        elif node.target is operator.getitem:
            source = self.values.get(node.args[0])
            self.values[node] = source[int(str(node.args[1]))] if isinstance(source, tuple) else source
        elif str(node.target) in ("wrap_with_autocast", "wrap_with_set_grad_enabled"):
            self._body(node, owner)
        else:
            self._operator(node)

    def _body(self, node: torch.fx.Node, owner: torch.nn.Module) -> None:
        """Read the graph that a node runs under another mode as if it stood in the node's place."""
        at, name = next(
            (i, str(a.target))
            for i, a in enumerate(node.args)
            if isinstance(a, torch.fx.Node) and a.op == "get_attr" and hasattr(owner, str(a.target))
        )
        body = getattr(owner, name)
        given = iter(node.args[at + 1 :])
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                argument = next(given)
                self.values[inner] = self.values.get(argument)
                if argument in self.parameters:
                    self.parameters.add(inner)
            elif inner.op == "output":
                self.values[node] = tuple(self.values.get(n) for n in _nodes(inner.args))
            else:
                self._node(inner, body)

    def _tensor(self, value: torch.Tensor, parameter: str | None = None, trainable: bool = False) -> int:
        shape = tuple(size_of(s) for s in value.shape)
        if None in shape:
            raise CaptureError(
                f"a tensor's size depends on the values of another, shape {tuple(value.shape)}: the network "
                "has no fixed list of operators; capture the part of it that has"
            )
        dtype = str(value.dtype).removeprefix("torch.")
        self.tensors.append(Tensor(shape, dtype, parameter, trainable))
        return len(self.tensors) - 1

    def _operator(self, node: torch.fx.Node) -> None:
        value = node.meta.get("val")
        made = tuple(v for v in (value if isinstance(value, tuple | list) else (value,)))
        tensors_made = [v for v in made if isinstance(v, torch.Tensor)]
        if not tensors_made:  # assertions, symbolic sizes, grad-mode switches: nothing to run or price
            self.values[node] = None
            return
        name, inputs, attrs = self._arguments(node)
        outputs = tuple(self._tensor(v) for v in tensors_made)
        kind, attrs = self._kind(name, node, inputs, attrs, tensors_made)
        spec = OpSpec(
            kind,
            tuple(
                TensorSpec(
                    operand,
                    self.tensors[t].shape,
                    self.tensors[t].dtype,
                    self.tensors[t].parameter is not None,
                )
                for operand, t in inputs
            ),
            tuple(TensorSpec("out", self.tensors[t].shape, self.tensors[t].dtype) for t in outputs),
            attrs,
        )
        spec = ops.laid_out(spec, all(_dense(n) for n in node.all_input_nodes if n not in self.parameters))
        module = _module(node)
        if not ops.is_known(spec):
            self.unknown.setdefault(name, []).append(module or "the model itself")
        self.origins[node] = len(self.nodes)
        self.nodes.append(Node(node.name, spec, tuple(t for _, t in inputs), outputs, module))
        self.values[node] = outputs if isinstance(value, tuple | list) else outputs[0]

    def _arguments(
        self, node: torch.fx.Node
    ) -> tuple[str, list[tuple[str, int]], tuple[tuple[str, Any], ...]]:
        """The operator's name in aten, its tensor operands by schema name, and its other arguments."""
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            read = [("input", t) for arg in node.all_input_nodes for t in _ids(self.values.get(arg))]
            return str(node.target), read, ()
        namespace, _, name = schema.name.partition("::")
        given: dict[str, Any] = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        given.update(zip((a.name for a in schema.arguments), node.args, strict=False))
        given.update(node.kwargs)
        inputs: list[tuple[str, int]] = []
        attrs: list[tuple[str, Any]] = []
        for argument in schema.arguments:
            value = given.get(argument.name)
            found = [t for n in _nodes(value) for t in _ids(self.values.get(n))]
            if found:
                inputs += [(argument.name, t) for t in found]
                if isinstance(value, list | tuple) and None in value:  # which places of the list are taken
                    attrs.append((argument.name, tuple(v is not None for v in value)))
            elif value is not None and (size := _plain(value)) is not None:
                attrs.append((argument.name, size))
        return (name if namespace == "aten" else f"{namespace}.{name}"), inputs, tuple(attrs)

    def _kind(
        self,
        name: str,
        node: torch.fx.Node,
        inputs: list[tuple[str, int]],
        attrs: tuple[tuple[str, Any], ...],
        made: list[torch.Tensor],
    ) -> tuple[str, tuple[tuple[str, Any], ...]]:
        handler = ops.by_aten(name)
        if handler is None:
            return ops.UNKNOWN + name, attrs
        if not ops.is_layout(handler):
            base = name if ops.handler_of(name) is handler else name.rstrip("_")
            return base, (*attrs, ("inplace", True)) if base != name else attrs
        source = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
        copies = isinstance(source, torch.Tensor) and _copies(name.rstrip("_"), source, made[0])
        return "copy" if copies else "view", (*attrs, ("op", name.rstrip("_")))


def _copies(name: str, source: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether a layout operator writes new memory."""
    if name in ("clone", "lift_fresh_copy"):
        return True
    if name in ("to", "_to_copy", "type_as"):
        return source.dtype != out.dtype or source.device != out.device
    if name == "contiguous":
        return not source.is_contiguous()
    if name in ("reshape", "flatten", "ravel", "reshape_as"):
        try:
            source.view(out.shape)
        except (RuntimeError, ValueError):
            return True
    return False


def _dense(node: torch.fx.Node) -> bool:
    """Whether what a node makes lies in memory in the order of its axes, or is no tensor."""
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.is_contiguous()


def _module(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    entry = next(reversed(stack.values()), None)
    return str(entry[0]) if entry else ""


def _nodes(value: Any) -> list[torch.fx.Node]:
    if isinstance(value, torch.fx.Node):
        return [value]
    if isinstance(value, list | tuple):
        return [n for v in value for n in _nodes(v)]
    if isinstance(value, dict):
        return [n for v in value.values() for n in _nodes(v)]
    return []


def _ids(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [t for t in value if t is not None] if isinstance(value, tuple) else []


def size_of(value: Any) -> Any:
    """A size as a number: the example's where it may be any; None where it depends on values."""
    node = getattr(value, "node", None)
    if node is None or node.maybe_as_int() is not None:
        return int(value)
    return node.hint if node.has_hint() else None


def _plain(value: Any) -> Any:
    """An attribute as JSON can hold it; None for what is no value."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, torch.fx.Node):
        value = value.meta.get("val")
        return None if value is None or isinstance(value, torch.Tensor) else size_of(value)
    if isinstance(value, bool | int | float | str):
        return value
    return str(value).removeprefix("torch.")
