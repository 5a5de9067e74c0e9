"""ONNX Runtime on the CPU: what it makes of a network, and its own clock at every kernel.

The runtime tells the times of kernels only when a session's profiling ends, in whole microseconds, and
its clock runs while it writes down what it has seen: some microseconds a kernel that an unclocked pass
does not pay. How much is measured on chains of kernels that do next to nothing, and taken off.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from latmorph.device.backend import BLOCK_INPUT, BLOCK_WIDTH, Backend, Session, keep_freed_memory
from latmorph.device.fingerprint import Fingerprint, cpu_fingerprint
from latmorph.device.lowering import NUMBERS, Kernel, order_of_steps, read_kernels
from latmorph.errors import DeviceError, UsageError
from latmorph.onnx_model import OPSET, import_onnx, to_onnx
from latmorph.onnx_ops import Parameters, numpy_dtype
from latmorph.opspec import OpSpec, Step, network_inputs, network_outputs
from latmorph.values import ParameterValues, input_values

if TYPE_CHECKING:
    import onnx

LEVELS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED"}
"""Names of the levels of optimisation in the package; the level ``all`` is the runtime's default."""

FLOOR_S = 1e-7
"""No kernel takes less: the runtime's dispatch alone takes about this long."""


def import_onnxruntime() -> Any:
    """The ``onnxruntime`` package. Raises DeviceError, which says how to install it, where it is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise DeviceError(
            "the onnxruntime package is not installed: pip install latmorph[onnx] (or onnxruntime-gpu)"
        ) from None
    return onnxruntime


@dataclass(frozen=True)
class SessionOptions:
    """How ONNX Runtime is to run a network: all of it is part of a profile's identity.

    ``optimisation`` is ``none``, ``basic``, ``extended`` or ``all``; ``provider`` the name of an execution
    provider, as the runtime spells it. ``spinning`` lets idle threads wait for work at full speed, as the
    runtime does by default: to be woken for every kernel takes up to two fifths of a network's time. Between
    passes they sleep all the same, since they would slow down whatever else runs on the machine, a second
    session, too. Kernels run one after another.
    """

    threads: int = 1
    spinning: bool = True
    optimisation: str = "all"
    provider: str = "CPUExecutionProvider"

    @classmethod
    def parse(cls, threads: int, given: Mapping[str, str]) -> SessionOptions:
        """The options of ``key=value`` pairs. Raises DeviceError for one that does not exist."""
        choices = {"spinning": ("off", "on"), "optimisation": (*LEVELS, "all")}
        for key, value in given.items():
            if key not in (*choices, "provider"):
                raise DeviceError(
                    f"onnxruntime has no option {key!r} here: use spinning, optimisation or provider"
                )
            if value not in choices.get(key, (value,)):
                raise DeviceError(f"option {key}={value}: use one of {', '.join(choices[key])}")
        options = cls(
            threads,
            given.get("spinning", "on") == "on",
            given.get("optimisation", cls.optimisation),
            given.get("provider", cls.provider),
        )
        available = import_onnxruntime().get_available_providers()
        if options.provider not in available:
            raise DeviceError(
                f"option provider={options.provider}: this onnxruntime has {', '.join(available)}"
            )
        return options

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The options, but for the number of threads, as a fingerprint holds them."""
        return (
            ("optimisation", self.optimisation),
            ("provider", self.provider),
            ("spinning", "on" if self.spinning else "off"),
        )

    def session(self, model: bytes | str, configure: Callable[[Any], None] | None = None) -> Any:
        """An InferenceSession of a model's bytes or path; ``configure`` may add to its options.

        Raises DeviceError when the runtime refuses the model.
        """
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(
            runtime.GraphOptimizationLevel, LEVELS.get(self.optimisation, "ORT_ENABLE_ALL")
        )
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spinning)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if configure is not None:
            configure(options)
        try:
            return runtime.InferenceSession(model, options, providers=[self.provider])
        except Exception as error:  # the runtime's own exceptions have no base of their own
            name = model if isinstance(model, str) else "the network"
            first = str(error).strip().splitlines()[0]
            raise DeviceError(f"onnxruntime cannot load {name}: {first}") from error


