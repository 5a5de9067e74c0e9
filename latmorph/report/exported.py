"""Torch models as ONNX files, written by torch's own exporter, once for as long as a model lives."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
import uuid
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from latmorph.errors import CaptureError
from latmorph.onnx_model import import_onnx

ONE_FILE_BYTES = 1_500_000_000
"""Weights of more than this go into a second file: one file holds 2 GB."""

_Key = tuple[Any, ...]
_FILES: WeakKeyDictionary[torch.nn.Module, tuple[_Key, Path]] = WeakKeyDictionary()


def exported(model: torch.nn.Module, inputs: Sequence[Any]) -> Path:
    """An ONNX file of the model, in eval mode, for inputs of these shapes.

    A model whose weights and inputs are those of the last time is not exported again. The file goes when the
    model does, or when the process ends. Raises CaptureError when torch cannot export the model, UsageError
    when the onnx package is missing.
    """
    key = _key(model, inputs)
    known = _FILES.get(model)
    if known is None or known[0] != key:
        path = _export(model, tuple(inputs))
        weakref.finalize(model, _remove, path)
        _FILES[model] = known = (key, path)
    return known[1]


def _key(model: torch.nn.Module, inputs: Sequence[Any]) -> _Key:
    """What an exported file depends on: the tensors that the model holds, as last written, and the inputs."""
    tensors = (*model.parameters(), *model.buffers())
    held = tuple((t.data_ptr(), tuple(t.shape), t._version) for t in tensors)
    given = tuple((tuple(x.shape), str(x.dtype)) if isinstance(x, torch.Tensor) else repr(x) for x in inputs)
    return held, given


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="latmorph-")


def _remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.stem}*"):
        file.unlink(missing_ok=True)


def _export(model: torch.nn.Module, inputs: tuple[Any, ...]) -> Path:
    import_onnx()
    path = Path(_folder().name) / f"{uuid.uuid4().hex}.onnx"
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, inputs, str(path), dynamo=True, external_data=size > ONE_FILE_BYTES, verbose=False
            )
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        raise CaptureError(
            f"{type(model).__name__} could not be exported to ONNX: {first}; check that "
            "torch.onnx.export(model, inputs, dynamo=True) works, or measure it in eager"
        ) from error
    return path
