"""Profile: a device's measurements, model and validation, and its file format.

A profile is a folder: ``profile.json`` (what it is of, and checksums of the rest), ``model.json.gz`` (the
fitted model, as numbers) and ``measurements.csv.gz`` (raw samples). Nothing in it is executed on load.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakKeyDictionary

import msgspec

from latmorph.device.fingerprint import Fingerprint
from latmorph.device.timing import Visit
from latmorph.errors import LatmorphWarning, ProfileError, ProfileMismatchWarning
from latmorph.files import write_whole
from latmorph.latency.estimate import Estimate, GraphLike, NodeLike, Operator, estimate
from latmorph.latency.fit import Validation
from latmorph.latency.model import LatencyModel, Predictor
from latmorph.opspec import OpSpec

if TYPE_CHECKING:
    from latmorph.device.onnxruntime import Lowering

FORMAT = "latmorph-profile"
VERSION = 1
HEADER, MODEL, MEASUREMENTS = "profile.json", "model.json.gz", "measurements.csv.gz"
"""The files of a profile's folder."""

LARGEST_BYTES = 256 * 2**20
"""No part of a profile is this large when unpacked; one that is was not written by latmorph."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``profile.json``.

    ``reference_s`` is the reference operator's calm time; ``budget_s`` the time that measuring was given, as
    far as what it found is in the profile;
    ``focused_visits`` counts the visits of networks that the profile was asked to be right about.
    ``sha256`` maps the other files to their checksums, and ``""`` to that of this header without it.
    """

    format: str
    version: int
    name: str
    created: str
    latmorph: str
    fingerprint: Fingerprint
    budget_s: float
    seed: int
    visits: int
    focused_visits: int
    operators: int
    reference_s: float
    validation: Validation
    sha256: dict[str, str]

    def checksum(self) -> str:
        """SHA-256 of the header without its own checksum."""
        others = {k: v for k, v in self.sha256.items() if k}
        return _sha256(msgspec.json.encode(msgspec.structs.replace(self, sha256=others)))


@dataclass(frozen=True, eq=False)
class Profile:
    """A latency model of one device, runtime, dtype and number of threads, and where it came from."""

    header: Header
    model: LatencyModel
    visits: Sequence[Visit]

    @property
    def name(self) -> str:
        """The profile's name."""
        return self.header.name

    @property
    def fingerprint(self) -> Fingerprint:
        """What the profile was measured on."""
        return self.header.fingerprint

    @cached_property
    def predictor(self) -> Predictor:
        """The model, ready to evaluate."""
        return Predictor(self.model)

    @cached_property
    def mismatch(self) -> tuple[str, ...]:
        """How this machine differs from the profile's; empty when its predictions are of this machine."""
        return tuple(mismatch(self.fingerprint))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of this profile's predictions must know: that they are of another machine."""
        if not self.mismatch:
            return ()
        return (
            f"profile {self.name} is of another machine ({'; '.join(self.mismatch)}): run "
            f"'latmorph profile --device {self.fingerprint.device}' for predictions of this one",
        )

    def predict(self, graph: GraphLike) -> Estimate:
        """Predicted latency of a captured network, in seconds, with its parts and its interval.

        Where the runtime makes kernels of its own of a network, they are the parts, and the runtime is asked
        which they are. Raises DeviceError when it is not installed here, UsageError for a network that it
        cannot be told of.
        """
        return estimate(self.predictor, self.operators(graph), self.notes)

    @cached_property
    def lowering(self) -> Lowering | None:
        """What tells the kernels that the runtime makes of a network; None if it makes none."""
        from latmorph.device.registry import lowering_of

        return lowering_of(self.fingerprint)

    def operators(self, graph: GraphLike) -> Sequence[NodeLike]:
        """What the profile's runtime runs of a captured network, with the modules it came from."""
        if self.lowering is None:
            return graph.nodes
        if graph not in self._lowered:
            self._lowered[graph] = _operators(self.lowering, graph)
        return self._lowered[graph]

    @cached_property
    def _lowered(self) -> WeakKeyDictionary[GraphLike, tuple[Operator, ...]]:
        return WeakKeyDictionary()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Profile):
            return NotImplemented
        ours, theirs = (msgspec.structs.replace(p.header, sha256={}) for p in (self, other))
        return (ours, self.model, tuple(self.visits)) == (theirs, other.model, tuple(other.visits))

    def save(self, folder: str | Path) -> Path:
        """Write the profile's folder, whole or not at all, and return it.

        A profile that stands there is replaced; ProfileError is raised when anything else does.
        """
        folder = Path(folder).resolve()
        check_place(folder)
        parts = {
            MODEL: gzip.compress(msgspec.json.encode(self.model), 6, mtime=0),
            MEASUREMENTS: gzip.compress(_visits_to_csv(self.visits), 6, mtime=0),
        }
        sums = {name: _sha256(data) for name, data in parts.items()}
        header = msgspec.structs.replace(self.header, sha256=sums)
        header = msgspec.structs.replace(header, sha256={**sums, "": header.checksum()})
        fresh = folder.parent / f".{folder.name}.{os.getpid()}.new"
        old = folder.parent / f".{folder.name}.{os.getpid()}.old"
        try:
            for name, data in parts.items():
                write_whole(fresh / name, data)
            text = msgspec.json.format(msgspec.json.encode(header), indent=1)
            write_whole(fresh / HEADER, text + b"\n")
            if folder.exists():
                folder.rename(old)
            try:
                fresh.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return folder


