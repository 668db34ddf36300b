"""Data sets for calibration and evaluation, loaded and checked against the model.

Three forms: ``.npz`` (arrays by input name, and ``labels``, ``groups``), a folder of images (flat,
or with one folder per class), and ``module:callable``, which returns what an ``.npz`` would hold.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from aid_edge.errors import DataError
from aid_edge.evaluate.preprocess import image_channels, prepare
from aid_edge.model import SourceModel
from aid_edge.sources.inspection import NUMPY_NAMES
from device_agent.contract.tensors import TensorInfo

LABELS = "labels"
GROUPS = "groups"
"""Cluster of each sample: samples of one group, such as crops of one photo, are not independent."""

GROUP_SEPARATOR = "__"
"""``photo__3.png`` is crop 3 of ``photo``, and so of the group ``photo``."""

MAX_DATA_BYTES = 4 * 2**30
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"})

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples in the layout and element type that the source model takes.

    Attributes:
        spec: What it was loaded from, as the user gave it.
        inputs: Array [n, ...] per input.
        labels: Class index per sample, int64 [n], or None.
        groups: Cluster per sample, or None when samples are independent.
        names: What to call each sample: its file, or its number.
        images: Image file per sample, or None when the data are not image files.
        digest: Over all samples, labels and groups in order.
        sample_digests: One per sample, over its inputs only.
    """

    spec: str
    inputs: dict[str, Array]
    labels: npt.NDArray[np.int64] | None
    groups: tuple[str, ...] | None
    names: tuple[str, ...]
    images: tuple[Path, ...] | None
    digest: str
    sample_digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def clusters(self) -> int:
        """Number of independent units: groups where there are any, else samples."""
        return len(self) if self.groups is None else len(set(self.groups))

    def take(self, indices: Sequence[int]) -> dict[str, Array]:
        """Return the inputs of some samples, array [len(indices), ...] per input."""
        return {name: array[list(indices)] for name, array in self.inputs.items()}


def load(
    spec: str, model: SourceModel, *, labelled: bool = False, limit: int | None = None
) -> DataSet:
    """Return the data that ``spec`` names, checked against the inputs and outputs of ``model``.

    Args:
        spec: Path of an ``.npz`` or a folder of images, or ``module:callable``.
        model: What the data are for.
        labelled: Whether labels are required.
        limit: Take at most this many samples, evenly spaced.

    Raises:
        DataError: Missing, empty, too large, not finite, of a wrong name, shape or element type,
            or with labels that do not fit the outputs; says what was expected and found.
    """
    if spec == "random":
        raise DataError(
            "random data are refused: ranges and figures made from them would mean nothing",
            hint="Give a few dozen real inputs; calibration needs no labels.",
        )
    path = Path(spec).expanduser()
    if path.is_dir():
        data = _from_folder(spec, path, model, limit)
    elif path.suffix == ".npz" or path.is_file():
        data = _from_arrays(spec, _read_npz(path), model, limit)
    elif ":" in spec:
        data = _from_arrays(spec, _call(spec), model, limit)
    else:
        raise DataError(
            f"{spec}: there is no such data",
            hint="Give an .npz file, a folder of images, or module:callable.",
        )
    if labelled and data.labels is None:
        raise DataError(
            f"{spec}: has no labels, so accuracy cannot be measured",
            hint=f"Add an array {LABELS!r}, or one folder per class; "
            "for unlabelled inputs use --fidelity.",
        )
    return data


def refuse_overlap(calibration: DataSet, other: DataSet, role: str) -> None:
    """Return if no sample of ``other`` is also in ``calibration``, judged by content.

    Raises:
        DataError: Some are; figures on them would flatter.
    """
    seen = set(calibration.sample_digests)
    shared = [name for name, d in zip(other.names, other.sample_digests, strict=True) if d in seen]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(other)} samples of the {role} data {other.spec} are also in "
            f"the calibration data {calibration.spec}",
            cause=f"same content: {', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}",
            hint="Calibrate on other inputs: figures on inputs that were calibrated on flatter.",
        )


def shared_groups(calibration: DataSet, other: DataSet) -> tuple[str, ...]:
    """Return the groups, such as photos, that both data sets have samples of."""
    return tuple(sorted(set(calibration.groups or ()) & set(other.groups or ())))


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: holds one array without a name", hint="Use numpy.savez.")
            # Asked before anything is unpacked: a small file can claim to hold any amount.
            members = [] if archive.zip is None else archive.zip.infolist()
            size = sum(member.file_size for member in members)
            if size > MAX_DATA_BYTES:
                raise DataError(
                    f"{path}: holds {size} bytes; at most {MAX_DATA_BYTES} are allowed",
                    hint="Take fewer samples.",
                )
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as e:
        raise DataError(f"{path}: there is no such file") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from e
    except (
        ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError,
        MemoryError,  # what a damaged header claims
        RuntimeError,  # encrypted, or a compression that is not known
    ) as e:  # fmt: skip
        raise DataError(
            f"{path}: is not a readable .npz file",
            cause=str(e),
            hint="It may be damaged or cut short; arrays of objects are refused.",
        ) from e


