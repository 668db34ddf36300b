"""Reads ``.csv``: one row per sample, or one row per time step of a series.

The first row names the columns. What is right stands in a column ``label`` (or ``target``), what
belongs together in ``group`` (or ``series``); the rest are inputs:

- a column with the name of an input holds its value, or its values with spaces between;
- columns ``NAME.0``, ``NAME.1``, ... hold the values of input ``NAME``, in order;
- where the model has one input and no column is named after it, all of them in order.

A model of one input [n, steps, channels] or [n, channels, steps] also takes one row per time step,
with one column per channel: windows of ``steps`` rows that follow each other are cut from each
series. A window has the label that most of its rows have, and its series is its group.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aid_edge.errors import DataError
from aid_edge.evaluate.data.reading import Array, Batches, Reading, per_batch, sample_shape
from aid_edge.evaluate.data.targets import Kind, Targets, class_of, understand
from aid_edge.model import SourceModel
from aid_edge.sources.inspection import NUMPY_NAMES
from device_agent.contract.tensors import TensorInfo

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
LABEL_COLUMNS = ("label", "labels", "target", "targets")
GROUP_COLUMNS = ("group", "groups", "series")
MAX_CELL_CHARACTERS = 1_000_000
MAX_ROWS = 20_000_000

_DELIMITERS = ",;\t"
_LARGEST_EXACT = 2**53


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table are what, by their number.

    Attributes:
        inputs: Per input, the columns that hold its values.
        steps: Rows of a window, where a row is a time step; else 0.
    """

    width: int
    inputs: dict[str, list[int]]
    label: int | None
    group: int | None
    steps: int = 0


@dataclass(frozen=True)
class _Row:
    line: int
    cells: list[str]


@dataclass(frozen=True)
class _Window:
    """Rows of one series that follow each other, by the line in the file."""

    name: str
    lines: tuple[int, ...]
    label: str | None
    group: str | None


def read_table(path: Path, spec: str, model: SourceModel) -> Reading:
    """Return the samples in a table; it is gone through twice and never held in memory.

    Raises:
        DataError: It cannot be read or does not fit the model; names file, line and column.
    """
    columns = _columns(path, model)
    windows = list(_windows(path, columns))
    if not windows:
        whole = f"no series has {columns.steps} rows" if columns.steps else "has no rows"
        raise DataError(f"{spec}: is empty: {whole}")
    targets, kind = _targets(path, spec, windows, model)
    has_groups = columns.group is not None or columns.steps

    def batches(chosen: Sequence[int]) -> Batches:
        return _batches(path, columns, model, [windows[i] for i in chosen])

    return Reading(
        spec=spec,
        names=[w.name for w in windows],
        batches=batches,
        targets=targets,
        kind=kind,
        groups=[w.group or "" for w in windows] if has_groups else None,
    )


# --- columns -----------------------------------------------------------------------------------


def _columns(path: Path, model: SourceModel) -> _Columns:
    header = next(_rows(path), None)
    if header is None:
        raise DataError(f"{path}: is empty")
    names = [cell.strip() for cell in header.cells]
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path}: line {header.line}: holds numbers where the names of columns are expected",
            hint="Add a first line such as: x.0,x.1,x.2,label",
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {twice!r}")
    label = _one_of(path, names, LABEL_COLUMNS)
    group = _one_of(path, names, GROUP_COLUMNS)
    rest = [i for i in range(len(names)) if i not in {label, group}]
    inputs = {t.name: _columns_of(t.name, names) for t in model.inputs}
    if len(inputs) == 1 and not any(inputs.values()):
        inputs = {model.inputs[0].name: rest}
    used = {i for found in inputs.values() for i in found}
    unknown = [names[i] for i in rest if i not in used]
    missing = [name for name, found in inputs.items() if not found]
    if unknown or missing:
        raise DataError(
            f"{path}: expected columns for each input ({', '.join(inputs)}); "
            + (f"none for {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)}"),
            hint=f"Optional besides: {LABEL_COLUMNS[0]}, {GROUP_COLUMNS[0]}.",
        )
    steps = 0
    if len(model.inputs) == 1:
        steps = _steps(path, model, len(rest), names)
    return _Columns(len(names), inputs, label, group, steps)