def _operators(lowering: Lowering, graph: GraphLike) -> tuple[Operator, ...]:
    if graph.onnx is None:
        kernels = lowering.network(graph.steps_at(graph.widths))
    else:
        kernels = lowering.file(graph.onnx, [graph.tensors[t].shape for t in graph.inputs])
    nodes = {node.name: node for node in graph.nodes}
    found = []
    for kernel in kernels:
        node = graph.nodes[kernel.step] if kernel.step >= 0 and graph.onnx is None else nodes.get(kernel.name)
        name, module = (kernel.name, "") if node is None else (node.name, node.module)
        found.append(Operator(name, module, kernel.spec))
    return tuple(found)


def check_place(folder: Path) -> None:
    """Raises ProfileError when a profile saved in ``folder`` would replace anything but a profile."""
    if folder.is_dir():
        others = sorted({p.name for p in folder.iterdir()} - {HEADER, MODEL, MEASUREMENTS})
        if others:
            raise ProfileError(
                f"{folder}: holds {others[0]!r}, which is no part of a profile and would be lost; "
                "name a new folder"
            )
    elif folder.exists():
        raise ProfileError(f"{folder}: is a file; a profile is a folder, name a new one")


def mismatch(fingerprint: Fingerprint) -> list[str]:
    """How this machine differs from a fingerprint, in words; the number of threads is the user's choice."""
    if fingerprint.device == "simulated":
        return []
    from latmorph.device.registry import backend_of
    from latmorph.errors import DeviceError

    try:
        here = backend_of(fingerprint).fingerprint()
    except DeviceError:
        what = f"{fingerprint.device} device" if fingerprint.runtime == "eager" else fingerprint.runtime
        return [f"there is no {what} here"]
    return fingerprint.differences(here)


def open_profile(folder: str | Path) -> Profile:
    """Read a profile's folder. Raises ProfileError, saying what is wrong, for anything but a whole one.

    Its measurements are unpacked when first looked at, since predictions need none: if they are malformed
    though their checksum is right, ProfileError is raised then.
    """
    folder = Path(folder)
    header = read_header(folder)
    data = {}
    for name in (MODEL, MEASUREMENTS):
        data[name] = _read(folder / name)
        if _sha256(data[name]) != header.sha256.get(name):
            raise ProfileError(
                f"{folder / name}: truncated or altered (its checksum is not the one in profile.json); "
                "profile the device again, or restore the file"
            )
    model = _decode(_unpack(folder / MODEL, data[MODEL]), LatencyModel, folder)
    _check_model(model, folder)
    return Profile(header, model, _Packed(data[MEASUREMENTS], folder))


def read_header(folder: str | Path) -> Header:
    """Read and check ``profile.json`` alone."""
    path = Path(folder) / HEADER
    data = _read(path)
    head = _decode(data, Any, path)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise ProfileError(f"{path}: not a latmorph profile")
    version = head.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ProfileError(
            f"{path}: format version {version} is newer than {VERSION}, which this latmorph reads; "
            "update latmorph"
        )
    header = _decode(data, Header, path)
    if header.checksum() != header.sha256.get(""):
        raise ProfileError(f"{path}: edited by hand (its checksum does not match); profile the device again")
    return header


