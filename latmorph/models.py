"""Models by name: what the command line is given, as what ``capture`` and ``measure`` take."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latmorph.errors import UsageError


def load_model(name: str, shapes: Sequence[str], device: str) -> tuple[Any, tuple[Any, ...]]:
    """The model of a name, and inputs for it, on the device.

    ``package.module:callable`` is a torch.nn.Module or makes one; ``file.pt2`` an ExportedProgram, whose
    inputs' shapes are fixed; ``file.onnx`` its path, whose shapes need to be given where they are not fixed.
    Shapes are written like ``1x3x224x224`` or ``1x77:int64``, one for each argument.

    Raises UsageError, naming what was given, for a model or a shape that does not exist.
    """
    inputs = tuple(_example(text).to(device) for text in shapes)
    suffix = Path(name).suffix.lower()
    if suffix in (".onnx", ".pt2"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"model {name!r}: there is no such file")
        return (path, inputs) if suffix == ".onnx" else _load_program(path, inputs)
    if not shapes:
        raise UsageError(f"model {name!r}: give --input SHAPE for each argument of its forward")
    return _load_module(name).to(device), inputs


def short_name(name: str) -> str:
    """What a model is called in the name of a profile."""
    last = Path(name).stem if Path(name).suffix.lower() in (".onnx", ".pt2") else name.rpartition(":")[2]
    return "".join(c if c.isalnum() else "-" for c in last.lower()).strip("-") or "model"


class ExportedModule(torch.nn.Module):
    """An ExportedProgram as a module that can be called, and whose mode, being fixed, can be set in vain."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self._call = (program.module(),)  # in a tuple: torch refuses to set its mode as a submodule's

    def forward(self, *inputs: Any) -> Any:
        return self._call[0](*inputs)


def _load_program(
    path: Path, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.export.ExportedProgram, tuple[torch.Tensor, ...]]:
    _check_archive(path)
    try:
        program = torch.export.load(str(path))
    except Exception as error:
        raise UsageError(f"model {str(path)!r}: torch cannot load it ({_first(error)})") from None
    examples, keywords = program.example_inputs or ((), {})
    if keywords or not examples or not all(isinstance(x, torch.Tensor) for x in examples):
        raise UsageError(
            f"model {str(path)!r}: its example inputs are not a tuple of tensors; export it with "
            "torch.export.export(model, (x, ...)) and save it anew"
        )
    given = [(tuple(x.shape), x.dtype) for x in inputs]
    held = [(tuple(x.shape), x.dtype) for x in examples]
    if given and given != held:
        shapes = ", ".join("x".join(map(str, shape)) for shape, _ in held)
        raise UsageError(
            f"model {str(path)!r}: exported for inputs {shapes}, which cannot be changed; leave out --input"
        )
    return program, tuple(examples)


def _check_archive(path: Path) -> None:
    """Raises UsageError for an archive that holds pickled objects: loading them would run what is in them."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = archive.namelist()
            configs = [json.loads(archive.read(n))["config"] for n in held if n.endswith("_config.json")]
            pickled = [key for config in configs for key, entry in config.items() if entry["use_pickle"]]
            for example in (n for n in held if "/sample_inputs/" in n):
                torch.load(io.BytesIO(archive.read(example)), weights_only=True)
    except pickle.UnpicklingError:
        pickled = ["its example inputs"]
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"model {str(path)!r}: not an archive of torch.export.save ({_first(error)})"
        ) from None
    if pickled:
        raise UsageError(
            f"model {str(path)!r}: holds pickled objects ({pickled[0]}), which run code when they are "
            "loaded; name the model as package.module:callable instead"
        )
    if not configs:
        raise UsageError(f"model {str(path)!r}: not an archive of torch.export.save of torch 2.9 or newer")


def _load_module(name: str) -> torch.nn.Module:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"model {name!r}: write package.module:callable, as in torchvision.models:resnet18")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"model {name!r}: module {module_name!r} does not import ({_first(error)})"
        ) from None
    made: Any = module
    for part in attribute.split("."):
        if not hasattr(made, part):
            raise UsageError(f"model {name!r}: {module_name!r} has no {part!r}")
        made = getattr(made, part)
    if not isinstance(made, torch.nn.Module):
        try:
            made = made()
        except Exception as error:
            raise UsageError(
                f"model {name!r}: calling it without arguments failed ({_first(error)})"
            ) from None
    if not isinstance(made, torch.nn.Module):
        raise UsageError(f"model {name!r}: gave {type(made).__name__}, not a torch.nn.Module")
    return made


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _example(text: str) -> torch.Tensor:
    shape_text, _, dtype = text.partition(":")
    try:
        shape = tuple(int(s) for s in shape_text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"input shape {text!r}: write sizes like 1x3x224x224, all at least 1")
    kind = getattr(torch, dtype or "float32", None)
    if not isinstance(kind, torch.dtype):
        raise UsageError(f"input shape {text!r}: torch has no dtype {dtype!r}")
    try:
        return torch.rand(shape).to(kind) if kind.is_floating_point else torch.zeros(shape, dtype=kind)
    except (RuntimeError, TypeError, ValueError, MemoryError, OverflowError) as error:
        raise UsageError(f"input shape {text!r}: torch cannot make it ({_first(error)})") from None