def _call(spec: str) -> Mapping[str, Any]:
    module_name, _, name = spec.partition(":")
    # The user's own module lies in the folder where the command is run.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as e:  # the user's code may raise anything
        raise DataError(f"{spec}: cannot be imported", cause=f"{type(e).__name__}: {e}") from e
    try:
        data = function()
    except (Exception, SystemExit) as e:  # the user's code may raise anything
        raise DataError(f"{spec}: failed: {type(e).__name__}: {e}") from e
    if not isinstance(data, Mapping):
        raise DataError(f"{spec}: returned {type(data).__name__}; expected a mapping of arrays")
    return data


def _from_arrays(
    spec: str, arrays: Mapping[str, Any], model: SourceModel, limit: int | None
) -> DataSet:
    expected = {tensor.name: tensor for tensor in model.inputs}
    unknown = sorted(set(arrays) - set(expected) - {LABELS, GROUPS})
    missing = sorted(set(expected) - set(arrays))
    if missing or unknown:
        raise DataError(
            f"{spec}: expected an array for each input ({', '.join(expected)}); "
            f"found {', '.join(sorted(arrays)) or 'none'}",
            hint=f"Optional besides: {LABELS}, {GROUPS}.",
        )
    inputs = {name: _array(spec, name, arrays[name]) for name in expected}
    n = len(next(iter(inputs.values()))) if all(a.ndim for a in inputs.values()) else 0
    if n == 0:
        raise DataError(f"{spec}: is empty")
    for name, array in inputs.items():
        check_input(spec, array, expected[name], n)
    pick = _evenly(n, limit)
    labels = _column(spec, arrays, LABELS, n)
    groups = _column(spec, arrays, GROUPS, n)
    return _finish(
        spec,
        {name: np.ascontiguousarray(array[pick]) for name, array in inputs.items()},
        labels=None if labels is None else check_labels(spec, labels, model)[pick],
        groups=None if groups is None else tuple(str(groups[i]) for i in pick),
        names=tuple(f"#{i}" for i in pick),
        images=None,
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


def check_input(spec: str, array: Array, tensor: TensorInfo, n: int) -> None:
    """Return if ``array`` holds ``n`` finite samples of ``tensor``.

    Raises:
        DataError: It does not; names the input, what was expected and what was found.
    """
    wanted = ["n", *("any" if d == -1 else str(d) for d in tensor.shape[1:])]
    shape_fits = array.ndim == len(wanted) and all(
        want in {"n", "any"} or int(want) == have
        for want, have in zip(wanted, array.shape, strict=True)
    )
    where = f"{spec}: input {tensor.name!r}"
    if not shape_fits:
        raise DataError(f"{where}: expected shape [{', '.join(wanted)}], found {list(array.shape)}")
    if array.dtype != np.dtype(NUMPY_NAMES[tensor.datatype]):
        raise DataError(
            f"{where}: expected dtype {NUMPY_NAMES[tensor.datatype]}, found {array.dtype}",
            hint="Data are taken as they are, after the model's own preprocessing.",
        )
    if len(array) != n:
        raise DataError(f"{where}: has {len(array)} samples where the first input has {n}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array.reshape(n, -1)).all(axis=1))
        raise DataError(
            f"{where}: {len(bad)} of {n} samples hold NaN or infinity, first sample {bad[0]}"
        )


def check_labels(spec: str, labels: Array, model: SourceModel) -> npt.NDArray[np.int64]:
    """Return ``labels`` as class indices of the model's first output.

    Raises:
        DataError: They are not whole numbers, or name classes that the output does not have.
    """
    if labels.dtype.kind not in "iu":
        raise DataError(f"{spec}: labels: expected whole numbers, found dtype {labels.dtype}")
    indices = labels.astype(np.int64)
    output = model.outputs[0]
    classes = output.shape[-1] if output.shape else 0
    if classes > 0 and (indices.min() < 0 or indices.max() >= classes):
        wrong = int(indices.max() if indices.max() >= classes else indices.min())
        raise DataError(
            f"{spec}: labels: {wrong} is not a class of output {output.name!r}, "
            f"which has {classes} (0 to {classes - 1})"
        )
    return indices


def _column(spec: str, arrays: Mapping[str, Any], name: str, n: int) -> Array | None:
    if name not in arrays:
        return None
    column = _array(spec, name, arrays[name])
    if column.shape != (n,):
        raise DataError(f"{spec}: {name}: expected shape [{n}], found {list(column.shape)}")
    return column


def _from_folder(spec: str, folder: Path, model: SourceModel, limit: int | None) -> DataSet:
    if len(model.inputs) != 1:
        raise DataError(
            f"{spec}: images can feed a model of one input; this has {len(model.inputs)}"
        )
    tensor = model.inputs[0]
    steps = model.card.preprocess if model.card is not None else ()
    if not steps:
        raise DataError(
            f"{spec}: the model declares no preprocessing, so images cannot be prepared for it",
            hint="Add [[preprocess]] steps to model.toml (--model-card), or give an .npz.",
        )
    image_channels(tensor, steps)
    files = _image_files(folder)
    classes = sorted({f.parent.name for f in files if f.parent != folder})
    if classes and any(f.parent == folder for f in files):
        raise DataError(f"{spec}: holds images beside class folders; use one or the other")
    if not files:
        raise DataError(
            f"{spec}: holds no images", hint=f"Known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    index = _class_indices(spec, classes, model) if classes else {}
    chosen = [files[i] for i in _evenly(len(files), limit)]
    pixels: list[Array] = []
    for file in chosen:
        pixels.append(_prepare(file, model, tensor))
        if len(chosen) * pixels[0].nbytes > MAX_DATA_BYTES:
            raise DataError(
                f"{spec}: {len(chosen)} images take {len(chosen) * pixels[0].nbytes} bytes "
                f"prepared; at most {MAX_DATA_BYTES} are allowed"
            )
    if len({p.shape for p in pixels}) > 1:
        raise DataError(
            f"{spec}: images come out in different sizes",
            hint="Add a center-crop step to the model card.",
        )
    stacked = np.stack(pixels)
    check_input(spec, stacked, tensor, len(chosen))
    names = tuple(str(f.relative_to(folder)) for f in chosen)
    grouped = all(GROUP_SEPARATOR in f.stem for f in chosen)
    return _finish(
        spec,
        {tensor.name: stacked},
        labels=np.array([index[f.parent.name] for f in chosen], np.int64) if classes else None,
        groups=tuple(f.stem.split(GROUP_SEPARATOR)[0] for f in chosen) if grouped else None,
        names=names,
        images=tuple(chosen),
    )


def _image_files(folder: Path) -> list[Path]:
    def images(where: Path) -> list[Path]:
        return [p for p in where.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]

    try:
        found = images(folder)
        for sub in folder.iterdir():
            if sub.is_dir():
                found += images(sub)
    except OSError as e:
        raise DataError(f"{folder}: cannot be read: {e.strerror}") from e
    return sorted(found)


def _class_indices(spec: str, classes: Sequence[str], model: SourceModel) -> dict[str, int]:
    labels = model.card.labels if model.card is not None else ()
    by_name = {label: i for i, label in enumerate(labels)}
    if all(name in by_name for name in classes):
        return {name: by_name[name] for name in classes}
    if all(name.isdecimal() for name in classes):
        indices = {name: int(name) for name in classes}
        check_labels(spec, np.array(list(indices.values())), model)
        return indices
    wrong = next(name for name in classes if name not in by_name)
    raise DataError(
        f"{spec}: folder {wrong!r} is neither a label of the model nor a class number",
        hint="Name class folders as in the model card's labels, or by class number.",
    )


def _prepare(file: Path, model: SourceModel, tensor: TensorInfo) -> Array:
    steps = model.card.preprocess if model.card is not None else ()
    try:
        with Image.open(file) as image:
            return prepare(image, steps, tensor)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as e:
        raise DataError(f"{file}: is not a readable image", cause=str(e)) from e
    except DataError as e:
        raise DataError(f"{file}: {e}", hint=e.hint) from e


def _evenly(n: int, limit: int | None) -> list[int]:
    if limit is None or n <= limit:
        return list(range(n))
    return [i * n // limit for i in range(limit)]


def _finish(
    spec: str,
    inputs: dict[str, Array],
    *,
    labels: npt.NDArray[np.int64] | None,
    groups: tuple[str, ...] | None,
    names: tuple[str, ...],
    images: tuple[Path, ...] | None,
) -> DataSet:
    digests = tuple(_sample_digest(inputs, i) for i in range(len(names)))
    whole = hashlib.sha256("\n".join(digests).encode())
    if labels is not None:
        whole.update(b"labels" + labels.astype("<i8").tobytes())
    if groups is not None:
        whole.update(b"groups" + "\n".join(groups).encode())
    name = os.fspath(spec)
    return DataSet(
        name, inputs, labels, groups, names, images, f"sha256:{whole.hexdigest()}", digests
    )


def _sample_digest(inputs: Mapping[str, Array], index: int) -> str:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        sample = inputs[name][index]
        digest.update(f"{name} {sample.dtype.str} {sample.shape}\n".encode())
        digest.update(np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()