T = TypeVar("T")


def _decode(data: bytes, kind: type[T], path: Path) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ProfileError(f"{path}: truncated or altered ({error})") from None


def _check_model(model: LatencyModel, folder: Path) -> None:
    for name, family in model.families.items():
        width = len(family.features)
        trees = family.trees
        if (
            not trees.well_formed
            or len(family.low) != width
            or len(family.high) != width
            or any(not 0 <= f < width for row in trees.feature for f in row)
            or trees.depth > 64
        ):
            raise ProfileError(f"{folder}: the model of {name!r} is malformed")
    roofs = model.roofs
    peaks = [roofs.peak_flops_per_s, *(value for pair in roofs.bandwidth for value in pair)]
    blocks = [block for pair in roofs.blocks.values() for block in pair]
    swept = all(len(sweep.widths) == len(sweep.times_s) for sweep in roofs.sweeps)
    sound = all(0 < p < float("inf") for p in peaks) and min(blocks, default=1) >= 1
    if not roofs.bandwidth or not sound or not swept:
        raise ProfileError(f"{folder}: the roofs are malformed")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ProfileError(f"{path}: no such file; a profile is a folder with profile.json in it") from None
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror})") from None


def _unpack(path: Path, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(LARGEST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ProfileError(f"{path}: truncated or altered ({error})") from None
    if len(content) > LARGEST_BYTES:
        raise ProfileError(f"{path}: larger than any profile; not written by latmorph")
    return content


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, eq=False)
class _Packed(Sequence[Visit]):
    """The visits in a folder's measurements, unpacked when first looked at."""

    data: bytes
    folder: Path

    @cached_property
    def visits(self) -> tuple[Visit, ...]:
        return _visits_from_csv(_unpack(self.folder / MEASUREMENTS, self.data), self.folder)

    def __len__(self) -> int:
        return len(self.visits)

    @overload
    def __getitem__(self, at: int) -> Visit: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Visit, ...]: ...
    def __getitem__(self, at: int | slice) -> Visit | tuple[Visit, ...]:
        return self.visits[at]


_COLUMNS = ("network", "visit", "row", "spec", "times_ns")
_RUN, _FOOTPRINT, _WHOLE, _TRAFFIC, _REFERENCE = "run", "footprint_bytes", "whole", "traffic", "reference"


