"""Reads ``.npz`` archives, and what a function of the user returns."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from aid_edge.errors import DataError
from aid_edge.evaluate.data.reading import Array, Batches, Reading, check_shape, per_batch
from aid_edge.evaluate.data.targets import Kind, Targets, understand
from aid_edge.model import SourceModel

LABELS = ("labels", "targets")
"""Names of the array that holds what is right; see :mod:`aid_edge.evaluate.data.targets`."""

GROUPS = "groups"
"""Cluster of each sample: samples of one group, such as crops of one photo, are not independent."""

MAX_SIDE_BYTES = 512 * 2**20
"""Bound of labels and groups, which are held in memory."""

_SKIP_BYTES = 4 * 2**20


@dataclass(frozen=True)
class _Member:
    """One array of an archive, by its header."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


def read_npz(path: Path, spec: str, model: SourceModel) -> Reading:
    """Return the samples in an ``.npz``: an array per input, and ``labels``, ``groups``.

    Arrays are read row by row, so that archives larger than memory can be read.

    Raises:
        DataError: It cannot be read, or does not fit the model.
    """
    with _npz_errors(path):
        members = _members(path)
        sides = {n: _whole(path, n, members[n]) for n in (*LABELS, GROUPS) if n in members}
    expected = [tensor.name for tensor in model.inputs]
    _check_names(spec, list(members), expected)
    for tensor in model.inputs:
        found = members[tensor.name]
        if not found.shape or not found.shape[0]:
            raise DataError(f"{spec}: is empty")
        where = f"{spec}: input {tensor.name!r}"
        check_shape(where, found.shape, found.dtype, tensor, batched=model.batched)
    n = members[expected[0]].shape[0]
    for name in expected:
        if members[name].shape[0] != n:
            raise DataError(
                f"{spec}: input {name!r}: has {members[name].shape[0]} samples "
                f"where the first input has {n}"
            )
    inputs = {name: members[name] for name in expected}
    return _reading(spec, sides, model, n, lambda chosen: _npz_batches(path, inputs, chosen))


def call(spec: str, model: SourceModel, limit: int | None) -> Reading:
    """Return what ``module:callable`` returns: a mapping of arrays, or an iterator of mappings.

    An iterator gives batches, each a mapping as an ``.npz`` would hold it, and keeps memory flat;
    of it, ``limit`` takes the first samples.

    Raises:
        DataError: It cannot be imported or called, or what it gives does not fit the model.
    """
    data = _called(spec)
    if isinstance(data, Mapping):
        return _from_mapping(spec, data, model)
    if isinstance(data, Iterator):
        return _from_batches(spec, data, model, limit)
    raise DataError(
        f"{spec}: returned {type(data).__name__}; expected a mapping of arrays, "
        "or an iterator of them"
    )