def _columns_of(name: str, names: Sequence[str]) -> list[int]:
    if name in names:
        return [names.index(name)]
    pattern = re.compile(re.escape(name) + r"\.(\d+)\Z")
    found = sorted((int(m[1]), i) for i, n in enumerate(names) if (m := pattern.match(n)))
    return [i for _, i in found]


def _one_of(path: Path, names: Sequence[str], wanted: Sequence[str]) -> int | None:
    found = [i for i, name in enumerate(names) if name.lower() in wanted]
    if len(found) > 1:
        raise DataError(f"{path}: columns {', '.join(names[i] for i in found)} mean the same")
    return found[0] if found else None


def _steps(path: Path, model: SourceModel, width: int, names: Sequence[str]) -> int:
    """Return how many rows make a window; 0 when one row is a sample."""
    tensor = model.inputs[0]
    sizes = sample_shape(model, tensor)
    values = math.prod(sizes)
    # One column may hold all values of a sample, with spaces between.
    if -1 in sizes or width in {values, 1}:
        return 0
    if len(sizes) == 2 and width in sizes:
        return sizes[0] if sizes[1] == width else sizes[1]
    label = ", ".join(LABEL_COLUMNS)
    raise DataError(
        f"{path}: {width} columns for input {tensor.name!r}, which takes {values} values: "
        f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
        hint=f"The column of what is right must be called {label}." if width == values + 1 else "",
    )


