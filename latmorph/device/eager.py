"""PyTorch eager on the CPU and on a CUDA GPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from latmorph import ops
from latmorph.device.backend import BLOCK_INPUT, BLOCK_WIDTH, Backend, Session, StepSession, keep_freed_memory
from latmorph.device.builder import NetworkBuilder
from latmorph.device.fingerprint import Fingerprint, cpu_fingerprint
from latmorph.device.timing import StopRule, visit_network
from latmorph.errors import DeviceError
from latmorph.opspec import OpSpec, Step, TensorSpec, network_inputs
from latmorph.values import ParameterValues, input_values

Call = Callable[..., Any]


class _Program:
    """The steps as calls, with every value freed after its last reader, as a network's forward does."""

    def __init__(self, steps: Sequence[Step], device: str) -> None:
        self.device = device
        self.steps = steps
        values = ParameterValues()

        def parameter(spec: TensorSpec) -> torch.Tensor:
            return self._tensor(spec, values(spec))

        self.calls = [ops.handler_of(s.spec.kind).build(s.spec, parameter) for s in steps]
        self.sources = [s.sources for s in steps]
        last = {source: i for i, s in enumerate(steps) for source, _ in s.sources}
        self.freed = [[v for v, when in last.items() if when == i and v >= 0] for i in range(len(steps))]
        self.inputs = {k: self._tensor(t, input_values(t)) for k, t in network_inputs(steps).items()}

    def _tensor(self, spec: TensorSpec, values: np.ndarray) -> torch.Tensor:
        """The values in memory of torch's own: numpy asks the system for large pages, a module does not."""
        return torch.from_numpy(values).to(self.device, getattr(torch, spec.dtype), copy=True)

    def specs(self) -> tuple[OpSpec, ...]:
        """The operators with the layouts that their operands have in a pass."""
        found: list[OpSpec] = []

        def read(i: int, inputs: list[torch.Tensor]) -> None:
            found.append(ops.laid_out(self.steps[i].spec, all(x.is_contiguous() for x in inputs)))

        self.run(before=read)
        return tuple(found)

    def run(self, before: Call | None = None, after: Call | None = None) -> None:
        """One pass; ``before(i, inputs)`` and ``after(i)`` are called right before and after each step."""
        values: dict[int, Any] = {-1: self.inputs}
        for i, call in enumerate(self.calls):
            inputs = [values[s][k] for s, k in self.sources[i]]
            if before is not None:
                before(i, inputs)
            made = call(*inputs)
            if after is not None:
                after(i)
            values[i] = (made,) if isinstance(made, torch.Tensor) else made
            del inputs, made
            for dead in self.freed[i]:
                del values[dead]


class _EagerSession(StepSession):
    """What sessions on the CPU and on a GPU share."""

    def __init__(self, steps: Sequence[Step], device: str, scratch: torch.Tensor) -> None:
        super().__init__()
        self.program = _Program(steps, device)
        self.twin = _Program(steps, device) if len(scratch) else None
        self.count = len(steps)
        # The twin's weights are other memory too.
        held = sum(int(step.spec.parameter_bytes) for step in steps) // 4
        self.scratch = scratch[: max(0, len(scratch) - held)]

    def specs(self) -> tuple[OpSpec, ...]:
        return self.program.specs()

    def disturb(self) -> None:
        """Read other memory, and run operators of the same kinds, with weights of their own.

        So weights are cold, activations and code are warm. After the memory alone every kind's code is cold
        once a pass, which short networks suffer from most: a tenth, where operators are small.
        """
        if self.twin is not None:
            self.scratch.sum()
            self.twin.run()


class _CpuSession(_EagerSession):
    def clock_steps(self) -> list[float]:
        starts, ends = [0] * self.count, [0] * self.count
        clock = time.perf_counter_ns

        def before(i: int, inputs: list[torch.Tensor]) -> None:
            starts[i] = clock()

        def after(i: int) -> None:
            ends[i] = clock()

        self.program.run(before, after)
        return [(b - a) * 1e-9 for a, b in zip(starts, ends, strict=True)]

    def time_whole(self) -> float:
        start = time.perf_counter_ns()
        self.program.run()
        return (time.perf_counter_ns() - start) * 1e-9


