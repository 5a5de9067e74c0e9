"""ONNX Runtime: the kernels that it makes of networks, their times, its options; against itself and torch."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latmorph as lm
import latmorph.device.onnxruntime as module
from latmorph import ops
from latmorph.device.fingerprint import Fingerprint
from latmorph.device.lowering import read_kernels
from latmorph.device.onnxruntime import Lowering, OnnxRuntime, SessionOptions
from latmorph.device.registry import backend_of, lowering_of, open_backend
from latmorph.device.sampling import NetworkBuilder, sample_network
from latmorph.errors import DeviceError, UsageError
from latmorph.onnx_model import to_onnx
from latmorph.opspec import OpSpec, Step

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OPTIONS = SessionOptions()
LOWERING = Lowering(OPTIONS)
BLOCK = LOWERING.block


def block_net(width: int, inner: int) -> tuple[Step, ...]:
    """Stem, one residual block, a head."""
    net = NetworkBuilder((1, 3, 32, 32))
    x = net.activation(net.batch_norm(net.conv(-1, width, 3)), "relu")
    y = net.activation(net.batch_norm(net.conv(x, inner, 3)), "relu")
    y = net.batch_norm(net.conv(y, width, 3))
    x = net.activation(net.binary("add", y, x), "relu")
    net.linear(net.flatten(net.global_pool(x)), 10)
    return tuple(net.steps)


def flops(steps: Sequence[Step]) -> int:
    return sum(int(ops.flops(s.spec)) for s in steps)


def kinds(steps: Sequence[Step], lowering: Lowering = LOWERING) -> list[str]:
    return [k.spec.kind for k in lowering.network(steps)]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files go to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Lowering


def test_a_convolution_with_its_norm_and_activation_is_one_kernel() -> None:
    net = NetworkBuilder((1, 3, 20, 20))
    net.activation(net.batch_norm(net.conv(-1, 2 * BLOCK, 3)), "relu")
    conv, back = LOWERING.network(net.steps)
    assert conv.spec.kind == "nchwc.Conv"
    assert conv.spec["X"].shape == (1, 3, 20, 20)
    assert conv.spec["W"].shape == (2 * BLOCK, 3, 3, 3)
    assert conv.spec["W"].parameter
    assert not conv.spec["X"].parameter
    assert conv.spec.attr("activation") == "Relu"
    assert ops.flops(conv.spec) == 2 * 2 * BLOCK * 20 * 20 * 27
    assert ops.handler_of("nchwc.Conv").family(conv.spec) == "nchwc.first"
    assert back.spec.kind == "nchwc.ReorderOutput"
    assert back.spec.out.shape == (1, 2 * BLOCK, 20, 20)
    assert conv.step == 0  # the convolution, not the activation that it was fused with


def test_stored_shapes_are_whole_blocks_and_flops_are_those_that_are_done() -> None:
    width = BLOCK + 4  # a multiple of 4 stays in blocks, the second of which is not full
    net = NetworkBuilder((1, 3, 20, 20))
    net.conv(net.conv(-1, width, 3), width, 3)
    second = LOWERING.network(net.steps)[1].spec
    assert second["X"].shape == (1, 2 * BLOCK, 20, 20)
    assert second["W"].shape == (2 * BLOCK, 2 * BLOCK, 3, 3)
    assert ops.flops(second) == 2 * (2 * BLOCK) ** 2 * 9 * 20 * 20


def test_flops_of_all_kernels_are_those_of_the_network_where_blocks_are_full() -> None:
    steps = block_net(32, 64)
    assert sum(int(ops.flops(k.spec)) for k in LOWERING.network(steps)) == flops(steps)


def test_an_odd_width_costs_the_blocked_layout() -> None:
    aligned, odd = Counter(kinds(block_net(32, 32))), Counter(kinds(block_net(32, 31)))
    assert aligned["nchwc.Conv"] == 3
    assert odd["nchwc.Conv"] == 2
    assert odd["onnx.Conv"] + odd["microsoft.FusedConv"] == 1
    assert odd["nchwc.ReorderOutput"] > aligned["nchwc.ReorderOutput"]


def seen(steps: Sequence[Step], options: SessionOptions, folder: Path) -> list[tuple[str, list[Any]]]:
    """Operator and output shapes of every kernel, as the runtime itself tells them after a run."""

    def configure(session: Any) -> None:
        session.enable_profiling = True
        session.profile_file_prefix = str(folder / "seen")

    session = options.session(to_onnx(steps).SerializeToString(), configure)
    session.run(None, {v.name: module._example(v) for v in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return [
        (e["args"]["op_name"], [tuple(next(iter(t.values()))) for t in e["args"]["output_type_shape"]])
        for e in events
        if e["cat"] == "Node" and e["name"].endswith("_kernel_time")
    ]


@pytest.mark.parametrize("seed", range(14))
def test_kernels_and_shapes_are_those_that_the_runtime_runs(seed: int, tmp_path: Path) -> None:
    steps = sample_network(seed, largest_flops=3e7)
    found = LOWERING.network(steps)
    # Of branches, either may come first: the model that is run here holds its weights inside.
    told = sorted(seen(steps, OPTIONS, tmp_path))
    assert sorted((k.spec.kind.rpartition(".")[2], [t.shape for t in k.spec.outputs]) for k in found) == told
    assert all(ops.is_known(k.spec) for k in found), [k.spec.kind for k in found if not ops.is_known(k.spec)]
    assert all(0 <= k.step < len(steps) for k in found)


def test_networks_asked_for_together_are_what_they_are_alone() -> None:
    networks = [block_net(32, w) for w in (8, 16, 31, 31)] + [sample_network(3, largest_flops=1e7)]
    module._LOWERED.clear()
    together = LOWERING.networks(networks)
    module._LOWERED.clear()
    for network, found in zip(networks, together, strict=True):
        alone = LOWERING.network(network)
        assert [(k.spec, k.step) for k in alone] == [(k.spec, k.step) for k in found]


def test_the_runtime_is_asked_once_for_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = module._side_by_side

    def counted(networks: Any, options: SessionOptions) -> Any:
        asked.append(len(networks))
        return real(networks, options)

    module._LOWERED.clear()
    monkeypatch.setattr(module, "_side_by_side", counted)
    LOWERING.networks([block_net(16, 16), block_net(16, 24), block_net(16, 16)])
    LOWERING.network(block_net(16, 24))
    assert asked == [2]
    Lowering(SessionOptions(optimisation="basic")).network(block_net(16, 24))
    assert asked == [2, 1]


def test_without_optimisation_nothing_is_fused() -> None:
    plain = Lowering(SessionOptions(optimisation="none"))
    found = Counter(kinds(block_net(32, 32), plain))
    assert found["onnx.Conv"] == 3
    assert found["onnx.BatchNormalization"] == 3
    assert not any(kind.startswith("nchwc") for kind in found)


def test_a_fused_convolution_is_traced_to_its_own_step() -> None:
    steps = block_net(32, 32)
    convolutions = [i for i, s in enumerate(steps) if s.spec.kind == "conv2d"]
    found = [k.step for k in LOWERING.network(steps) if k.spec.kind == "nchwc.Conv"]
    assert found == convolutions


def file_of(folder: Path, nodes: list[Any], shape: list[Any], outputs: list[Any]) -> Path:
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", float32, shape)],
        [helper.make_tensor_value_info("y", *outputs)],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_kernel_that_is_not_known_is_named(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"]),
        onnx.helper.make_node("NonZero", ["a"], ["y"]),
    ]
    path = file_of(tmp_path, nodes, [2, 3], [onnx.TensorProto.INT64, [2, None]])
    assert [k.spec.kind for k in LOWERING.file(path, [(2, 3)])] == ["onnx.Relu", "unknown:onnx.NonZero"]


def test_a_file_with_open_sizes_is_lowered_for_the_shapes_given(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["a"]), onnx.helper.make_node("Exp", ["a"], ["y"])]
    path = file_of(tmp_path, nodes, ["batch", 3], [onnx.TensorProto.FLOAT, ["batch", 3]])
    assert [k.spec.out.shape for k in LOWERING.file(path, [(7, 3)])] == [(7, 3), (7, 3)]


def test_a_file_that_the_runtime_refuses_is_named_in_one_line(tmp_path: Path) -> None:
    path = file_of(
        tmp_path, [onnx.helper.make_node("NoSuch", ["x"], ["y"])], [1], [onnx.TensorProto.FLOAT, [1]]
    )
    with pytest.raises(DeviceError, match=r"cannot load .*model\.onnx") as caught:
        LOWERING.file(path, [(1,)])
    assert "\n" not in str(caught.value)


def test_products_of_operands_whose_rows_lie_before_their_batch_are_known() -> None:
    # Attention with heads between rows and sizes, as torchvision's: transposes are fused into products.
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.MultiheadAttention(24, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x, x, x, need_weights=False)[0]

    graph = lm.capture(Attention().eval(), (torch.randn(1, 10, 24),))
    kernels = [k.spec for k in LOWERING.network(graph.steps_at(graph.widths))]
    assert not [k.kind for k in kernels if k.kind.startswith("unknown")]
    fused = [k.out.shape for k in kernels if k.kind == "microsoft.FusedMatMul"]
    assert fused == [(1, 3, 10, 10), (1, 3, 10, 8)]
    assert [k.out.shape for k in kernels if k.kind == "onnx.Softmax"] == [(1, 3, 10, 10)]


def test_a_value_whose_shape_no_rule_gives_makes_its_kernel_unknown() -> None:
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("RotaryEmbedding", ["x", "x"], ["a"], domain="com.microsoft")],
        "g",
        [helper.make_tensor_value_info("x", float32, [2, 3])],
        [],
    )
    (kernel,) = read_kernels(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), 8, [])
    assert kernel.spec.kind == "unknown:microsoft.RotaryEmbedding"


# --- OnnxRuntime


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_tells_every_kernel_of_every_clocked_pass(threads: int) -> None:
    options = SessionOptions(threads=threads)
    steps = block_net(32, 31)
    with OnnxRuntime(options=options) as backend:
        session = backend.load(steps, 1000)
        totals = [session.time_steps() for _ in range(3)]
        assert all(0 < t < 60 for t in (session.time_whole(), *totals))
        specs, passes = session.finish()
    assert specs == tuple(k.spec for k in Lowering(options).network(steps))
    assert [len(times) for times in passes] == [len(specs)] * 3
    assert all(0 < t < 60 for times in passes for t in times)


def test_a_network_loaded_again_has_its_kernels_in_the_same_order() -> None:
    # The runtime itself runs the branches of such a network in an order that changes from load to load.
    steps = sample_network(6, largest_flops=3e7)
    orders = []
    with OnnxRuntime() as backend:
        for _ in range(6):
            session = backend.load(steps)
            session.time_steps()
            orders.append(session.finish()[0])
    assert all(order == orders[0] for order in orders)


def test_a_session_that_is_never_clocked_finishes_too() -> None:
    with OnnxRuntime() as backend:
        specs, passes = backend.load(block_net(16, 16)).finish()
    assert len(specs) > 3
    assert passes == []


def test_the_clocks_overhead_is_taken_off_and_the_first_pass_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = NetworkBuilder((1, 8))
    net.activation(-1, "relu")
    with OnnxRuntime() as backend:
        assert isinstance(backend, OnnxRuntime)
        # 220 kernels take 200 more than 20: clocked, 2.5 us each; not, half a microsecond.
        chains = {220: (700e-6, 120e-6), 20: (200e-6, 20e-6)}
        monkeypatch.setattr(backend, "_chain", lambda length: chains[length])
        assert backend.clock_s == pytest.approx(2e-6)
        told = iter([900, 12, 7, 1])
        real = module._kernel_events

        def planted(path: Path) -> Any:
            events = real(path)
            for event in events:
                event.dur = next(told)
            return events

        session = backend.load(net.steps)
        for _ in range(3):
            session.time_steps()
        monkeypatch.setattr(module, "_kernel_events", planted)
        _, passes = session.finish()
    assert [times[0] for times in passes] == pytest.approx([10e-6, 5e-6, module.FLOOR_S])


def test_times_stand_with_the_kernels_that_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._kernel_events
    planted = {"Conv": 700, "Relu": 300, "Concat": 500, "AveragePool": 200}

    def told(path: Path) -> Any:
        events = real(path)
        for event in events:
            event.dur = planted.get(event.args["op_name"], 100)
        return events

    monkeypatch.setattr(module, "_kernel_events", told)
    net = NetworkBuilder((1, 12, 14, 14))
    x = net.activation(-1, "relu", inplace=False)
    x = net.pool(net.cat([net.conv(x, 20), net.conv(x, 9, 1)]), "avg_pool2d", 2, 2)
    net.activation(net.conv(x, 16, 1), "softplus")
    with OnnxRuntime() as backend:
        assert isinstance(backend, OnnxRuntime)
        backend._clock_s = 0.0
        session = backend.load(tuple(net.steps))
        session.time_steps()
        specs, (times,) = session.finish()
    expected = [planted.get(spec.kind.rpartition(".")[2], 100) * 1e-6 for spec in specs]
    assert len(set(expected)) == 5
    assert times == pytest.approx(expected)


def test_a_chain_of_kernels_is_clocked_and_timed() -> None:
    with OnnxRuntime() as backend:
        assert isinstance(backend, OnnxRuntime)
        clocked, whole = backend._chain(20, passes=3)
        assert 0 < whole < 10
        assert 0 < clocked < 10
        assert 0 <= backend.clock_s < 1


def test_kernels_that_were_not_written_down_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._kernel_events
    with OnnxRuntime() as backend:
        session = backend.load(block_net(16, 16))
        session.time_steps()
        monkeypatch.setattr(module, "_kernel_events", lambda path: real(path)[:-1])
        with pytest.raises(DeviceError, match="other kernels"):
            session.finish()


class Counted(np.ndarray):
    """An array that knows how often it was summed."""

    sums = 0

    def sum(self, *args: Any, **keywords: Any) -> Any:
        self.sums += 1
        return super().sum(*args, **keywords)


def test_other_memory_is_read_to_disturb_and_in_no_pass() -> None:
    with OnnxRuntime() as backend:
        assert isinstance(backend, OnnxRuntime)
        large, small = backend.load(block_net(16, 16), 4096), backend.load(block_net(16, 16), 100)
        assert backend._buffer.nbytes == 4096  # one for both
        assert backend._buffer.all()  # never written, all of its pages would be one
        for session, count in ((large, 4096), (small, 100)):
            assert isinstance(session, module._OrtSession)
            assert session.scratch.nbytes == count
            session.scratch = session.scratch.view(Counted)
            session.disturb()
            session.time_steps()
            session.time_whole()
            assert session.scratch.sums == 1


@pytest.mark.parametrize("end", ["finish", "forget", "raise"])
def test_nothing_is_left_in_the_temporary_folder_or_here(temporary: Path, end: str) -> None:
    def run() -> None:
        with OnnxRuntime() as backend:
            session = backend.load(block_net(16, 16))
            session.time_steps()
            if end == "raise":
                raise RuntimeError("inside")
            if end == "finish":
                session.finish()
                assert len(list(temporary.iterdir())) == 1  # the backend's own folder
                assert list(next(temporary.iterdir()).iterdir()) == []

    if end == "raise":
        with pytest.raises(RuntimeError, match="inside"):
            run()
    else:
        run()
    module._LOWERED.clear()
    LOWERING.network(block_net(16, 8))
    assert list(temporary.iterdir()) == []


def test_the_reference_is_timed_after_an_untimed_run_of_itself() -> None:
    with OnnxRuntime() as backend:
        assert all(0 < backend.reference() < 60 for _ in range(3))


def test_a_models_own_inputs_or_those_given_are_run(tmp_path: Path) -> None:
    path = file_of(
        tmp_path, [onnx.helper.make_node("Neg", ["x"], ["y"])], [2, 3], [onnx.TensorProto.FLOAT, [2, 3]]
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with OnnxRuntime() as backend:
        assert isinstance(backend, OnnxRuntime)
        out: Any = backend.call(path, [x])()
        np.testing.assert_array_equal(out[0], -x)
        out = backend.call(path)()
        assert out[0].shape == (2, 3)
        with pytest.raises(UsageError, match=r"takes 1 inputs \(x\), got 2"):
            backend.call(path, [x, x])
    path = file_of(
        tmp_path, [onnx.helper.make_node("Neg", ["x"], ["y"])], ["n"], [onnx.TensorProto.FLOAT, ["n"]]
    )
    with OnnxRuntime() as backend:
        assert isinstance(backend, OnnxRuntime)
        with pytest.raises(UsageError, match="input x is open"):
            backend.call(path)


# --- Options


def test_options_are_part_of_a_profiles_identity() -> None:
    usual = OnnxRuntime().fingerprint()
    assert usual.runtime == "onnxruntime"
    assert usual.runtime_version == f"onnxruntime {onnxruntime.__version__}"
    assert usual.slug.endswith("-onnxruntime-float32-1t")
    others = [
        SessionOptions(spinning=False),
        SessionOptions(optimisation="basic"),
        SessionOptions(threads=2),
    ]
    slugs = set()
    for options in others:
        fingerprint = OnnxRuntime(options=options).fingerprint()
        assert len(usual.differences(fingerprint)) == 1
        slugs.add(fingerprint.slug)
        assert lowering_of(fingerprint) == Lowering(options)
        again = backend_of(fingerprint)
        assert isinstance(again, OnnxRuntime)
        assert again.options == options
    assert len(slugs | {usual.slug}) == 4
    assert usual.differences(OnnxRuntime(options=others[1]).fingerprint()) == ["optimisation all, not basic"]


@pytest.mark.parametrize("spinning", [True, False])
def test_threads_spin_within_passes_as_asked_and_never_between_them(spinning: bool) -> None:
    given = OnnxRuntime(options=SessionOptions(2, spinning)).options.session(
        to_onnx(block_net(16, 16)).SerializeToString()
    )
    entry = given.get_session_options().get_session_config_entry
    assert entry("session.intra_op.allow_spinning") == str(int(spinning))
    assert entry("session.force_spinning_stop") == "1"


def test_an_eager_profile_has_no_lowering() -> None:
    eager = open_backend("cpu").fingerprint()
    assert isinstance(eager, Fingerprint)
    assert eager.options == ()
    assert lowering_of(eager) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speed": "11"}, "no option 'speed'.*spinning, optimisation or provider"),
        ({"spinning": "yes"}, "spinning=yes: use one of off, on"),
        ({"optimisation": "most"}, "optimisation=most: use one of none, basic, extended, all"),
        ({"provider": "AbacusExecutionProvider"}, "AbacusExecutionProvider: this onnxruntime has .*CPU"),
    ],
)
def test_options_that_do_not_exist_are_refused_by_name(given: dict[str, str], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        open_backend("cpu", runtime="onnxruntime", options=given)


def test_eager_takes_no_options_and_other_devices_have_no_onnxruntime() -> None:
    with pytest.raises(DeviceError, match="eager takes no options, got spinning"):
        open_backend("cpu", options={"spinning": "on"})
    with pytest.raises(DeviceError, match="cpu only, not on cuda"):
        open_backend("cuda", runtime="onnxruntime")


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match=r"pip install latmorph\[onnx\]"):
        open_backend("cpu", runtime="onnxruntime")


def test_a_network_without_a_form_in_onnx_is_refused_by_name() -> None:
    spec = OpSpec("no_such", block_net(8, 8)[0].spec.inputs[:1], block_net(8, 8)[0].spec.outputs)
    with OnnxRuntime() as backend, pytest.raises(UsageError, match="no_such"):
        backend.load([Step(spec, ((-1, 0),))])
