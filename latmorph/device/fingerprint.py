"""Fingerprint: what a profile was measured on, and how that differs from here."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import msgspec

USUAL = {"optimisation": "all", "provider": "CPUExecutionProvider", "spinning": "on"}
"""The options of a runtime that go without saying in a name."""


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A device, a runtime, a dtype and a number of threads: what a latency depends on.

    ``caches_bytes`` holds the sizes of the data caches that one core sees, from level 1 up; ``options`` what
    else the runtime was told, by name.
    """

    device: str
    name: str
    cores: int
    features: tuple[str, ...]
    caches_bytes: tuple[int, ...]
    runtime: str
    runtime_version: str
    dtype: str
    threads: int
    system: str
    options: tuple[tuple[str, str], ...] = ()

    def differences(self, other: Fingerprint) -> list[str]:
        """What differs from ``other``, in words; empty when timings carry over."""
        found = []
        for field, text in (
            ("device", "device"),
            ("name", "processor"),
            ("cores", "cores"),
            ("features", "instruction sets"),
            ("caches_bytes", "caches"),
            ("runtime", "runtime"),
            ("runtime_version", "runtime version"),
            ("dtype", "dtype"),
            ("threads", "threads"),
        ):
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs:
                found.append(f"{text} {_show(ours)}, not {_show(theirs)}")
        given, here = dict(self.options), dict(other.options)
        for key in sorted(given.keys() | here.keys()):
            if given.get(key) != here.get(key):
                found.append(f"{key} {given.get(key, 'unset')}, not {here.get(key, 'unset')}")
        return found

    def is_akin(self, other: Fingerprint) -> bool:
        """Whether the same operators run there: the kind of device, the runtime and the dtype are one."""
        return (self.device, self.runtime, self.dtype) == (other.device, other.runtime, other.dtype)

    def distance(self, other: Fingerprint) -> tuple[bool, int]:
        """How far it is from ``other``: whether the processor is another, then how much differs in all."""
        ours, theirs = ((f.name, f.features, f.caches_bytes) for f in (self, other))
        return ours != theirs, len(self.differences(other))

    @property
    def slug(self) -> str:
        """A name for files: processor, runtime, dtype, threads, and options that are not the usual ones."""
        words = re.sub(r"\(r\)|\(tm\)|processor|cpu|@.*$", " ", self.name.lower())
        if not re.search(r"\d", words):  # a cloud's nameless processor: its vector width tells more
            words += " " + next((f for f in ("amx", "avx512", "avx2") if f in self.features), "")
        base = re.sub(r"[^a-z0-9]+", "-", f"{self.device} {words}").strip("-")
        threads = f"-{self.threads}t" if self.device == "cpu" else ""
        unusual = "".join(f"-{key}-{value}" for key, value in self.options if USUAL.get(key) != value)
        return f"{base}-{self.runtime}-{self.dtype}{threads}{unusual.lower()}"


def _show(value: object) -> str:
    return " ".join(str(v) for v in value) if isinstance(value, tuple) else str(value)


def cpu_name() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """The vector instruction sets that kernels choose between."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    except OSError:
        pass
    names = {"avx2": "avx2", "avx512f": "avx512", "amx_tile": "amx", "asimd": "neon", "sve": "sve"}
    return tuple(label for flag, label in names.items() if flag in flags)


def cpu_caches() -> tuple[int, ...]:
    """Bytes of the data caches that core 0 sees, from level 1 up; empty when the system does not say."""
    sizes: dict[int, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level = int((index / "level").read_text())
            text = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        unit = {"K": 1024, "M": 1024**2}.get(text[-1], 1)
        sizes[level] = int(text.rstrip("KM")) * unit
    return tuple(sizes[level] for level in sorted(sizes))


def cpu_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_fingerprint(
    runtime: str, version: str, dtype: str, threads: int, options: tuple[tuple[str, str], ...] = ()
) -> Fingerprint:
    """This machine's CPU with a runtime on it."""
    return Fingerprint(
        device="cpu",
        name=cpu_name(),
        cores=cpu_cores(),
        features=cpu_features(),
        caches_bytes=cpu_caches(),
        runtime=runtime,
        runtime_version=version,
        dtype=dtype,
        threads=threads,
        system=platform.system(),
        options=options,
    )