@dataclass(frozen=True)
class _Network:
    """A model's bytes, its large weights beside it, and the types of the values that its steps write."""

    model: bytes
    weights: dict[str, Any]
    values: list[onnx.ValueInfoProto]

    @classmethod
    def of(cls, steps: Sequence[Step], parameter: Parameters | None = None) -> _Network:
        apart: dict[str, np.ndarray] = {}
        model = to_onnx(steps, parameter, apart).SerializeToString()
        make = import_onnxruntime().OrtValue.ortvalue_from_numpy
        weights = {name: make(np.ascontiguousarray(array)) for name, array in apart.items()}
        helper = import_onnx().helper
        values = [
            helper.make_tensor_value_info(f"t{i}_{k}", NUMBERS.get(t.dtype, 1), t.shape)
            for i, step in enumerate(steps)
            for k, t in enumerate(step.spec.outputs)
        ]
        return cls(model, weights, values)

    def give_weights(self, options: Any) -> None:
        """Hands a session the weights, which have to live as long as it does."""
        if self.weights:
            options.add_external_initializers(list(self.weights), list(self.weights.values()))


def _writes_model(options: Any, folder: Path) -> None:
    """Has a session write its optimised model, with large weights in a file that nobody reads."""
    options.optimized_model_filepath = str(folder / "kernels.onnx")
    key = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{key}_file_name", "weights.bin")
    options.add_session_config_entry(f"{key}_min_size_in_bytes", "1024")


def _written_model(folder: Path) -> onnx.ModelProto:
    model: onnx.ModelProto = import_onnx().load(str(folder / "kernels.onnx"), load_external_data=False)
    return model


def _optimised(
    model: bytes | str, options: SessionOptions, configure: Callable[[Any], None] | None = None
) -> onnx.ModelProto:
    """The model as the runtime would run it."""
    with tempfile.TemporaryDirectory(prefix="latmorph-") as folder:

        def write(session: Any) -> None:
            _writes_model(session, Path(folder))
            session.add_session_config_entry("session.disable_prepacking", "1")
            if configure is not None:
                configure(session)

        options.session(model, write)
        return _written_model(Path(folder))


