"""The public names, and how little it takes to import them."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import latmorph as lm
from latmorph.cli import main

HEAVY = ("torch", "numpy", "scipy", "lightgbm", "matplotlib", "onnx", "msgspec", "rich")


def names_under_type_checking() -> dict[str, str]:
    """Name to module, without ``latmorph.``, of what a type checker reads in ``__init__.py``."""
    tree = ast.parse(Path(lm.__file__).read_text())
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            found[alias.asname or alias.name] = node.module.removeprefix("latmorph.")
    return found


@pytest.mark.parametrize("name", lm.__all__)
def test_a_public_name_resolves(name: str) -> None:
    value = getattr(lm, name)
    if name != "__version__":
        # The object is the one that its module defines, and that module is where it was written.
        home = f"latmorph.{lm._HOME[name]}"
        assert value is getattr(importlib.import_module(home), name)
        assert value.__module__ == home


def test_the_lists_of_public_names_agree() -> None:
    assert len(set(lm.__all__)) == len(lm.__all__)
    assert set(lm._HOME) == set(lm.__all__) - {"__version__"}
    assert names_under_type_checking() == lm._HOME


def test_dir_lists_the_public_names() -> None:
    assert dir(lm) == sorted(lm.__all__)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lm.no_such_name
    assert not hasattr(lm, "torch")


def test_every_public_error_is_a_latmorph_error() -> None:
    errors = [getattr(lm, name) for name in lm.__all__ if name.endswith("Error")]
    assert len(errors) == 8
    assert all(issubclass(error, lm.LatmorphError) for error in errors)


def heavy_modules_after(code: str) -> list[str]:
    """Which of the heavy modules a fresh interpreter has imported after some code."""
    report = f"import json, sys\nprint(); print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def help_of(*argv: str) -> str:
    """Code that prints a command's help, as the console script does, and goes on."""
    return (
        "from latmorph.cli import main\n"
        f"try:\n    main({[*argv, '--help']!r})\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code"
    )


def test_importing_latmorph_imports_nothing_heavy() -> None:
    assert heavy_modules_after("import latmorph") == []
    # The same look at a name that needs torch: so the test above would see it.
    assert "torch" in heavy_modules_after("import latmorph; latmorph.capture")


@pytest.mark.parametrize("command", [(), ("profile",), ("profiles",), ("predict",), ("measure",), ("demo",)])
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    assert heavy_modules_after(help_of(*command)) == []


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.split()
    for command in ("profile", "profiles", "predict", "measure", "demo"):
        assert command in words


def test_the_version_is_that_of_the_installed_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert lm.__version__ == importlib.metadata.version("latmorph")
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"latmorph {importlib.metadata.version('latmorph')}\n"
