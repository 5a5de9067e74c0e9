"""PyTorch eager on the CPU, and on a GPU whose events are planted."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latmorph.device.eager import CpuEager, CudaEager, _Program
from latmorph.device.fingerprint import cpu_cores
from latmorph.device.sampling import NetworkBuilder
from latmorph.errors import DeviceError
from latmorph.opspec import Step


def network() -> tuple[Step, ...]:
    net = NetworkBuilder((1, 3, 8, 8))
    x = net.activation(net.batch_norm(net.conv(-1, 5, 3)), "relu")
    net.linear(net.flatten(net.global_pool(net.binary("add", x, x))), 4)
    return tuple(net.steps)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The state that a backend must restore differs from the one that it sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# --- CpuEager


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_inference_mode_hold_inside_and_are_restored_after(threads: int) -> None:
    with CpuEager(threads=threads):
        assert torch.get_num_threads() == threads
        assert torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == 2
    assert not torch.is_inference_mode_enabled()


def test_threads_and_inference_mode_are_restored_after_an_exception() -> None:
    with pytest.raises(RuntimeError, match="inside"), CpuEager(threads=1):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == 2
    assert not torch.is_inference_mode_enabled()


def test_the_number_of_threads_restored_is_that_at_entry_not_at_construction() -> None:
    backend = CpuEager(threads=1)
    torch.set_num_threads(3)
    with backend:
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_a_backend_can_be_entered_again() -> None:
    backend = CpuEager(threads=1)
    for _ in range(2):
        with backend:
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2


def test_a_session_gives_one_time_a_step_and_one_of_the_whole() -> None:
    with CpuEager() as backend:
        session = backend.load(network(), 1000)
        totals = [session.time_steps() for _ in range(2)]  # a second pass finds all values freed by the first
        assert 0 < session.time_whole() < 60
        specs, passes = session.finish()
    assert [s.kind for s in specs] == [s.spec.kind for s in network()]
    assert [len(times) for times in passes] == [len(network())] * 2
    assert all(0 < t < 60 for times in passes for t in times)
    assert [sum(times) for times in passes] == pytest.approx(totals)


def test_step_times_lie_between_the_clock_readings_around_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([100, 107, 200, 213, 300, 319, 400, 400, 500, 501, 600, 602, 700, 707])
    with CpuEager() as backend:
        session = backend.load(network())
        monkeypatch.setattr("latmorph.device.eager.time.perf_counter_ns", lambda: next(readings))
        session.time_steps()
        _, (times,) = session.finish()
    assert times == pytest.approx([7e-9, 13e-9, 19e-9, 0.0, 1e-9, 2e-9, 7e-9])


class Reads(TorchDispatchMode):
    """Bytes of each tensor that is summed, if it starts where a buffer does."""

    def __init__(self, buffer: torch.Tensor) -> None:
        super().__init__()
        self.start = buffer.data_ptr()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.sum.default and args[0].data_ptr() == self.start:
            self.found.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


def test_other_memory_is_read_to_disturb_and_in_no_pass() -> None:
    with CpuEager() as backend:
        assert isinstance(backend, CpuEager)
        # A twin's weights are other memory too: what is left of it is read beside them.
        held = sum(int(step.spec.parameter_bytes) for step in network())
        large, small = backend.load(network(), held + 4096), backend.load(network(), held + 100)
        assert backend._buffer is not None
        assert backend._buffer.nbytes == held + 4096  # one for both
        assert backend._buffer.all()  # never written, all of its pages would be one
        for session, count in ((large, 4096), (small, 100)):
            with Reads(backend._buffer) as reads:
                session.disturb()
                session.time_steps()
                session.time_whole()
            assert reads.found == [count]


def test_a_twin_with_weights_of_its_own_runs_to_disturb() -> None:
    log: list[str] = []

    def logged(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: torch.Tensor) -> Any:
            log.append(name)
            return call(*inputs)

        return run

    with CpuEager() as backend:
        session: Any = backend.load(network(), 4096)
        weights = [
            {p.data_ptr() for call in program.calls for p in getattr(call, "parameters", list)()}
            for program in (session.program, session.twin)
        ]
        session.program.calls[0] = logged("program", session.program.calls[0])
        session.twin.calls[0] = logged("twin", session.twin.calls[0])
        for run in (session.disturb, session.time_steps, session.time_whole):
            run()
        alone: Any = backend.load(network())
    assert log == ["twin", "program", "program"]
    assert weights[0]
    assert not weights[0] & weights[1]
    assert alone.twin is None


def test_two_sessions_share_no_weights() -> None:
    with CpuEager() as backend:
        one, other = backend.load(network()), backend.load(network())
        inputs = {s.program.inputs[0].data_ptr() for s in (one, other)}  # type: ignore[attr-defined]
    assert len(inputs) == 2


def test_a_value_is_freed_after_its_last_reader_as_in_a_networks_forward() -> None:
    net = NetworkBuilder((1, 4, 3, 3))
    a = net.activation(-1, "relu", inplace=False)
    b = net.activation(a, "relu", inplace=False)
    c = net.binary("add", a, b)
    d = net.activation(c, "relu", inplace=False)
    net.binary("add", c, d)
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[list[int]] = []

    def watched(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def forward(*inputs: torch.Tensor) -> torch.Tensor:
            alive.append([i for i, ref in enumerate(made) if ref() is not None])
            out = call(*inputs)
            made.append(weakref.ref(out))
            return out

        return forward

    with CpuEager() as backend:
        session: Any = backend.load(net.steps)
        session.program.calls = [watched(call) for call in session.program.calls]
        session.time_whole()
    # What lives when each step begins: `a` is read by two, `c` by two, `b` and `d` by one.
    assert alive == [[], [0], [0, 1], [2], [2, 3]]


def test_the_reference_is_timed_after_an_untimed_run_of_itself() -> None:
    timed: list[Callable[[], object]] = []

    class Watched(CpuEager):
        def time_call(self, call: Callable[[], object]) -> float:
            timed.append(call)
            return super().time_call(call)

    with Watched() as backend:
        assert all(0 < backend.reference() < 60 for _ in range(3))
        out = timed[0]()
    assert len(set(timed)) == 1  # always the same operator
    assert isinstance(out, torch.Tensor)
    assert out.shape == (1, 64, 28, 28)


def test_the_reference_has_the_backends_dtype() -> None:
    timed: list[Callable[[], object]] = []

    class Watched(CpuEager):
        def time_call(self, call: Callable[[], object]) -> float:
            timed.append(call)
            return 1.0

    with Watched(dtype="float64") as backend:
        backend.reference()
        out = timed[0]()
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.float64


def test_time_call_runs_the_call_once_between_two_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    readings, calls = iter([1_000, 3_500]), []
    monkeypatch.setattr("latmorph.device.eager.time.perf_counter_ns", lambda: next(readings))
    assert CpuEager().time_call(lambda: calls.append(1)) == pytest.approx(2.5e-6)
    assert calls == [1]


def test_the_cpus_fingerprint_says_what_was_asked_for_and_where() -> None:
    fingerprint = CpuEager(dtype="bfloat16", threads=3).fingerprint()
    assert (fingerprint.device, fingerprint.runtime) == ("cpu", "eager")
    assert (fingerprint.dtype, fingerprint.threads) == ("bfloat16", 3)
    assert fingerprint.runtime_version == f"torch {torch.__version__.split('+')[0]}"
    assert fingerprint.cores == cpu_cores()


# --- CudaEager, on planted events


class FakeCuda:
    """Stands for ``torch.cuda``: a stream that is a log, and events whose distances are planted."""

    def __init__(self, available: bool = True) -> None:
        self.available = available
        self.log: list[str] = []
        self.made = 0
        self.elapsed_ms: list[float] = []

    def is_available(self) -> bool:
        return self.available

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def get_device_properties(self, index: int) -> Any:
        assert index == 0
        return SimpleNamespace(
            name="Planted GPU 42", multi_processor_count=108, major=8, minor=6, L2_cache_size=40 * 2**20
        )

    def Event(self, *, enable_timing: bool) -> FakeEvent:  # torch's own name
        assert enable_timing
        self.made += 1
        return FakeEvent(self, self.made - 1)


class FakeEvent:
    def __init__(self, cuda: FakeCuda, number: int) -> None:
        self.cuda = cuda
        self.number = number

    def record(self) -> None:
        self.cuda.log.append(f"event {self.number}")

    def elapsed_time(self, end: FakeEvent) -> float:
        log = self.cuda.log
        # On a real GPU an event that the stream has not reached raises.
        assert f"event {end.number}" in log
        assert "synchronize" in log[log.index(f"event {end.number}") :]
        assert end.number == self.number + 1
        return self.cuda.elapsed_ms[self.number // 2]


class CudaOnCpu(CudaEager):
    """The GPU's backend, its tensors on the CPU."""

    device = "cpu"


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