@functools.cache
def _block(options: SessionOptions) -> int:
    """Channels in a block of the runtime's own layout: what one output channel is stored as."""
    onnx = import_onnx()
    float32 = onnx.TensorProto.FLOAT
    weight = onnx.helper.make_tensor("w", float32, [1, 64, 3, 3], np.ones(64 * 9, np.float32))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "block",
        [onnx.helper.make_tensor_value_info("x", float32, [1, 64, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", float32, [1, 1, 6, 6])],
        [weight],
    )
    model = _optimised(_model(graph).SerializeToString(), options).graph
    weights = {t.name: t.dims[0] for t in model.initializer}
    return next((int(weights[n.input[1]]) for n in model.node if n.op_type == "Conv"), 1)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    helper = import_onnx().helper
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
    )
    return model


_LOWERED: dict[tuple[SessionOptions, bytes], tuple[Kernel, ...]] = {}
_MOST_LOWERED = 20_000


@dataclass(frozen=True)
class Lowering:
    """Asks the runtime which kernels it makes of networks; what was asked before is remembered."""

    options: SessionOptions

    def network(self, steps: Sequence[Step]) -> tuple[Kernel, ...]:
        """The kernels of a network, in the order of the steps that they come from.

        Raises UsageError for steps that have no form in ONNX, DeviceError when the runtime refuses them.
        """
        return self.networks([tuple(steps)])[0]

    def networks(self, networks: Sequence[tuple[Step, ...]]) -> list[tuple[Kernel, ...]]:
        """The kernels of several networks, asked for at once."""
        if len(_LOWERED) > _MOST_LOWERED:
            _LOWERED.clear()
        keys = [(self.options, _digest(network)) for network in networks]
        fresh = {key: n for key, n in zip(keys, networks, strict=True) if key not in _LOWERED}
        for batch in _batches(fresh):
            found = _side_by_side([fresh[key] for key in batch], self.options)
            _LOWERED.update(zip(batch, found, strict=True))
        return [_LOWERED[key] for key in keys]

    @property
    def block(self) -> int:
        """Channels in a block of the runtime's own layout; 1 where it has none."""
        return _block(self.options)

    def file(self, path: Path, inputs: Sequence[Sequence[int]]) -> tuple[Kernel, ...]:
        """The kernels of a model in a file, for inputs of these shapes.

        Raises DeviceError when the runtime cannot load the file.
        """
        onnx = import_onnx()
        held = onnx.load(str(path), load_external_data=False)
        constants = {t.name for t in held.graph.initializer}
        sizes: dict[str, int] = {}
        given = [v for v in held.graph.input if v.name not in constants]
        for value, shape in zip(given, inputs, strict=False):
            for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
                if dim.dim_param:
                    sizes[dim.dim_param] = dim.dim_value = int(size)

        def fix_sizes(session: Any) -> None:
            for name, size in sizes.items():
                session.add_free_dimension_override_by_name(name, size)

        optimised = _optimised(str(path), self.options, fix_sizes)
        values = onnx.shape_inference.infer_shapes(held).graph.value_info
        return read_kernels(optimised, _block(self.options), values)


_Key = tuple[SessionOptions, bytes]


def _digest(steps: Sequence[Step]) -> bytes:
    return hashlib.blake2b(repr(steps).encode()).digest()


def _batches(networks: Mapping[_Key, Sequence[Step]], most_bytes: int = 2**28) -> list[list[_Key]]:
    """The networks in groups whose weights take a moderate room together."""
    batches: list[list[_Key]] = []
    room = 0
    for key, network in networks.items():
        size = sum(int(s.spec.parameter_bytes) for s in network)
        if not batches or size > room or len(batches[-1]) >= 32:
            batches.append([])
            room = most_bytes
        batches[-1].append(key)
        room -= size
    return batches


def _side_by_side(networks: Sequence[tuple[Step, ...]], options: SessionOptions) -> list[tuple[Kernel, ...]]:
    """Kernels of networks that share nothing, each with inputs of its own, in one model."""
    steps: list[Step] = []
    starts: list[int] = []
    owner: list[int] = []
    for number, network in enumerate(networks):
        start, given = len(steps), len(owner)
        outputs = network_outputs(network)
        for n, step in enumerate(network):
            sources = tuple((i + start, k) if i >= 0 else (-1, k + given) for i, k in step.sources)
            steps.append(Step(step.spec, sources, tuple(k for i, k in outputs if i == n)))
        starts.append(start)
        owner += [number] * (1 + max(network_inputs(network), default=0))
    whole = _Network.of(steps)
    model = _optimised(whole.model, options, whole.give_weights)
    inputs = [owner[int(v.name.removeprefix("input") or 0)] for v in model.graph.input]
    found: list[list[Kernel]] = [[] for _ in networks]
    for kernel in read_kernels(model, _block(options), whole.values):
        number = inputs[kernel.network]
        origin = kernel.step - starts[number] if kernel.step >= 0 else -1
        found[number].append(replace(kernel, step=origin))
    return [tuple(_traced(kernels, network)) for kernels, network in zip(found, networks, strict=True)]


def _traced(kernels: Sequence[Kernel], steps: Sequence[Step]) -> list[Kernel]:
    """The kernels in order, a fused convolution traced to itself, not to the last step fused into it."""
    taken: set[int] = set()
    traced = []
    for kernel in (kernels[k] for k in order_of_steps(kernels)):
        step = kernel.step
        if kernel.spec.kind.endswith("Conv"):
            step = _nearest_convolution(steps, step, taken)
            taken.add(step)
        traced.append(replace(kernel, step=step))
    return traced


def _nearest_convolution(steps: Sequence[Step], start: int, taken: Collection[int]) -> int:
    front = [start]
    for step in front:
        if step >= 0 and steps[step].spec.kind.startswith("conv") and step not in taken:
            return step
        if step >= 0 and len(front) < 64:
            front += [i for i, _ in steps[step].sources]
    return start


class _Event(msgspec.Struct):
    """One entry of the runtime's own profile; ``dur`` in microseconds."""

    cat: str
    name: str
    dur: int
    args: dict[str, Any] = {}


class _OrtSession(Session):
    """A network twice: in a session without clocks, and in one that clocks every kernel."""

    apart = True

    def __init__(self, backend: OnnxRuntime, steps: Sequence[Step], scratch: np.ndarray) -> None:
        self.backend = backend
        self.scratch = scratch
        self.folder = Path(tempfile.mkdtemp(dir=backend.folder))
        self.network = _Network.of(steps, ParameterValues())

        def clock(options: Any) -> None:
            self.network.give_weights(options)
            _writes_model(options, self.folder)
            options.enable_profiling = True
            options.profile_file_prefix = str(self.folder / "pass")

        self.plain = backend.options.session(self.network.model, self.network.give_weights)
        self.clocked = backend.options.session(self.network.model, clock)
        inputs = network_inputs(steps)
        self.feeds = {
            f"input{k or ''}": input_values(t).astype(numpy_dtype(t.dtype)) for k, t in inputs.items()
        }
        self.clocked.run(None, self.feeds)  # the first pass allocates; it is no sample

    def disturb(self) -> None:
        if len(self.scratch):
            self.scratch.sum()
            for x in self.feeds.values():
                x.sum()  # whoever made the inputs has brought them into the caches

    def _time(self, session: Any) -> float:
        start = time.perf_counter_ns()
        session.run(None, self.feeds)
        return (time.perf_counter_ns() - start) * 1e-9

    def time_steps(self) -> float:
        return self._time(self.clocked)

    def time_whole(self) -> float:
        return self._time(self.plain)

    def finish(self) -> tuple[tuple[OpSpec, ...], list[list[float]]]:
        events = _kernel_events(Path(self.clocked.end_profiling()))
        model = _written_model(self.folder)
        kernels = read_kernels(model, _block(self.backend.options), self.network.values)
        del self.clocked, self.plain
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()
        nodes = model.graph.node
        passes = [events[k : k + len(nodes)] for k in range(0, len(events), len(nodes) or 1)]
        if not all(len(one) == len(nodes) and all(map(_is_of, one, nodes)) for one in passes):
            raise DeviceError(
                "onnxruntime ran other kernels than those that it wrote down: times cannot be told apart"
            )
        clock = self.backend.clock_s
        order = order_of_steps(kernels)
        times = [[max(one[k].dur * 1e-6 - clock, FLOOR_S) for k in order] for one in passes[1:]]
        return tuple(kernels[k].spec for k in order), times


def _is_of(event: _Event, node: onnx.NodeProto) -> bool:
    """Whether an event is of a node; one that has no name of its own is given one with its number."""
    name = event.name.removesuffix("_kernel_time")
    return event.args.get("op_name") == node.op_type and node.name in ("", name)


def _kernel_events(path: Path) -> list[_Event]:
    events = msgspec.json.decode(path.read_bytes(), type=list[_Event])
    return [e for e in events if e.cat == "Node" and e.name.endswith("_kernel_time")]


_NUMPY = {"tensor(bfloat16)": "float32", "tensor(float)": "float32", "tensor(double)": "float64"}


def _example(value: Any) -> np.ndarray:
    """Values for an input of the model: normal, and for integers zero, which every table has."""
    dtype: np.dtype[Any] = np.dtype(
        _NUMPY.get(value.type, value.type.removeprefix("tensor(").removesuffix(")"))
    )
    if dtype.kind == "f":
        return np.asarray(np.random.default_rng(0).standard_normal(value.shape, np.float32), dtype)
    return np.zeros(value.shape, dtype)


class OnnxRuntime(Backend):
    """ONNX Runtime on this machine's CPU, on a fixed number of threads."""

    forks = sys.platform == "linux"

    def __init__(self, *, dtype: str = "float32", options: SessionOptions | None = None) -> None:
        import_onnxruntime()
        self.dtype = dtype
        self.options = SessionOptions() if options is None else options
        self.folder: str | None = None
        self._buffer = np.ones(0, np.float32)
        self._reference: Callable[[], object] | None = None
        self._traffic: Callable[[], object] | None = None
        self._clock_s: float | None = None

    def __enter__(self) -> Backend:
        keep_freed_memory()
        self.folder = tempfile.mkdtemp(prefix="latmorph-")
        return self

    def __exit__(self, *error: object) -> None:
        import shutil

        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def fingerprint(self) -> Fingerprint:
        version = f"onnxruntime {import_onnxruntime().__version__}"
        return cpu_fingerprint("onnxruntime", version, self.dtype, self.options.threads, self.options.pairs)

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        count = scratch_bytes // 4
        if len(self._buffer) < count:
            self._buffer = np.ones(count, np.float32)
        return _OrtSession(self, steps, self._buffer[:count])

    def call(self, path: Path, inputs: Sequence[np.ndarray] = ()) -> Callable[[], object]:
        """What runs the model in a file once, on ``inputs``, or on values of its own where none are given.

        Raises DeviceError when the runtime cannot load the file, UsageError for inputs that it does not take.
        """
        session = self.options.session(str(path))
        wanted = session.get_inputs()
        if inputs and len(inputs) != len(wanted):
            names = ", ".join(v.name for v in wanted)
            raise UsageError(f"{path} takes {len(wanted)} inputs ({names}), got {len(inputs)}")
        open_sizes = [v.name for v in wanted if not all(isinstance(size, int) for size in v.shape)]
        if open_sizes and not inputs:
            raise UsageError(f"{path}: the shape of input {open_sizes[0]} is open; give its inputs")
        given = inputs or [_example(v) for v in wanted]
        return functools.partial(session.run, None, {v.name: x for v, x in zip(wanted, given, strict=True)})

    def _yardstick(self, model: onnx.ModelProto) -> Callable[[], object]:
        session = self.options.session(model.SerializeToString())
        run = functools.partial(session.run, None, {v.name: _example(v) for v in session.get_inputs()})
        for _ in range(3):
            run()
        return run

    def reference(self) -> float:
        if self._reference is None:
            self._reference = self._yardstick(_reference_model(self.dtype))
        return self.time_call(self._reference)

    def traffic(self) -> float:
        if self._traffic is None:
            self._traffic = self._yardstick(_block_model(self.dtype))
        return self.time_call(self._traffic)

    def time_call(self, call: Callable[[], object]) -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) * 1e-9

    def prepare(self) -> None:
        _ = self.clock_s

    @property
    def clock_s(self) -> float:
        """Seconds that the runtime's clock adds to each kernel's time, beyond what an unclocked pass takes.

        Two chains of a different length, of kernels on a handful of elements, each clocked and not: per
        kernel, what the clock says grows by so much more than what a pass takes.
        """
        if self._clock_s is None:
            long, short = self._chain(220), self._chain(20)
            self._clock_s = max(0.0, ((long[0] - short[0]) - (long[1] - short[1])) / 200)
        return self._clock_s

    def _chain(self, length: int, passes: int = 60) -> tuple[float, float]:
        """Smallest sum of clocked times, and smallest unclocked time, of a pass of a chain."""
        with tempfile.TemporaryDirectory(prefix="latmorph-") as folder:

            def clock(options: Any) -> None:
                options.enable_profiling = True
                options.profile_file_prefix = f"{folder}/chain"

            model = _chain_model(length).SerializeToString()
            plain, clocked = self.options.session(model), self.options.session(model, clock)
            feeds = {"x": np.ones((1, 8), np.float32)}
            whole = []
            for _ in range(passes):
                clocked.run(None, feeds)
                plain.run(None, feeds)
                whole.append(self.time_call(functools.partial(plain.run, None, feeds)))
            events = _kernel_events(Path(clocked.end_profiling()))
        sums = np.array([e.dur for e in events]).reshape(passes, -1).sum(axis=1)
        return float(sums.min()) * 1e-6, min(whole)


