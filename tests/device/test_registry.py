"""Backends by name, and what is said when there is none."""

from __future__ import annotations

import pytest
import torch

from latmorph.device.eager import CpuEager
from latmorph.device.registry import DEVICES, DTYPES, RUNTIMES, open_backend
from latmorph.errors import DeviceError


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpu_backend_carries_what_was_asked_for(dtype: str) -> None:
    backend = open_backend("cpu", dtype=dtype, threads=3)
    assert isinstance(backend, CpuEager)
    fingerprint = backend.fingerprint()
    assert (fingerprint.device, fingerprint.runtime) == ("cpu", "eager")
    assert (fingerprint.dtype, fingerprint.threads) == (dtype, 3)


@pytest.mark.parametrize(
    ("arguments", "bad", "known"),
    [
        ({"device": "tpu"}, "device 'tpu'", DEVICES),
        ({"device": ""}, "device ''", DEVICES),
        ({"device": "cpu", "runtime": "tvm"}, "runtime 'tvm'", RUNTIMES),
        ({"device": "cpu", "dtype": "int4"}, "dtype 'int4'", DTYPES),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    arguments: dict[str, str], bad: str, known: tuple[str, ...]
) -> None:
    with pytest.raises(DeviceError) as caught:
        open_backend(**arguments)  # type: ignore[arg-type]
    assert f"unknown {bad}" in str(caught.value)
    for name in known:
        assert name in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_refused(threads: int) -> None:
    with pytest.raises(DeviceError, match=f"threads must be at least 1, got {threads}"):
        open_backend("cpu", threads=threads)


def test_cuda_without_a_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"no CUDA GPU.*--device cpu"):
        open_backend("cuda")