class _Eager(Backend):
    """What the CPU and the GPU share: no gradients, and a reference operator."""

    device = "cpu"

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._buffer: torch.Tensor | None = None
        self._inference: Any = None
        self._reference: Callable[[], object] | None = None
        self._traffic: Callable[[], object] | None = None

    def __enter__(self) -> Backend:
        self._inference = torch.inference_mode()
        self._inference.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._inference.__exit__(*error)

    def _scratch(self, count: int) -> torch.Tensor:
        """A part, of ``count`` bytes, of one buffer of floats that all sessions share."""
        if self._buffer is None or 4 * len(self._buffer) < count:
            self._buffer = torch.ones(count // 4, device=self.device)
        return self._buffer[: count // 4]

    def reference(self) -> float:
        if self._reference is None:
            # A convolution, as most of what is timed: it slows with the clock and with the caches.
            dtype = getattr(torch, self.dtype)
            x = torch.rand(1, 64, 28, 28, device=self.device, dtype=dtype)
            weight = torch.rand(64, 64, 3, 3, device=self.device, dtype=dtype)

            def run() -> object:
                return torch.nn.functional.conv2d(x, weight, padding=1)

            self._reference = run
            for _ in range(3):
                run()
        return self.time_call(self._reference)

    def traffic(self) -> float:
        if self._traffic is None:
            narrow, wide = BLOCK_INPUT[1], BLOCK_WIDTH

            def values(*shape: int) -> torch.Tensor:
                return torch.rand(shape, device=self.device, dtype=getattr(torch, self.dtype))

            x, depthwise = values(*BLOCK_INPUT), values(wide, 1, 3, 3)
            expand, project = values(wide, narrow, 1, 1), values(narrow, wide, 1, 1)

            def run() -> object:
                y = torch.relu(torch.nn.functional.conv2d(x, expand))
                y = torch.relu(torch.nn.functional.conv2d(y, depthwise, padding=1, groups=wide))
                return torch.nn.functional.conv2d(y, project) + x

            self._traffic = run
            run()
        return self.time_call(self._traffic)


class CpuEager(_Eager):
    """PyTorch eager on this machine's CPU, on a fixed number of threads, with memory kept when freed."""

    forks = sys.platform == "linux"

    def __init__(self, *, dtype: str = "float32", threads: int = 1) -> None:
        super().__init__(dtype)
        self.threads = threads
        self._threads_before = torch.get_num_threads()

    def __enter__(self) -> Backend:
        keep_freed_memory()
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        torch.set_num_threads(self._threads_before)

    def fingerprint(self) -> Fingerprint:
        version = f"torch {torch.__version__.split('+')[0]}"
        return cpu_fingerprint("eager", version, self.dtype, self.threads)

    def prepare(self) -> None:
        torch.set_num_threads(1)  # a pool of threads would not live on in forked processes
        small = NetworkBuilder((1, 2, 4, 4), self.dtype)
        x = small.layer_norm(small.activation(small.batch_norm(small.conv(-1, 2)), "relu"))
        small.softmax(small.binary("add", x, x))
        visit_network(self, 0, 0, small.steps, 0, StopRule(least=1, most=1))

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        return _CpuSession(steps, self.device, self._scratch(scratch_bytes))

    def time_call(self, call: Callable[[], object]) -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) * 1e-9


class _CudaSession(_EagerSession):
    """Events stand around each step."""

    def __init__(self, steps: Sequence[Step], backend: CudaEager, scratch: torch.Tensor) -> None:
        super().__init__(steps, backend.device, scratch)
        self.backend = backend
        event = backend.cuda.Event
        self.events = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(len(steps))]

    def clock_steps(self) -> list[float]:
        self.program.run(lambda i, inputs: self.events[i][0].record(), lambda i: self.events[i][1].record())
        self.backend.cuda.synchronize()
        return [a.elapsed_time(b) * 1e-3 for a, b in self.events]

    def time_whole(self) -> float:
        return self.backend.time_call(self.program.run)


class CudaEager(_Eager):
    """PyTorch eager on a CUDA GPU.

    A step's time is what lies between two events in the stream: its kernels, or, where those are
    shorter, the time that the CPU takes to launch the next. So the sum over a network is the larger
    of kernels and launches, step by step.
    """

    device = "cuda"

    def __init__(self, *, dtype: str = "float32", cuda: Any = None) -> None:
        super().__init__(dtype)
        self.cuda = torch.cuda if cuda is None else cuda
        if not self.cuda.is_available():
            raise DeviceError(
                "device 'cuda' was asked for, but torch sees no CUDA GPU on this machine: install a "
                "CUDA build of torch, or use --device cpu"
            )

    def fingerprint(self) -> Fingerprint:
        import platform

        properties = self.cuda.get_device_properties(0)
        return Fingerprint(
            device="cuda",
            name=str(properties.name),
            cores=int(properties.multi_processor_count),
            features=(f"sm_{properties.major}{properties.minor}",),
            caches_bytes=(int(getattr(properties, "L2_cache_size", 0)),),
            runtime="eager",
            runtime_version=f"torch {torch.__version__.split('+')[0]}",
            dtype=self.dtype,
            threads=1,
            system=platform.system(),
        )

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        return _CudaSession(steps, self, self._scratch(scratch_bytes))

    def time_call(self, call: Callable[[], object]) -> float:
        self.cuda.synchronize()
        start = time.perf_counter_ns()
        call()
        self.cuda.synchronize()
        return (time.perf_counter_ns() - start) * 1e-9