# --- rows --------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[_Row]:
    """Yield the rows of a table with the line they end on; empty lines are left out."""
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline(MAX_CELL_CHARACTERS)
            file.seek(0)
            delimiter = max(_DELIMITERS, key=head.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if reader.line_num > MAX_ROWS:
                    raise DataError(f"{path}: has over {MAX_ROWS} lines", hint="Use an .npz.")
                if any(cell.strip() for cell in cells):
                    yield _Row(reader.line_num, cells)
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: is not UTF-8 text", cause=str(e)) from e
    except csv.Error as e:
        raise DataError(f"{path}: line {reader.line_num}: is not CSV", cause=str(e)) from e


def _windows(path: Path, columns: _Columns) -> Iterator[_Window]:
    rows = _rows(path)
    next(rows)
    pending: dict[str, list[tuple[int, str | None]]] = {}
    for row in rows:
        if len(row.cells) != columns.width:
            raise DataError(
                f"{path}: line {row.line}: has {len(row.cells)} cells; "
                f"the first line has {columns.width}"
            )
        label = None if columns.label is None else row.cells[columns.label].strip()
        group = None if columns.group is None else row.cells[columns.group].strip()
        if not columns.steps:
            yield _Window(f"line {row.line}", (row.line,), label, group)
            continue
        open_rows = pending.setdefault(group or "", [])
        open_rows.append((row.line, label))
        if len(open_rows) == columns.steps:
            labels = Counter(text for _, text in open_rows if text is not None)
            most = labels.most_common(1)[0][0] if labels else None
            lines = tuple(line for line, _ in open_rows)
            yield _Window(f"lines {lines[0]}-{lines[-1]}", lines, most, group or "")
            open_rows.clear()


def _batches(
    path: Path, columns: _Columns, model: SourceModel, windows: Sequence[_Window]
) -> Batches:
    size = per_batch(sum(8 * abs(math.prod(sample_shape(model, t))) for t in model.inputs))
    # Windows of different series may lie across each other; each is done with its last line.
    wanted = {line: i for i, window in enumerate(windows) for line in window.lines}
    parts: dict[int, list[dict[str, Array]]] = {}
    done: dict[int, dict[str, Array]] = {}
    batch: list[dict[str, Array]] = []
    following = 0
    rows = _rows(path)
    next(rows)
    for row in rows:
        if (i := wanted.get(row.line)) is None:
            continue
        parts.setdefault(i, []).append(
            {t.name: _values(path, row, columns.inputs[t.name], t) for t in model.inputs}
        )
        if len(parts[i]) < len(windows[i].lines):
            continue
        done[i] = {
            t.name: _shaped(path, row, (t.name, sample_shape(model, t)), parts[i], columns.steps)
            for t in model.inputs
        }
        del parts[i]
        while following in done:
            batch.append(done.pop(following))
            following += 1
        if len(batch) >= size:
            yield _stacked(path, batch)
            batch = []
    if batch:
        yield _stacked(path, batch)


def _values(path: Path, row: _Row, columns: Sequence[int], tensor: TensorInfo) -> Array:
    cells = [row.cells[i].strip() for i in columns]
    texts = cells[0].split() if len(cells) == 1 else cells
    dtype = np.dtype(NUMPY_NAMES[tensor.datatype])
    found = []
    for number, text in enumerate(texts):
        if not _is_number(text) or (dtype.kind in "iub" and not _fits(text, dtype)):
            column = f"column {columns[min(number, len(columns) - 1)] + 1}"
            raise DataError(
                f"{path}: line {row.line}: {column}: {text[:40]!r} is no {dtype.name} "
                f"for input {tensor.name!r}"
            )
        found.append(int(float(text)) if dtype.kind in "iub" else float(text))
    return np.array(found, dtype)


def _shaped(
    path: Path,
    row: _Row,
    wanted: tuple[str, tuple[int, ...]],
    parts: Sequence[dict[str, Array]],
    steps: int,
) -> Array:
    """Return the values of one sample, as the input of this name and shape takes them."""
    name, sizes = wanted
    if steps:
        window = np.stack([part[name] for part in parts])
        return window if window.shape == sizes else window.T
    values = parts[0][name]
    fixed = math.prod(d for d in sizes if d != -1)
    is_free = sizes.count(-1) == 1 and len(values) and len(values) % fixed == 0
    if len(values) != fixed and not is_free:
        raise DataError(
            f"{path}: line {row.line}: {len(values)} values for input {name!r}, "
            f"which takes {fixed if -1 not in sizes else list(sizes)}"
        )
    return values.reshape(sizes)


def _stacked(path: Path, rows: Sequence[dict[str, Array]]) -> dict[str, Array]:
    for name in rows[0]:
        if len({row[name].shape for row in rows}) > 1:
            raise DataError(f"{path}: rows hold different numbers of values for input {name!r}")
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _fits(text: str, dtype: np.dtype[Any]) -> bool:
    value = float(text)
    if dtype.kind == "b":
        return value in {0, 1}
    # Floats hold larger whole numbers only in steps: an id would silently be another one.
    limits = np.iinfo(dtype)
    return value == int(value) and abs(value) < _LARGEST_EXACT and limits.min <= value <= limits.max


# --- labels ------------------------------------------------------------------------------------


def _targets(
    path: Path, spec: str, windows: Sequence[_Window], model: SourceModel
) -> tuple[Targets | None, Kind]:
    """Return the labels: names or numbers of classes, values, or ids with spaces between."""
    texts = [w.label for w in windows if w.label is not None]
    if len(texts) != len(windows):
        return None, "classes"
    names = model.card.labels if model.card is not None else ()
    if any(text in names for text in texts):
        classes = [class_of(f"{path}: {w.name}", str(w.label), model) for w in windows]
        return np.array(classes, np.int64), "classes"
    rows = [text.split() for text in texts]
    for window, cells in zip(windows, rows, strict=True):
        if not all(_is_number(cell) for cell in cells) or not (cells or any(rows)):
            raise DataError(
                f"{path}: {window.name}: label {str(window.label)[:40]!r} is neither a label of "
                "the model nor a number"
            )
    is_whole = all(re.fullmatch(r"[+-]?\d+", cell) for row in rows for cell in row)
    if all(len(row) == 1 for row in rows):
        column = np.array([float(row[0]) for row in rows])
        values = column.astype(np.int64) if is_whole else column
        return understand(spec, values, model, len(rows))
    if not is_whole:
        if len({len(row) for row in rows}) > 1:
            raise DataError(f"{path}: labels have different numbers of values")
        return understand(spec, np.array(rows, np.float64), model, len(rows))
    return understand(spec, [[int(cell) for cell in row] for row in rows], model, len(rows))