def _visits_to_csv(visits: Sequence[Visit]) -> bytes:
    """One row an operator, its position in ``row``; the OpSpec stands where it first occurs.

    After a visit's operators come its run, footprint, whole passes, blocks and reference samples.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    seen: set[tuple[int, int]] = set()

    def times(samples: Iterable[float]) -> str:
        return " ".join(str(round(t * 1e9)) for t in samples)

    for v in visits:
        for position, (spec, samples) in enumerate(zip(v.specs, v.times_s, strict=True)):
            first = (v.network, position) not in seen
            seen.add((v.network, position))
            text_spec = spec.to_json() if first else ""
            writer.writerow((v.network, v.visit, position, text_spec, times(samples)))
        writer.writerow((v.network, v.visit, _RUN, "", v.run))
        writer.writerow((v.network, v.visit, _FOOTPRINT, "", v.footprint_bytes))
        writer.writerow((v.network, v.visit, _WHOLE, "", times(v.whole_s)))
        writer.writerow((v.network, v.visit, _TRAFFIC, "", times(v.traffic_s)))
        writer.writerow((v.network, v.visit, _REFERENCE, "", times(v.references_s)))
    return text.getvalue().encode()


def _visits_from_csv(data: bytes, folder: Path) -> tuple[Visit, ...]:
    specs: dict[tuple[int, int], OpSpec] = {}
    try:
        rows = csv.reader(io.StringIO(data.decode()))
        if tuple(next(rows, ())) != _COLUMNS:
            raise ValueError("unexpected columns")
        return tuple(_read_visits(rows, specs))
    except (ValueError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise ProfileError(f"{folder / MEASUREMENTS}: malformed ({error})") from None


def _read_visits(rows: Iterator[list[str]], specs: dict[tuple[int, int], OpSpec]) -> Iterator[Visit]:
    here: list[OpSpec] = []
    times: list[tuple[float, ...]] = []
    whole: tuple[float, ...] = ()
    traffic: tuple[float, ...] = ()
    run = footprint = 0
    for network_text, visit, row, spec, samples_text in rows:
        network = int(network_text)
        samples = tuple(int(s) * 1e-9 for s in samples_text.split())
        if row == _RUN:
            run = int(samples_text)
        elif row == _FOOTPRINT:
            footprint = int(samples_text)
        elif row == _WHOLE:
            whole = samples
        elif row == _TRAFFIC:
            traffic = samples
        elif row == _REFERENCE:
            yield Visit(
                network, int(visit), footprint, tuple(here), tuple(times), whole, samples, traffic, run
            )
            here, times, whole, traffic, run = [], [], (), (), 0
        else:
            key = (network, int(row))
            if spec:
                specs[key] = OpSpec.from_json(spec)
            here.append(specs[key])
            times.append(samples)


def round_to_ns(visits: Iterable[Visit]) -> tuple[Visit, ...]:
    """The visits with their times in whole nanoseconds, as the file holds them."""

    def ns(samples: Iterable[float]) -> tuple[float, ...]:
        return tuple(round(t * 1e9) * 1e-9 for t in samples)

    return tuple(
        dataclasses.replace(
            v,
            times_s=tuple(ns(t) for t in v.times_s),
            whole_s=ns(v.whole_s),
            references_s=ns(v.references_s),
            traffic_s=ns(v.traffic_s),
        )
        for v in visits
    )


def user_folder() -> Path:
    """Where profiles are saved: ``$LATMORPH_PROFILES``, or a folder in the user's data folder."""
    given = os.environ.get("LATMORPH_PROFILES")
    if given:
        return Path(given)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "latmorph" / "profiles"


def shipped_folder() -> Path:
    """Where the profiles that come with latmorph are: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "profiles"
    return inside if inside.is_dir() else package.parent / "profiles"


def list_profiles() -> dict[str, Path]:
    """Folders of all saved and shipped profiles by name; a saved one hides a shipped one of its name."""
    found: dict[str, Path] = {}
    for folder in (shipped_folder(), user_folder()):
        for path in sorted(folder.glob("*/profile.json")):
            if not path.parent.name.startswith("."):
                found[path.parent.name] = path.parent
    return found


def load_profile(name: str | Path) -> Profile:
    """A profile by name or by path, or, for ``cpu`` and ``cuda``, this machine's newest.

    When the only profiles of a device are of other machines, the closest is loaded, with a warning;
    its estimates say so too. Raises ProfileError when there is none, or when it is damaged.
    """
    from latmorph.device.registry import DEVICES

    if isinstance(name, str) and name in DEVICES:
        return _newest(name)
    known = list_profiles()
    if str(name) in known:
        return open_profile(known[str(name)])
    path = Path(name)
    if path.name == HEADER:
        path = path.parent
    if path.exists():
        return open_profile(path)
    listed = ", ".join(known) or "none"
    raise ProfileError(
        f"no profile {str(name)!r}: there is no folder of that name, and the profiles known are {listed}; "
        "make one with 'latmorph profile'"
    )


def _newest(device: str) -> Profile:
    candidates = []
    for folder in list_profiles().values():
        try:
            header = read_header(folder)
        except ProfileError as error:
            warnings.warn(f"profile passed over: {error}", LatmorphWarning, stacklevel=3)
            continue
        if header.fingerprint.device == device:
            # Fewest differences from here, then what is usual, of networks at large, and the newest.
            of = header.fingerprint
            unusual = (of.runtime != "eager", of.dtype != "float32", of.threads, header.focused_visits > 0)
            rank = (len(mismatch(of)), *unusual)
            candidates.append((rank, header.created, folder))
    if not candidates:
        raise ProfileError(
            f"no profile of a {device} device: make one with 'latmorph profile --device {device}'"
        )
    best = min(rank for rank, _, _ in candidates)
    _, folder = max((created, folder) for rank, created, folder in candidates if rank == best)
    profile = open_profile(folder)
    for note in profile.notes:
        warnings.warn(f"no profile of this machine; {note}", ProfileMismatchWarning, stacklevel=3)
    return profile
