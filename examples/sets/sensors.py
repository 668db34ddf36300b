"""Shoulder exercises felt by a watch: windows of accelerometer and gyroscope at 50 Hz.

Burns et al., 2018, "Shoulder physiotherapy exercise recognition" (data of the package seglearn,
BSD-3-Clause). The network for it is in ``examples/har.py``.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from examples.archives import FetchError, Package, download, read_member

SEGLEARN = Package(
    "seglearn==1.2.5", "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd"
)
WINDOW = 100
"""Samples in a window: two seconds."""

STEP = 100
HELD_OUT_SUBJECTS = (8, 9, 10)
CALIBRATION = 256
_ALLOWED = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds arrays and nothing else: a pickle can otherwise run anything."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class, if it is one of NumPy's arrays."""
        if (module, name) not in _ALLOWED:
            raise FetchError(f"{SEGLEARN.requirement}: its data want to run {module}.{name}")
        return super().find_class(module, name)


def har(folder: Path, archives: Path) -> None:
    """Write ``train.npz``, ``calibration.npz`` and ``evaluation.npz`` into ``folder``.

    Input ``motion`` is float32 [n, 6, 100], scaled to unit variance per channel on the training
    subjects; three subjects are held out for evaluation. Windows of one series are one group.
    """
    member = "seglearn/data/watch_dataset.npy"
    file = io.BytesIO(read_member(download(SEGLEARN, archives), member))
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    found = _ArraysOnly(file, encoding="latin1").load().item()
    windows, labels, groups, subjects = [], [], [], []
    for number, (series, label, subject) in enumerate(
        zip(found["X"], found["y"], found["subject"], strict=True)
    ):
        for start in range(0, len(series) - WINDOW + 1, STEP):
            windows.append(series[start : start + WINDOW].T)
            labels.append(int(label))
            groups.append(f"series{number:03d}")
            subjects.append(int(subject))
    motion = np.stack(windows).astype(np.float32)
    held_out = np.isin(subjects, HELD_OUT_SUBJECTS)
    mean = motion[~held_out].mean((0, 2), keepdims=True)
    motion = (motion - mean) / motion[~held_out].std((0, 2), keepdims=True)
    truth, series_of = np.array(labels, np.int64), np.array(groups)
    seen = np.flatnonzero(~held_out)
    np.savez(folder / "train.npz", motion=motion[seen], labels=truth[seen])
    spread = seen[:: max(1, len(seen) // CALIBRATION)][:CALIBRATION]
    np.savez(folder / "calibration.npz", motion=motion[spread])
    np.savez(
        folder / "evaluation.npz", motion=motion[held_out], labels=truth[held_out],
        groups=series_of[held_out],
    )  # fmt: skip
    (folder / "labels.txt").write_text("\n".join(found["y_labels"]) + "\n")
