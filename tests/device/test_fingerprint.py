"""What a profile was measured on: differences in words, names for files, what the system files say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from latmorph.device import fingerprint as module
from latmorph.device.fingerprint import Fingerprint, cpu_caches, cpu_cores, cpu_features, cpu_name

HERE = Fingerprint(
    device="cpu",
    name="Example 9000",
    cores=4,
    features=("avx2",),
    caches_bytes=(32768, 1048576),
    runtime="eager",
    runtime_version="torch 2.6.0",
    dtype="float32",
    threads=1,
    system="Linux",
)


def changed(**fields: Any) -> Fingerprint:
    return msgspec.structs.replace(HERE, **fields)


def test_a_machine_does_not_differ_from_itself() -> None:
    assert HERE.differences(changed()) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"device": "cuda"}, "device cpu, not cuda"),
        ({"name": "Example 9001"}, "processor Example 9000, not Example 9001"),
        ({"cores": 8}, "cores 4, not 8"),
        ({"features": ("avx2", "avx512")}, "instruction sets avx2, not avx2 avx512"),
        ({"caches_bytes": (32768,)}, "caches 32768 1048576, not 32768"),
        ({"runtime": "onnxruntime"}, "runtime eager, not onnxruntime"),
        ({"runtime_version": "torch 2.7.0"}, "runtime version torch 2.6.0, not torch 2.7.0"),
        ({"dtype": "bfloat16"}, "dtype float32, not bfloat16"),
        ({"threads": 2}, "threads 1, not 2"),
    ],
)
def test_a_difference_is_said_in_words_ours_first(fields: dict[str, Any], words: str) -> None:
    assert HERE.differences(changed(**fields)) == [words]


def test_every_difference_is_listed() -> None:
    assert len(HERE.differences(changed(cores=8, threads=2, dtype="float64"))) == 3


@pytest.mark.parametrize(
    ("fields", "akin"),
    [
        ({"device": "cuda"}, False),
        ({"runtime": "onnxruntime"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"name": "Example 9001", "features": (), "caches_bytes": ()}, True),
        ({"runtime_version": "torch 2.7.0", "threads": 2, "cores": 8, "options": (("a", "b"),)}, True),
    ],
)
def test_those_on_which_the_same_operators_run_are_akin(fields: dict[str, Any], akin: bool) -> None:
    assert HERE.is_akin(changed(**fields)) is changed(**fields).is_akin(HERE) is akin


def test_another_processor_is_further_than_anything_else_of_the_same() -> None:
    others = [
        changed(),
        changed(threads=2),
        changed(threads=2, cores=8, runtime_version="torch 2.7.0", options=(("a", "b"),)),
        changed(name="Example 9001"),
        changed(features=("avx2", "avx512"), threads=2),
        changed(name="Example 9001", caches_bytes=(32768,), threads=2),
    ]
    distances = [other.distance(HERE) for other in others]
    assert distances == sorted(distances)
    assert len(set(distances)) == len(distances)
    assert distances == [HERE.distance(other) for other in others]


def test_the_operating_system_makes_no_difference() -> None:
    assert HERE.differences(changed(system="Darwin")) == []


@pytest.mark.parametrize(
    ("fields", "slug"),
    [
        ({}, "cpu-example-9000-eager-float32-1t"),
        ({"threads": 4, "dtype": "bfloat16"}, "cpu-example-9000-eager-bfloat16-4t"),
        (
            {"name": "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz"},
            "cpu-intel-core-i7-9750h-eager-float32-1t",
        ),
        ({"name": "AMD EPYC 7B13"}, "cpu-amd-epyc-7b13-eager-float32-1t"),
        # A name without a number says little: the widest instruction set stands in.
        (
            {"name": "Intel(R) Xeon(R) Processor @ 2.20GHz", "features": ("avx2", "avx512", "amx")},
            "cpu-intel-xeon-amx-eager-float32-1t",
        ),
        ({"name": "Intel Xeon Processor", "features": ("avx2",)}, "cpu-intel-xeon-avx2-eager-float32-1t"),
        ({"name": "aarch", "features": ("neon",)}, "cpu-aarch-eager-float32-1t"),
        ({"name": "", "features": ()}, "cpu-eager-float32-1t"),
        # A GPU has no number of threads.
        ({"device": "cuda", "name": "NVIDIA A100-SXM4-40GB"}, "cuda-nvidia-a100-sxm4-40gb-eager-float32"),
    ],
)
def test_the_slug_is_a_plain_name_for_files(fields: dict[str, Any], slug: str) -> None:
    assert changed(**fields).slug == slug


def test_a_fingerprint_reads_back_from_json_and_refuses_unknown_fields() -> None:
    text = msgspec.json.encode(HERE)
    assert msgspec.json.decode(text, type=Fingerprint) == HERE
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text[:-1] + b',"extra":1}', type=Fingerprint)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Replaces the system's files by what a test writes."""
    monkeypatch.setattr(module, "Path", lambda name: tmp_path / name.lstrip("/"))

    def write(name: str, text: str) -> None:
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_an_x86_processor_is_read_from_cpuinfo(system: Callable[[str, str], None]) -> None:
    system(
        "/proc/cpuinfo",
        "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Example: 9000 @ 2 GHz\n"
        "flags\t\t: fpu sse avx2 avx512f amx_tile\n\nprocessor\t: 1\nmodel name\t: Other\nflags\t: fpu\n",
    )
    assert cpu_name() == "Example: 9000 @ 2 GHz"
    assert cpu_features() == ("avx2", "avx512", "amx")


