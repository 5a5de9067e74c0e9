"""Cut the embedded Fashion-MNIST subset out of the full set: the first images of every class, in order.

Usage: python tools/make_fashion_subset.py FOLDER   (with the four idx .gz files, as in Debian's
package dataset-fashion-mnist under /usr/share/datasets/fashion-mnist)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from latmorph.data.fashion import read_folder

TRAIN_PER_CLASS, TEST_PER_CLASS = 500, 100


def first_of_each_class(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` images of each label, in the order of the set."""
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))
    return images[chosen], labels[chosen]


def main() -> None:
    """Run from the command line."""
    full = read_folder(Path(sys.argv[1]))
    train = first_of_each_class(full.train_images, full.train_labels, TRAIN_PER_CLASS)
    test = first_of_each_class(full.test_images, full.test_labels, TEST_PER_CLASS)
    out = Path(__file__).resolve().parent.parent / "latmorph" / "data" / "fashion_mnist_subset.npz"
    np.savez_compressed(
        out, train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1]
    )
    print(f"{out}: {len(train[0])} training and {len(test[0])} test images, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
