"""Named arrays of samples on disk, read in batches: memory stays flat in their number.

A folder with one ``.npy`` per tensor, each [n, ...]. The object holds paths only, so that it
travels to worker processes for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from aid_edge.errors import DataError

_INDEX = "samples.json"


class _Index(msgspec.Struct, frozen=True):
    names: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Samples(Mapping[str, NDArray[Any]]):
    """Samples in a folder: a mapping of tensor name to array [n, ...], mapped into memory.

    Attributes:
        folder: Where they lie.
        names: The tensors, in order.
        count: Number of samples.
        keeper: What deletes the folder when nobody holds it any more, or None. Copies that are
            sent to other processes do not carry it: the sender keeps the folder.
    """

    folder: Path
    names: tuple[str, ...]
    count: int
    keeper: object = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "keeper": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return all samples of one tensor, mapped read-only: for few or small ones."""
        if name not in self.names:
            raise KeyError(name)
        mapped = np.load(self._file(name), mmap_mode="r", allow_pickle=False)
        return cast("NDArray[Any]", mapped[: self.count])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def first(self, count: int) -> Samples:
        """Return the first ``count`` samples, or all where there are fewer."""
        return replace(self, count=min(count, self.count))

    def take(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return copies of some samples, array [len(indices), ...] per tensor."""
        wanted = list(indices)
        return {name: np.array(self[name][wanted]) for name in self.names}

    @property
    def sample_bytes(self) -> int:
        """Size of one sample, all tensors together."""
        return sum(self[name].nbytes for name in self.names) // max(self.count, 1)

    def batches(self, size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield copies of ``size`` samples at a time, the last time fewer.

        Read by plain file access: mapped pages would count as resident memory.
        """
        files = [self._file(name).open("rb") for name in self.names]
        try:
            heads = [_read_head(file) for file in files]
            for start in range(0, self.count, size):
                n = min(size, self.count - start)
                batch = {}
                for name, file, (shape, dtype) in zip(self.names, files, heads, strict=True):
                    values = np.fromfile(file, dtype, n * int(np.prod(shape[1:])))
                    batch[name] = values.reshape(n, *shape[1:])
                yield batch
        finally:
            for file in files:
                file.close()

    def _file(self, name: str) -> Path:
        # Numbered, because a tensor may have a name that is no file name.
        return self.folder / f"{self.names.index(name)}.npy"


def write(folder: Path, batches: Iterator[Mapping[str, NDArray[Any]]]) -> Samples:
    """Write samples batch by batch into ``folder``, made if missing, and return them.

    Raises:
        DataError: There are none, batches differ in names, types or shapes, or the folder cannot
            be written.
    """
    first = next(batches, None)
    if first is None:
        raise DataError("there are no samples")
    names = tuple(first)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [(folder / f"{i}.npy").open("w+b") for i in range(len(names))]
        try:
            for file, name in zip(files, names, strict=True):
                _write_head(file, first[name], len(first[name]))
            count = 0
            for batch in _chained(first, batches):
                count += _append(files, names, batch, first)
            for file, name in zip(files, names, strict=True):
                file.seek(0)
                _write_head(file, first[name], count)
        finally:
            for file in files:
                file.close()
        (folder / _INDEX).write_bytes(msgspec.json.encode(_Index(names, count)))
    except OSError as e:
        raise DataError(f"{folder}: samples cannot be written: {e.strerror}") from e
    return Samples(folder, names, count)


def read(folder: Path) -> Samples:
    """Return the samples that :func:`write` left in ``folder``.

    Raises:
        DataError: There are none.
    """
    try:
        index = msgspec.json.decode((folder / _INDEX).read_bytes(), type=_Index)
    except (OSError, msgspec.DecodeError) as e:
        raise DataError(f"{folder}: holds no samples: {e}") from e
    return Samples(folder, index.names, index.count)


def _chained(
    first: Mapping[str, NDArray[Any]], rest: Iterator[Mapping[str, NDArray[Any]]]
) -> Iterator[Mapping[str, NDArray[Any]]]:
    yield first
    yield from rest


def _append(
    files: list[Any],
    names: tuple[str, ...],
    batch: Mapping[str, NDArray[Any]],
    like: Mapping[str, NDArray[Any]],
) -> int:
    counts = {len(array) for array in batch.values()}
    if tuple(batch) != names or len(counts) != 1:
        raise DataError("batches of samples differ in their tensors or have different lengths")
    for file, name in zip(files, names, strict=True):
        array, wanted = batch[name], like[name]
        if array.dtype != wanted.dtype or array.shape[1:] != wanted.shape[1:]:
            raise DataError(
                f"{name}: a sample is {array.dtype.name} {list(array.shape[1:])}; "
                f"the first is {wanted.dtype.name} {list(wanted.shape[1:])}"
            )
        np.ascontiguousarray(array).tofile(file)
    return counts.pop()


def _write_head(file: Any, array: NDArray[Any], count: int) -> None:
    head = {
        "descr": npy.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": (count, *array.shape[1:]),
    }
    # NumPy pads the header so that the number of samples can grow in place.
    npy.write_array_header_1_0(file, head)


def _read_head(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file)
    return shape, dtype
