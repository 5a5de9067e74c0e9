"""Networks in processes of their own: what comes back, and what goes wrong there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from latmorph.device.backend import Backend
from latmorph.device.eager import CpuEager
from latmorph.device.fresh import FreshProcesses, visitor_of
from latmorph.device.registry import backend_of
from latmorph.device.sampling import NetworkBuilder
from latmorph.device.simulated import Simulated
from latmorph.device.timing import StopRule, Visit, Visitor
from latmorph.errors import DeviceError
from latmorph.opspec import OpSpec, Step, footprint_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

RULE = StopRule(least=3, most=3)


def network(width: int = 8) -> tuple[Step, ...]:
    net = NetworkBuilder((1, 3, 8, 8))
    x = net.activation(net.batch_norm(net.conv(-1, width, 3)), "relu")
    net.linear(net.flatten(net.global_pool(net.binary("add", x, x))), 5)
    return tuple(net.steps)


@pytest.fixture(scope="module", params=["eager", "onnxruntime"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "eager":
        return CpuEager()
    pytest.importorskip("onnxruntime")
    from latmorph.device.onnxruntime import OnnxRuntime

    return OnnxRuntime()


@pytest.fixture(scope="module")
def visitor(backend: Backend) -> Iterator[Visitor]:
    with visitor_of(backend) as found:
        yield found


def test_a_visit_elsewhere_holds_what_one_here_would(backend: Backend, visitor: Visitor) -> None:
    steps = network()
    visit = visitor(7, 2, steps, 3 << 20, RULE)
    assert (visit.network, visit.visit) == (7, 2)
    assert visit.footprint_bytes == footprint_bytes(visit.specs) + (3 << 20)
    assert {len(times) for times in visit.times_s} == {3}
    assert len(visit.times_s) == len(visit.specs)
    assert (len(visit.whole_s), len(visit.references_s)) == (4, 3 + 4)
    assert all(t > 0 for times in visit.times_s for t in times)
    if backend.fingerprint().runtime == "eager":
        assert [s.kind for s in visit.specs] == [s.spec.kind for s in steps]


def test_one_network_after_another_is_visited(visitor: Visitor) -> None:
    widths = [4, 12, 5]
    visits = [visitor(k, 0, network(w), 0, RULE) for k, w in enumerate(widths)]
    assert [v.network for v in visits] == [0, 1, 2]
    for width, visit in zip(widths, visits, strict=True):  # a runtime may pad to blocks of 16 channels
        written = {t.shape[1] for s in visit.specs for t in s.outputs if len(t.shape) == 4}
        assert written & {width, -(-width // 16) * 16}


def test_an_error_there_is_told_here_and_others_go_on(visitor: Visitor) -> None:
    broken = [replace(s, spec=OpSpec("unknown:aten.fft", s.spec.inputs, s.spec.outputs)) for s in network()]
    with pytest.raises(DeviceError, match="fft"):
        visitor(0, 0, broken, 0, RULE)
    assert visitor(1, 0, network(), 0, RULE).network == 1


def test_two_threads_run_there(backend: Backend) -> None:
    # A pool of threads does not outlive a fork: what is forked must never have run on two.
    fingerprint = msgspec.structs.replace(backend.fingerprint(), threads=2)
    with visitor_of(backend_of(fingerprint)) as visitor:
        assert len(visitor(0, 0, network(64), 0, RULE).whole_s) == 4


def process(backend: Backend, **arguments: object) -> tuple[int, int, dict[str, object]]:
    return os.getpid(), os.getppid(), arguments


def die(backend: Backend) -> None:
    os._exit(3)


def remember() -> None:
    os.environ["LATMORPH_TEST_REMEMBERED"] = "yes"


def remembered(backend: Backend) -> str | None:
    return os.environ.get("LATMORPH_TEST_REMEMBERED")


def no_luck() -> None:
    raise ValueError("no luck")


def test_every_call_has_a_process_of_its_own() -> None:
    with FreshProcesses(CpuEager().fingerprint()) as call:
        (one, parent, given), (other, again, _) = call(process, word="a", numbers=[1, 2]), call(process)
    assert given == {"word": "a", "numbers": [1, 2]}
    assert len({one, other, parent, os.getpid()}) == 4
    assert parent == again


def test_what_is_prepared_once_all_calls_find() -> None:
    with FreshProcesses(CpuEager().fingerprint(), remember) as call:
        assert [call(remembered), call(remembered)] == ["yes", "yes"]
    with FreshProcesses(CpuEager().fingerprint()) as call:
        assert call(remembered) is None


def test_what_cannot_be_prepared_is_told_and_nothing_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(DeviceError, match="ValueError: no luck"),
        FreshProcesses(CpuEager().fingerprint(), no_luck),
    ):
        raise AssertionError
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_call_whose_process_dies_is_told_and_others_go_on() -> None:
    with FreshProcesses(CpuEager().fingerprint()) as call:
        with pytest.raises(DeviceError, match="died"):
            call(die)
        assert len(call(process)) == 3


def test_a_process_that_dies_is_told() -> None:
    with FreshProcesses(CpuEager().fingerprint()) as call:
        call._parent.kill()
        with pytest.raises(DeviceError, match="ended"):
            call(process)


def test_nothing_is_left_running() -> None:
    with FreshProcesses(CpuEager().fingerprint()) as found:
        number = found._parent.pid
        os.kill(number, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_backend_that_cannot_be_forked_is_visited_here() -> None:
    device = Simulated()
    with visitor_of(device) as visitor:
        visit = visitor(3, 0, network(), 0, RULE)
    assert isinstance(visit, Visit)
    assert visit.network == 3


def test_a_visit_survives_being_written_down() -> None:
    with visitor_of(Simulated()) as visitor:
        visit = visitor(3, 1, network(), 1 << 20, RULE)
    again = Visit.from_builtins(visit.to_builtins())
    assert again.specs == visit.specs
    assert [[round(t, 9) for t in times] for times in visit.times_s] == [list(t) for t in again.times_s]
    assert (again.whole_s, again.references_s, again.traffic_s) == (
        visit.whole_s,
        visit.references_s,
        visit.traffic_s,
    )
