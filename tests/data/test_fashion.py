"""The embedded subset, and the whole set from idx files."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latmorph.data.fashion import Images, read_folder, read_subset
from latmorph.errors import UsageError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


@pytest.fixture(scope="module")
def subset() -> Images:
    return read_subset()


def test_the_subset_has_5000_training_and_1000_test_images(subset: Images) -> None:
    assert subset.train_images.shape == (5000, 28, 28)
    assert subset.train_labels.shape == (5000,)
    assert subset.test_images.shape == (1000, 28, 28)
    assert subset.test_labels.shape == (1000,)
    parts = (subset.train_images, subset.train_labels, subset.test_images, subset.test_labels)
    assert {part.dtype for part in parts} == {np.dtype(np.uint8)}


def test_the_subset_is_balanced(subset: Images) -> None:
    assert np.bincount(subset.train_labels).tolist() == [500] * 10
    assert np.bincount(subset.test_labels).tolist() == [100] * 10


def test_the_subset_starts_as_fashion_mnist_does(subset: Images) -> None:
    # The first labels of the published files; the subset keeps the first images of every class, in order.
    assert subset.train_labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert subset.test_labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def test_the_subsets_pixels_are_distributed_as_fashion_mnists(subset: Images) -> None:
    # Mean 0.2860 and standard deviation 0.3530 of the 60,000 training images, as everybody normalises.
    assert subset.train_images.mean() / 255 == pytest.approx(0.2860, abs=0.01)
    assert subset.train_images.std() / 255 == pytest.approx(0.3530, abs=0.01)
    assert (subset.train_images.min(), subset.train_images.max()) == (0, 255)


def test_no_test_image_is_a_training_image(subset: Images) -> None:
    train = {image.tobytes() for image in subset.train_images}
    assert sum(image.tobytes() in train for image in subset.test_images) == 0


def idx(values: np.ndarray) -> bytes:
    """The idx format, before compression: magic, sizes as big-endian 32-bit numbers, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()


def write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(gzip.compress(data))


@pytest.fixture
def made(tmp_path: Path) -> Images:
    """Seven training and three test images with labels, written as the set is distributed."""
    random = np.random.default_rng(0)
    made = Images(
        random.integers(0, 256, (7, 28, 28), dtype=np.uint8),
        random.integers(0, 10, 7, dtype=np.uint8),
        random.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        random.integers(0, 10, 3, dtype=np.uint8),
    )
    parts = (made.train_images, made.train_labels, made.test_images, made.test_labels)
    for name, values in zip(FILES, parts, strict=True):
        write(tmp_path, name, idx(values))
    return made


def test_a_folder_of_idx_files_is_read_as_it_was_written(made: Images, tmp_path: Path) -> None:
    read = read_folder(tmp_path)
    assert np.array_equal(read.train_images, made.train_images)
    assert np.array_equal(read.train_labels, made.train_labels)
    assert np.array_equal(read.test_images, made.test_images)
    assert np.array_equal(read.test_labels, made.test_labels)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(made: Images, tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=name):
        read_folder(tmp_path)


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        read_folder(tmp_path / "nowhere")


def not_compressed(data: bytes) -> bytes:
    return data


def cut_compressed(data: bytes) -> bytes:
    whole = gzip.compress(data)
    return whole[: len(whole) // 2]


def empty(data: bytes) -> bytes:
    return b""


def bad_checksum(data: bytes) -> bytes:
    whole = bytearray(gzip.compress(data))
    whole[-8] ^= 0xFF
    return bytes(whole)


def bad_stream(data: bytes) -> bytes:
    whole = bytearray(gzip.compress(data))
    whole[10] |= 0b110  # the first block's type: one that deflate does not have
    return bytes(whole)


def other_magic(data: bytes) -> bytes:
    return gzip.compress(b"\x00\x00\x0d" + data[3:])  # floats


def other_rank(data: bytes) -> bytes:
    return gzip.compress(data[:3] + bytes((data[3] + 1,)) + data[4:])


def no_sizes(data: bytes) -> bytes:
    return gzip.compress(data[:6])


def too_short(data: bytes) -> bytes:
    return gzip.compress(data[:-1])


def too_long(data: bytes) -> bytes:
    return gzip.compress(data + b"\x00")


@pytest.mark.parametrize("name", [TRAIN_IMAGES, TEST_LABELS])
@pytest.mark.parametrize(
    "damage",
    [
        not_compressed,
        cut_compressed,
        empty,
        bad_checksum,
        bad_stream,
        other_magic,
        other_rank,
        no_sizes,
        too_short,
        too_long,
    ],
)
def test_a_damaged_file_is_refused_by_name(
    made: Images, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(UsageError, match=name):
        read_folder(tmp_path)


def test_images_of_another_size_are_refused_by_name(made: Images, tmp_path: Path) -> None:
    write(tmp_path, TRAIN_IMAGES, idx(np.zeros((7, 32, 32))))
    with pytest.raises(UsageError, match=TRAIN_IMAGES):
        read_folder(tmp_path)


def test_a_number_of_labels_that_is_not_that_of_the_images_is_refused(made: Images, tmp_path: Path) -> None:
    write(tmp_path, TRAIN_LABELS, idx(np.zeros(6)))
    with pytest.raises(UsageError, match=TRAIN_LABELS):
        read_folder(tmp_path)


def test_a_label_that_is_no_class_is_refused(made: Images, tmp_path: Path) -> None:
    write(tmp_path, TEST_LABELS, idx(np.array([0, 10, 9])))
    with pytest.raises(UsageError, match=TEST_LABELS):
        read_folder(tmp_path)
