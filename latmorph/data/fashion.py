"""Fashion-MNIST: the embedded subset, or the whole set from a folder of idx files."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latmorph.errors import UsageError


@dataclass(frozen=True, eq=False)
class Images:
    """Images as uint8 of shape ``(n, 28, 28)`` and labels as uint8 of shape ``(n,)``."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def read_subset() -> Images:
    """The embedded 5,000 training and 1,000 test images."""
    with np.load(Path(__file__).parent / "fashion_mnist_subset.npz", allow_pickle=False) as data:
        return Images(data["train_images"], data["train_labels"], data["test_images"], data["test_labels"])


def read_folder(folder: Path) -> Images:
    """The whole set, from the four gzipped idx files of its distribution.

    Raises UsageError when a file is missing or is no idx file of the expected shape.
    """
    return Images(*_pair(folder, "train"), *_pair(folder, "t10k"))


def _pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    of_images, of_labels = folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"
    images, labels = _idx(of_images, 3), _idx(of_labels, 1)
    if not len(images) or images.shape[1:] != (28, 28):
        raise UsageError(f"{of_images}: images of 28x28 are expected, this holds shape {images.shape}")
    if len(labels) != len(images) or labels.max() > 9:
        raise UsageError(
            f"{of_labels}: {len(images)} labels from 0 to 9 are expected, this holds {len(labels)} "
            f"up to {labels.max(initial=0)}"
        )
    return images, labels


def _idx(path: Path, rank: int) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read as a gzipped idx file ({error})") from None
    if len(data) < 4 + 4 * rank or data[:4] != bytes((0, 0, 8, rank)):
        raise UsageError(f"{path}: not an idx file of unsigned bytes with {rank} axes")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, 4))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if len(values) != int(np.prod(shape)):
        raise UsageError(f"{path}: truncated ({len(values)} bytes for shape {shape})")
    return values.reshape(shape)
