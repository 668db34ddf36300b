"""A data set: samples on disk in the layout the source model takes, and what is known of each."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge import leftovers, samples
from aid_edge.errors import DataError
from aid_edge.evaluate.data.reading import Array, Reading, check_input, evenly
from aid_edge.evaluate.data.targets import Kind, Targets, encode, pick
from aid_edge.model import SourceModel

MAX_DATA_BYTES = 64 * 2**30
"""Bound of a data set on disk, as the model takes it."""

_KIND = "aid-edge-data-"
_MIN_FREE_BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples in the layout and element type that the source model takes.

    Attributes:
        spec: What it was loaded from, as the user gave it.
        inputs: Array [n, ...] per input: :class:`aid_edge.samples.Samples`, which lie on disk.
        targets: What is right for each sample, or None; see :mod:`aid_edge.evaluate.data.targets`.
        groups: Cluster per sample, or None when samples are independent.
        names: What to call each sample: its file, its line, or its number.
        images: Image file per sample, or None when the data are not image files.
        digest: Over all samples, targets and groups in order.
        sample_digests: One per sample, over its inputs only.
        kind: What ``targets`` are.
        is_random: Whether the inputs are noise: good for shapes and speed, for no range or quality.
    """

    spec: str
    inputs: Mapping[str, Array]
    targets: Targets | None
    groups: tuple[str, ...] | None
    names: tuple[str, ...]
    images: tuple[Path, ...] | None
    digest: str
    sample_digests: tuple[str, ...]
    kind: Kind = "classes"
    is_random: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class index per sample, [n]; None when targets are something else, or unknown."""
        if self.kind != "classes" or not isinstance(self.targets, np.ndarray):
            return None
        return self.targets

    @property
    def clusters(self) -> int:
        """Number of independent units: groups where there are any, else samples."""
        return len(self) if self.groups is None else len(set(self.groups))

    def take(self, indices: Sequence[int]) -> dict[str, Array]:
        """Return the inputs of some samples, array [len(indices), ...] per input."""
        return {name: np.array(array[list(indices)]) for name, array in self.inputs.items()}

    def targets_of(self, indices: Sequence[int]) -> Targets | None:
        """Return the targets of some samples, or None when there are none."""
        return None if self.targets is None else pick(self.targets, indices)


def store(
    reading: Reading, model: SourceModel, *, limit: int | None, folder: Path | None
) -> DataSet:
    """Write what a reader reads to disk, batch by batch, and return it as a data set.

    Memory stays flat in the number of samples.

    Args:
        reading: What to read.
        model: Whose inputs every batch is checked against.
        limit: Take at most this many samples, evenly spaced.
        folder: Where to write, kept afterwards; else a temporary folder that goes with the data.

    Raises:
        DataError: Samples cannot be read, do not fit the model, or do not fit on the disk.
    """
    if not reading.names:
        raise DataError(f"{reading.spec}: is empty")
    chosen = evenly(len(reading.names), limit)
    keeper = _Keeper() if folder is None else None
    place = folder if keeper is None else keeper.folder
    if place is None:  # pragma: no cover -- one of the two is there
        raise DataError("no place for samples")
    digests: list[str] = []
    checked = _checked(reading, model, chosen, place, digests)
    stored = replace(samples.write(place, checked), keeper=keeper)
    groups = None if reading.groups is None else tuple(reading.groups[i] for i in chosen)
    targets = None if reading.targets is None else pick(reading.targets, chosen)
    whole = hashlib.sha256("\n".join(digests).encode())
    if targets is not None:
        whole.update(b"labels" + encode(targets))
    if groups is not None:
        whole.update(b"groups" + "\n".join(groups).encode())
    return DataSet(
        spec=reading.spec,
        inputs=stored,
        targets=targets,
        groups=groups,
        names=tuple(reading.names[i] for i in chosen),
        images=None if reading.images is None else tuple(reading.images[i] for i in chosen),
        digest=f"sha256:{whole.hexdigest()}",
        sample_digests=tuple(digests),
        kind=reading.kind,
        is_random=reading.is_random,
    )


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


class _Keeper:
    """A temporary folder that is deleted when nobody holds the samples in it, or at exit."""

    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        # A killed process deletes nothing, and samples may take gigabytes.
        leftovers.clear(parent.glob(f"{_KIND}*"), _KIND)
        self.folder = leftovers.make(parent, _KIND)
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def _checked(
    reading: Reading, model: SourceModel, chosen: Sequence[int], place: Path, digests: list[str]
) -> Iterator[dict[str, Array]]:
    """Yield the batches of ``reading`` once they were checked; fills ``digests``."""
    tensors = {tensor.name: tensor for tensor in model.inputs}
    for batch in reading.batches(chosen):
        n = len(next(iter(batch.values())))
        if not digests:
            sample_bytes = sum(array.nbytes for array in batch.values()) // max(n, 1)
            _check_size(reading.spec, sample_bytes * len(chosen), place)
        for name, array in batch.items():
            check_input(
                reading.spec, array, tensors[name], n,
                batched=model.batched, first=len(digests), chosen=chosen,
            )  # fmt: skip
        digests.extend(_sample_digest(batch, i) for i in range(n))
        yield batch
    if len(digests) != len(chosen):
        raise DataError(f"{reading.spec}: {len(digests)} of {len(chosen)} samples could be read")


def _check_size(spec: str, needed_bytes: int, place: Path) -> None:
    if needed_bytes > MAX_DATA_BYTES:
        raise DataError(
            f"{spec}: takes {needed_bytes} bytes as the model takes it; "
            f"at most {MAX_DATA_BYTES} are allowed",
            hint="Take fewer samples.",
        )
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free - _MIN_FREE_BYTES
    if needed_bytes > free:
        raise DataError(
            f"{spec}: takes {needed_bytes // 2**20} MiB on disk as the model takes it; "
            f"{max(free, 0) // 2**20} MiB are free in {place}",
            hint="Take fewer samples, or set TMPDIR to a larger disk.",
        )


def _sample_digest(inputs: Mapping[str, Array], index: int) -> str:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        sample: npt.NDArray[Any] = inputs[name][index]
        digest.update(f"{name} {sample.dtype.str} {sample.shape}\n".encode())
        digest.update(np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()