def test_an_arm_processor_is_read_from_cpuinfo(system: Callable[[str, str], None]) -> None:
    system("/proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd sve crc32\n\nModel\t\t: Board 5\n")
    assert cpu_name() == "Board 5"
    assert cpu_features() == ("neon", "sve")


def test_a_flag_that_only_begins_like_a_known_one_is_not_it(system: Callable[[str, str], None]) -> None:
    system("/proc/cpuinfo", "flags\t: avx512fp16 avx2x noavx2\n")
    assert cpu_features() == ()


def test_without_cpuinfo_there_is_still_a_name_and_no_features(
    system: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert cpu_name() == "riscv64"
    assert cpu_features() == ()
    assert cpu_caches() == ()


def test_data_caches_are_listed_from_level_1_up_in_bytes(system: Callable[[str, str], None]) -> None:
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "32K"), (3, "Unified", "30M"), (2, "Unified", "2048K")]
    ):
        folder = f"/sys/devices/system/cpu/cpu0/cache/index{index}"
        system(f"{folder}/level", f"{level}\n")
        system(f"{folder}/type", f"{kind}\n")
        system(f"{folder}/size", f"{size}\n")
    assert cpu_caches() == (48 * 1024, 2048 * 1024, 30 * 1024**2)


def test_a_cache_that_does_not_tell_its_size_is_left_out(system: Callable[[str, str], None]) -> None:
    folder = "/sys/devices/system/cpu/cpu0/cache"
    system(f"{folder}/index0/level", "1")
    system(f"{folder}/index0/type", "Data")
    system(f"{folder}/index0/size", "32K")
    system(f"{folder}/index1/level", "2")
    system(f"{folder}/index1/type", "Unified")
    assert cpu_caches() == (32 * 1024,)


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert cpu_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_cores() == 1


def test_a_fingerprint_without_options_is_written_as_before_there_were_any() -> None:
    # The checksum of a profile's header covers its fingerprint: those saved before must still hold.
    plain = changed()
    assert "options" not in msgspec.to_builtins(plain)
    assert msgspec.convert(msgspec.to_builtins(plain), Fingerprint) == plain


def test_options_are_compared_one_by_one_and_named_when_unusual() -> None:
    usual = changed(options=(("optimisation", "all"), ("spinning", "on")))
    other = changed(options=(("optimisation", "all"), ("spinning", "off")))
    assert usual.slug == changed().slug
    assert other.slug == f"{usual.slug}-spinning-off"
    assert usual.differences(other) == ["spinning on, not off"]
    assert changed().differences(other) == ["optimisation unset, not all", "spinning unset, not off"]
    assert other.differences(other) == []
