"""Files appear whole or not at all, also when the writer dies half-way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from latmorph.files import write_whole


def dies(error: BaseException) -> Callable[..., NoReturn]:
    def call(*_: object, **__: object) -> NoReturn:
        raise error

    return call


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"text\n", bytes(range(256)) * 1000])
def test_what_was_written_is_read_back(tmp_path: Path, data: bytes) -> None:
    write_whole(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data
    assert names(tmp_path) == ["file"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "file", b"data")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"data"


def test_a_longer_old_file_is_replaced_entirely(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old" * 1000)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_other_users_may_read_the_file(tmp_path: Path) -> None:
    # Temporary files are made for their owner alone; a profile is for everyone.
    write_whole(tmp_path / "file", b"data")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, dies(error))
    with pytest.raises(type(error)):
        write_whole(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupted_first_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", dies(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert names(tmp_path) == []


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    # The process ends inside the write without unwinding, as under SIGKILL: data is written, not renamed.
    code = (
        "import os, sys, pathlib; from latmorph.files import write_whole; "
        "os.fsync = lambda handle: os._exit(9); write_whole(pathlib.Path(sys.argv[1]), b'new' * 1000)"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, timeout=60, check=False)
    assert done.returncode == 9
    assert path.read_bytes() == b"old"


def test_a_reader_never_sees_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    seen: list[bytes] = []
    replace, sync = os.replace, os.fsync

    def look_and_sync(handle: int) -> None:
        seen.append(path.read_bytes())
        sync(handle)

    def look_and_replace(source: str, target: Path) -> None:
        seen.append(path.read_bytes())
        assert Path(source).read_bytes() == b"new" * 1000  # whole before it takes the name
        replace(source, target)
        seen.append(path.read_bytes())

    monkeypatch.setattr(os, "fsync", look_and_sync)
    monkeypatch.setattr(os, "replace", look_and_replace)
    write_whole(path, b"new" * 1000)
    assert seen == [b"old", b"old", b"new" * 1000]
