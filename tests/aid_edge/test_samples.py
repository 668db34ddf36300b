"""Samples on disk: what is written comes back, in batches and mapped."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from aid_edge import samples
from aid_edge.errors import DataError


def _batches(n: int, size: int):
    images = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    ids = np.arange(n, dtype=np.int64).reshape(n, 1)
    for start in range(0, n, size):
        yield {"im/age": images[start : start + size], "ids": ids[start : start + size]}


@pytest.mark.parametrize("n", [1, 7, 1200])
def test_what_is_written_comes_back(tmp_path: Path, n: int) -> None:
    made = samples.write(tmp_path / "s", _batches(n, 5))
    again = pickle.loads(pickle.dumps(samples.read(tmp_path / "s")))
    assert (made.count, list(again)) == (n, ["im/age", "ids"])
    whole = next(_batches(n, n))
    for name in whole:
        np.testing.assert_array_equal(again[name], whole[name])
        parts = np.concatenate([b[name] for b in again.batches(4)])
        np.testing.assert_array_equal(parts, whole[name])


def test_the_first_of_them(tmp_path: Path) -> None:
    few = samples.write(tmp_path, _batches(9, 4)).first(5)
    assert few.count == 5
    assert few["ids"].ravel().tolist() == [0, 1, 2, 3, 4]
    assert [len(b["ids"]) for b in few.batches(3)] == [3, 2]
    assert few.first(100).count == 5


def test_samples_that_differ_are_refused(tmp_path: Path) -> None:
    def batches():
        yield {"x": np.zeros((2, 3), np.float32)}
        yield {"x": np.zeros((2, 4), np.float32)}

    with pytest.raises(DataError, match=r"\[4\]; the first is float32 \[3\]"):
        samples.write(tmp_path, batches())


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        samples.write(tmp_path, iter(()))
    with pytest.raises(DataError, match="holds no samples"):
        samples.read(tmp_path)