def _from_mapping(spec: str, arrays: Mapping[str, Any], model: SourceModel) -> Reading:
    expected = [tensor.name for tensor in model.inputs]
    _check_names(spec, list(arrays), expected)
    inputs = {name: _array(spec, name, arrays[name]) for name in expected}
    n = len(inputs[expected[0]]) if all(a.ndim for a in inputs.values()) else 0
    if n == 0:
        raise DataError(f"{spec}: is empty")
    for tensor in model.inputs:
        array = inputs[tensor.name]
        where = f"{spec}: input {tensor.name!r}"
        check_shape(where, array.shape, array.dtype, tensor, batched=model.batched)
        if len(array) != n:
            raise DataError(
                f"{spec}: input {tensor.name!r}: has {len(array)} samples "
                f"where the first input has {n}"
            )
    size = per_batch(sum(a.nbytes for a in inputs.values()) // n)

    def batches(chosen: Sequence[int]) -> Batches:
        for start in range(0, len(chosen), size):
            part = list(chosen[start : start + size])
            yield {name: np.ascontiguousarray(array[part]) for name, array in inputs.items()}

    sides = {name: arrays[name] for name in (*LABELS, GROUPS) if name in arrays}
    return _reading(spec, sides, model, n, batches)


def _from_batches(
    spec: str, parts: Iterator[Any], model: SourceModel, limit: int | None
) -> Reading:
    """Return the samples of an iterator: it is gone through once, into memory-mapped files.

    How many there are is only known at the end, and so is what the labels are.
    """
    from aid_edge import samples  # noqa: PLC0415 -- only here
    from aid_edge.evaluate.data.dataset import _Keeper  # noqa: PLC0415 -- avoids an import cycle

    expected = [tensor.name for tensor in model.inputs]
    sides: dict[str, list[Any]] = {}

    def inputs() -> Batches:
        taken = 0
        for part in _user_parts(spec, parts):
            _check_names(spec, list(part), expected)
            room = None if limit is None else limit - taken
            if room == 0:
                return
            batch = {name: _array(spec, name, part[name])[:room] for name in expected}
            taken += len(batch[expected[0]])
            for name in (*LABELS, GROUPS):
                if name in part:
                    sides.setdefault(name, []).extend(list(part[name])[:room])
            yield batch

    keeper = _Keeper()
    stored = samples.write(keeper.folder, inputs())
    size = per_batch(stored.sample_bytes)

    def batches(chosen: Sequence[int]) -> Batches:
        _ = keeper  # the files live as long as this function does
        for start in range(0, len(chosen), size):
            yield stored.take(chosen[start : start + size])

    columns = {name: _column_of(values) for name, values in sides.items()}
    return _reading(spec, columns, model, stored.count, batches)


def _column_of(values: list[Any]) -> Any:
    is_nested = any(isinstance(v, list | tuple | np.ndarray) and np.ndim(v) for v in values)
    return values if is_nested else np.asarray(values)


def _reading(
    spec: str, sides: Mapping[str, Any], model: SourceModel, n: int, batches: Any
) -> Reading:
    given = [name for name in LABELS if name in sides]
    if len(given) > 1:
        raise DataError(f"{spec}: holds both {' and '.join(given)}; use one of them")
    targets: Targets | None = None
    kind: Kind = "classes"
    if given:
        targets, kind = understand(spec, sides[given[0]], model, n)
    groups = None
    if GROUPS in sides:
        column = _array(spec, GROUPS, sides[GROUPS])
        if column.shape != (n,):
            raise DataError(f"{spec}: {GROUPS}: expected shape [{n}], found {list(column.shape)}")
        groups = [str(g) for g in column]
    names = [f"#{i}" for i in range(n)]
    return Reading(spec, names, batches, targets=targets, kind=kind, groups=groups)


def _check_names(spec: str, found: Sequence[str], expected: Sequence[str]) -> None:
    unknown = sorted(set(found) - set(expected) - {*LABELS, GROUPS})
    if unknown or not set(expected) <= set(found):
        raise DataError(
            f"{spec}: expected an array for each input ({', '.join(expected)}); "
            f"found {', '.join(sorted(found)) or 'none'}",
            hint=f"Optional besides: {LABELS[0]} (or {LABELS[1]}), {GROUPS}.",
        )


def _array(spec: str, name: str, values: Any) -> Array:
    """Return what a mapping holds under ``name`` as an array of numbers, or of text for groups."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as e:
        raise DataError(f"{spec}: {name}: is no array: {e}") from e
    if array.dtype.kind == "O":
        raise DataError(
            f"{spec}: {name}: holds {type(values).__name__}; expected an array of numbers"
        )
    return array


# --- .npz --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _npz_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as e:
        raise DataError(f"{path}: there is no such file") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from e
    except (
        ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, SyntaxError,
        MemoryError, OverflowError,  # what a damaged header claims
        RuntimeError, NotImplementedError,  # encrypted, or a compression that is not known
    ) as e:  # fmt: skip
        raise DataError(
            f"{path}: is not a readable .npz file",
            cause=str(e),
            hint="It may be damaged or cut short; arrays of objects are refused.",
        ) from e


def _members(path: Path) -> dict[str, _Member]:
    with path.open("rb") as file:
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            raise DataError(f"{path}: holds one array without a name", hint="Use numpy.savez.")
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as file:
                member = _read_header(file)
                claimed = member.dtype.itemsize * math.prod(member.shape)
                # A small file can claim to hold any amount; nothing is made for it.
                if file.tell() + claimed != info.file_size:
                    raise ValueError(f"{name}: holds another number of bytes than it says")
            found[name] = member
    return found


def _read_header(file: IO[bytes]) -> _Member:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"format {version} of .npy is not read")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("arrays of objects are refused")
    return _Member(shape, dtype, fortran and len(shape) > 1)


def _whole(path: Path, name: str, member: _Member) -> Array:
    size = member.dtype.itemsize * math.prod(member.shape)
    if size > MAX_SIDE_BYTES:
        raise DataError(f"{path}: {name} holds {size} bytes; at most {MAX_SIDE_BYTES} are allowed")
    with zipfile.ZipFile(path) as archive:
        data = archive.read(f"{name}.npy")
    whole: Array = npy.read_array(io.BytesIO(data), allow_pickle=False)
    return whole


def _npz_batches(
    path: Path, members: Mapping[str, _Member], chosen: Sequence[int]
) -> Iterator[dict[str, Array]]:
    size = per_batch(sum(m.row_bytes for m in members.values()))
    with _npz_errors(path), contextlib.ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        columns = {
            name: _Rows(stack.enter_context(archive.open(f"{name}.npy")), member)
            for name, member in members.items()
        }
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            yield {name: rows.take(part) for name, rows in columns.items()}
        for rows in columns.values():
            rows.finish()


class _Rows:
    """Rows of an array in an archive, read in ascending order."""

    def __init__(self, file: IO[bytes], member: _Member) -> None:
        _read_header(file)
        self._file, self._member, self._at = file, member, 0
        # Columns first: no row stands in one piece, so the whole is needed.
        self._all = self._fortran() if member.fortran else None

    def take(self, indices: Sequence[int]) -> Array:
        """Return rows; none may lie before one that was taken."""
        if self._all is not None:
            return np.ascontiguousarray(self._all[list(indices)])
        made: Array = np.empty((len(indices), *self._member.shape[1:]), self._member.dtype)
        for place, index in enumerate(indices):
            self._skip((index - self._at) * self._member.row_bytes)
            row = self._read(self._member.row_bytes)
            made[place] = np.frombuffer(row, self._member.dtype).reshape(self._member.shape[1:])
            self._at = index + 1
        return made

    def finish(self) -> None:
        """Read what is left: the checksum stands at the end."""
        while self._file.read(_SKIP_BYTES):
            pass

    def _fortran(self) -> Array:
        values = np.frombuffer(self._read(self._member.row_bytes * self._member.shape[0]),
                               self._member.dtype)  # fmt: skip
        return values.reshape(self._member.shape, order="F")

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._read(min(count, _SKIP_BYTES)))

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise EOFError("is cut short")
        return data


# --- module:callable ---------------------------------------------------------------------------


def _called(spec: str) -> Any:
    module_name, _, name = spec.partition(":")
    # The user's own module lies in the folder where the command is run.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as e:  # the user's code may raise anything
        raise DataError(f"{spec}: cannot be imported", cause=f"{type(e).__name__}: {e}") from e
    try:
        return function()
    except (Exception, SystemExit) as e:  # the user's code may raise anything
        raise DataError(f"{spec}: failed: {type(e).__name__}: {e}") from e


def _user_parts(spec: str, parts: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
    while True:
        try:
            part = next(parts)
        except StopIteration:
            return
        except (Exception, SystemExit) as e:  # the user's code may raise anything
            raise DataError(f"{spec}: failed: {type(e).__name__}: {e}") from e
        if not isinstance(part, Mapping):
            raise DataError(f"{spec}: gave {type(part).__name__}; expected a mapping of arrays")
        yield part