def load_logged(backend: CudaEager, steps: tuple[Step, ...], scratch_bytes: int = 0) -> Any:
    """A session whose steps write themselves into the log."""
    session: Any = backend.load(steps, scratch_bytes)

    def logged(i: int, call: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*inputs: torch.Tensor) -> Any:
            backend.cuda.log.append(f"step {i}")
            return call(*inputs)

        return forward

    session.program.calls = [logged(i, call) for i, call in enumerate(session.program.calls)]
    return session


def test_events_stand_around_each_step_and_are_read_after_synchronising(cuda: FakeCuda) -> None:
    cuda.elapsed_ms = [0.5] * 7
    with CudaOnCpu(cuda=cuda) as backend:
        assert isinstance(backend, CudaEager)
        load_logged(backend, network()).time_steps()
    expected = [[f"event {2 * i}", f"step {i}", f"event {2 * i + 1}"] for i in range(7)]
    assert cuda.log == [*(entry for step in expected for entry in step), "synchronize"]


def test_milliseconds_between_events_become_seconds_a_step(cuda: FakeCuda) -> None:
    cuda.elapsed_ms = [0.5, 0.25, 2.0, 0.001, 0.0, 10.0, 1000.0]
    with CudaOnCpu(cuda=cuda) as backend:
        session = backend.load(network())
        session.time_steps()
        _, (times,) = session.finish()
    assert times == pytest.approx([5e-4, 2.5e-4, 2e-3, 1e-6, 0.0, 1e-2, 1.0])


