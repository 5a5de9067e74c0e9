"""The import rule: a file of the package imports only from files earlier in the flow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "latmorph"

FLOW = [
    "_version.py",
    "errors.py",
    "files.py",
    "opspec.py",
    "values.py",
    "ops/calls.py",
    "ops/rearrange.py",
    "ops/base.py",
    "ops/products.py",
    "ops/norms.py",
    "ops/pointwise.py",
    "ops/spatial.py",
    "ops/moves.py",
    "ops/__init__.py",
    "kernels.py",
    "onnx_ops/site.py",
    "onnx_ops/products.py",
    "onnx_ops/pointwise.py",
    "onnx_ops/spatial.py",
    "onnx_ops/moves.py",
    "onnx_ops/__init__.py",
    "onnx_model.py",
    "device/__init__.py",
    "device/fingerprint.py",
    "device/backend.py",
    "device/builder.py",
    "device/draw.py",
    "device/images.py",
    "device/sequences.py",
    "device/sampling.py",
    "device/timing.py",
    "device/roofs.py",
    "device/simulated.py",
    "device/eager.py",
    "device/lowering.py",
    "device/onnxruntime.py",
    "device/registry.py",
    "device/fresh.py",
    "latency/__init__.py",
    "latency/roofline.py",
    "latency/model.py",
    "latency/fit.py",
    "latency/estimate.py",
    "latency/profile.py",
    "latency/planning.py",
    "latency/profiling.py",
    "graph/__init__.py",
    "graph/graph.py",
    "graph/labels.py",
    "graph/channels.py",
    "graph/onnx_nodes.py",
    "graph/onnx.py",
    "graph/capture.py",
    "graph/variants.py",
    "graph/cut.py",
    "graph/simplify.py",
    "graph/module.py",
    "graph/fold.py",
    "graph/trace.py",
    "graph/rebuild.py",
    "morph/__init__.py",
    "morph/cost.py",
    "morph/cliffs.py",
    "morph/focus.py",
    "morph/importance.py",
    "morph/structure.py",
    "morph/controller.py",
    "morph/regularizer.py",
    "morph/expand.py",
    "report/__init__.py",
    "report/exported.py",
    "report/measured.py",
    "report/comparison.py",
    "report/inspection.py",
    "report/staircase.py",
    "report/tables.py",
    "report/plots.py",
    "data/__init__.py",
    "data/fashion.py",
    "demo.py",
    "models.py",
    "__init__.py",
    "cli.py",
]
"""The flow, from the errors that import nothing to the command line that imports what it likes.

``__init__.py`` stands where it does because it hands out everything before it, and because no file but
the command line may take a name from it instead of from the file that defines it.
"""

SIDES = {"device": "device", "latency": "device", "graph": "model"}
"""The two branches that meet only in the cost model."""


def file_of(module: str, files: list[str]) -> str | None:
    """The file of the package that a dotted name, without ``latmorph.``, stands for; None if none."""
    path = module.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py"):
        if candidate in files:
            return candidate
    return None


def imports(source: str, file: str, files: list[str]) -> Iterator[tuple[int, str]]:
    """Line and file of every import from the package, wherever in the source it stands."""
    package = ["latmorph", *Path(file).parent.parts]
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # ``from latmorph import ops`` is of ops/__init__.py, ``capture`` of the package's own.
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                inside = whole.removeprefix("latmorph.")
                names.append(whole if whole != inside and file_of(inside, files) else module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names = [node.args[0].value]
        for name in names:
            if name == "latmorph" or name.startswith("latmorph."):
                found = file_of(name.removeprefix("latmorph").lstrip("."), files)
                assert found is not None, f"{file}:{node.lineno} imports {name}, which is no file"
                yield node.lineno, found


def broken_rules(source: str, file: str) -> list[str]:
    """What the imports of a file break, in words."""
    found = []
    for line, imported in imports(source, file, FLOW):
        if FLOW.index(imported) >= FLOW.index(file):
            found.append(f"{file}:{line} imports {imported}, which is not earlier in the flow")
        sides = [SIDES.get(name.partition("/")[0]) for name in (file, imported)]
        if None not in sides and sides[0] != sides[1]:
            found.append(f"{file}:{line} imports {imported}, of the other branch")
    return found


def test_every_file_stands_in_the_flow_once() -> None:
    present = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
    assert sorted(FLOW) == present


@pytest.mark.parametrize("file", FLOW)
def test_a_file_imports_only_from_files_earlier_in_the_flow(file: str) -> None:
    assert broken_rules((PACKAGE / file).read_text(), file) == []


@pytest.mark.parametrize(
    ("file", "source", "imported"),
    [
        ("ops/base.py", "from latmorph.graph.graph import Graph", "graph/graph.py"),
        ("ops/base.py", "import latmorph.graph.graph", "graph/graph.py"),
        ("ops/base.py", "import latmorph", "__init__.py"),
        ("ops/base.py", "from latmorph import capture", "__init__.py"),
        ("opspec.py", "from latmorph import ops", "ops/__init__.py"),
        ("ops/base.py", "def f():\n    from latmorph.device import timing", "device/timing.py"),
        ("ops/base.py", "if TYPE_CHECKING:\n    from latmorph.demo import run_demo", "demo.py"),
        ("ops/base.py", "import importlib\nimportlib.import_module('latmorph.cli')", "cli.py"),
        ("device/backend.py", "from .timing import Visit", "device/timing.py"),
        ("device/backend.py", "from . import timing", "device/timing.py"),
        ("device/backend.py", "from ..demo import run_demo", "demo.py"),
        ("graph/graph.py", "from latmorph.latency.profile import Profile", "latency/profile.py"),
        ("graph/graph.py", "from ..device import timing", "device/timing.py"),
        ("latency/profile.py", "from latmorph.graph.graph import Graph", "graph/graph.py"),
    ],
)
def test_the_reader_of_imports_sees_each_way_to_break_the_rule(file: str, source: str, imported: str) -> None:
    assert any(f"imports {imported}," in text for text in broken_rules(source, file))


def test_the_reader_of_imports_lets_pass_what_the_rule_allows() -> None:
    source = "import os\nfrom latmorph import ops\nfrom .backend import Backend\nfrom ..opspec import OpSpec"
    assert broken_rules(source, "device/eager.py") == []
    assert len(list(imports(source, "device/eager.py", FLOW))) == 3
