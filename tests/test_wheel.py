"""What the wheel holds, and that it works where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout by the build backend of the present environment."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        listed = archive.namelist()
    assert len(set(listed)) == len(listed)
    return set(listed)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, unpacked as an installer does, in a folder far from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def read_in_dist_info(wheel: Path, file: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(f".dist-info/{file}"))
        return archive.read(name).decode()


def test_the_wheel_is_pure_and_named_after_the_version(wheel: Path) -> None:
    given: dict[str, str] = {}
    exec((ROOT / "latmorph" / "_version.py").read_text(), given)
    assert wheel.name == f"latmorph-{given['__version__']}-py3-none-any.whl"


def test_every_source_file_is_in_the_wheel(names: set[str]) -> None:
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "latmorph").rglob("*.py")}
    assert len(sources) > 30
    assert sources <= names


@pytest.mark.parametrize(
    "name",
    ["latmorph/py.typed", "latmorph/data/fashion_mnist_subset.npz", "latmorph/data/README.md"],
)
def test_a_file_that_is_no_source_is_in_the_wheel_unchanged(wheel: Path, name: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(name) == (ROOT / name).read_bytes()


def test_every_shipped_profile_is_in_the_wheel_whole(wheel: Path, names: set[str]) -> None:
    shipped = [p.parent for p in (ROOT / "profiles").glob("*/profile.json")]
    assert shipped, "no profile is shipped: latmorph predicts nothing before it has profiled"
    with zipfile.ZipFile(wheel) as archive:
        for folder in shipped:
            for part in ("profile.json", "model.json.gz", "measurements.csv.gz"):
                assert archive.read(f"latmorph/profiles/{folder.name}/{part}") == (folder / part).read_bytes()
    found = {name.split("/")[2] for name in names if name.startswith("latmorph/profiles/")}
    assert found == {folder.name for folder in shipped}


def test_the_licence_is_in_the_wheel(wheel: Path) -> None:
    assert read_in_dist_info(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    lines = read_in_dist_info(wheel, "entry_points.txt").split("\n")
    assert "[console_scripts]" in lines
    assert "latmorph = latmorph.cli:main" in lines


def test_the_wheel_holds_nothing_but_the_package(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"latmorph"}
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"tests", "tools", "docs", "__pycache__", ".hypothesis", ".venv"}
    assert not any(part.startswith("test_") or part.endswith(".pyc") for part in parts)


CODE = """
import json
import latmorph
from latmorph.data.fashion import read_subset
from latmorph.latency.profile import list_profiles, open_profile

found = list_profiles()
print(json.dumps({
    "package": latmorph.__file__,
    "folders": {name: str(folder) for name, folder in found.items()},
    "names": {name: open_profile(folder).name for name, folder in found.items()},
    "images": len(read_subset().train_images),
}))
"""


def test_an_installed_wheel_finds_and_opens_its_profiles_and_data(installed: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "LATMORPH_PROFILES": str(tmp_path / "none saved"),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["package"]) == installed / "latmorph" / "__init__.py"
    shipped = {p.parent.name for p in (ROOT / "profiles").glob("*/profile.json")}
    assert set(found["folders"]) == shipped
    assert all(Path(f).parent == installed / "latmorph" / "profiles" for f in found["folders"].values())
    # A profile calls itself by the name that it is found by.
    assert all(name == own for name, own in found["names"].items())
    assert found["images"] == 5000