def test_a_whole_pass_has_no_events_inside_and_is_synchronised_on_both_sides(cuda: FakeCuda) -> None:
    with CudaOnCpu(cuda=cuda) as backend:
        assert isinstance(backend, CudaEager)
        assert load_logged(backend, network()).time_whole() > 0
    assert cuda.log == ["synchronize", *(f"step {i}" for i in range(7)), "synchronize"]


def test_a_call_is_clocked_from_an_idle_gpu_until_it_is_idle_again(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([5_000, 9_000])

    def clock() -> int:
        cuda.log.append("clock")
        return next(readings)

    monkeypatch.setattr("latmorph.device.eager.time.perf_counter_ns", clock)
    backend = CudaOnCpu(cuda=cuda)
    assert backend.time_call(lambda: cuda.log.append("call")) == pytest.approx(4e-6)
    assert cuda.log == ["synchronize", "clock", "call", "synchronize", "clock"]


def test_what_a_network_makes_of_nothing_is_made_where_its_parameters_are() -> None:
    # A device without memory stands for a GPU: tensors left on the CPU do not go with its own.
    net = NetworkBuilder((2, 5, 8))
    x = net.recurrent(-1, "lstm", 4)
    net.binary("add", x, net.create("ones", (2, 5, 4)))
    _Program(tuple(net.steps), "meta").run()


def test_the_gpus_scratch_is_read_to_disturb(cuda: FakeCuda) -> None:
    with CudaOnCpu(cuda=cuda) as backend:
        assert isinstance(backend, CudaEager)
        held = sum(int(step.spec.parameter_bytes) for step in network())
        session = backend.load(network(), held + 256)
        assert backend._buffer is not None
        with Reads(backend._buffer) as reads:
            session.disturb()
        assert reads.found == [256]


def test_the_gpus_backend_leaves_inference_mode_and_threads_as_they_were(cuda: FakeCuda) -> None:
    with pytest.raises(RuntimeError, match="inside"), CudaOnCpu(cuda=cuda):
        assert torch.is_inference_mode_enabled()
        raise RuntimeError("inside")
    assert not torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == 2


def test_the_gpus_fingerprint_comes_from_its_properties(cuda: FakeCuda) -> None:
    fingerprint = CudaEager(dtype="float16", cuda=cuda).fingerprint()
    assert (fingerprint.device, fingerprint.name, fingerprint.cores) == ("cuda", "Planted GPU 42", 108)
    assert fingerprint.features == ("sm_86",)
    assert fingerprint.caches_bytes == (40 * 2**20,)
    assert (fingerprint.dtype, fingerprint.runtime) == ("float16", "eager")


def test_without_a_gpu_the_error_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match=r"'cuda' was asked for, but torch sees no CUDA GPU.*--device cpu"):
        CudaEager(cuda=FakeCuda(available=False))


def test_operators_are_told_with_the_layouts_that_their_operands_have() -> None:
    net = NetworkBuilder((2, 6, 4, 4))
    x = net.activation(-1, "relu", inplace=False)
    y = net.layer_norm(net.permute(x, (0, 2, 3, 1)))
    y = net.permute(net.linear(y, 6), (0, 3, 1, 2))
    net.binary("add", x, y)
    with CpuEager() as backend:
        specs, _ = backend.load(net.steps).finish()
    # The norm reads a permuted tensor and writes a dense one; the sum reads one of each.
    assert [(s.kind, bool(s.attr("strided"))) for s in specs] == [
        ("relu", False),
        ("view", False),
        ("layer_norm", True),
        ("linear", False),
        ("view", False),
        ("add", True),
    ]