def _chain_model(length: int) -> onnx.ModelProto:
    """``x + x, times x, plus x, ...``: kernels that no optimiser removes."""
    onnx = import_onnx()
    float32 = onnx.TensorProto.FLOAT
    names = ["x", *(f"v{i}" for i in range(length))]
    nodes = [
        onnx.helper.make_node(("Add", "Mul")[i % 2], [names[i], "x"], [names[i + 1]], name=f"n{i}")
        for i in range(length)
    ]
    ends = [onnx.helper.make_tensor_value_info(name, float32, [1, 8]) for name in (names[0], names[-1])]
    return _model(onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:]))


def _reference_model(dtype: str) -> onnx.ModelProto:
    """A convolution, as most of what is timed: it slows with the clock and with the caches."""
    node = import_onnx().helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    return _convolutions([node], {"w": (64, 64, 3, 3)}, (1, 64, 28, 28), dtype)


def _block_model(dtype: str) -> onnx.ModelProto:
    """The block of :meth:`Backend.traffic`."""
    node = import_onnx().helper.make_node
    narrow, wide = BLOCK_INPUT[1], BLOCK_WIDTH
    nodes = [
        node("Conv", ["x", "expand"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "depthwise"], ["c"], pads=[1, 1, 1, 1], group=wide),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "project"], ["e"]),
        node("Add", ["e", "x"], ["y"]),
    ]
    shapes = {
        "expand": (wide, narrow, 1, 1),
        "depthwise": (wide, 1, 3, 3),
        "project": (narrow, wide, 1, 1),
    }
    return _convolutions(nodes, shapes, BLOCK_INPUT, dtype)


def _convolutions(
    nodes: Sequence[Any], weights: Mapping[str, tuple[int, ...]], shape: tuple[int, ...], dtype: str
) -> onnx.ModelProto:
    """A model from ``x`` to ``y`` of one shape, with weights that keep values of one order of size."""
    onnx = import_onnx()
    element = {"float64": onnx.TensorProto.DOUBLE, "float16": onnx.TensorProto.FLOAT16}
    kind = element.get(dtype, onnx.TensorProto.FLOAT)
    number = onnx.helper.tensor_dtype_to_np_dtype(kind)
    values = [
        onnx.numpy_helper.from_array(np.full(size, 1 / np.prod(size[1:]), number), name)
        for name, size in weights.items()
    ]
    ends = [onnx.helper.make_tensor_value_info(name, kind, list(shape)) for name in "xy"]
    return _model(onnx.helper.make_graph(nodes, "yardstick", ends[:1], ends[1:], values))
