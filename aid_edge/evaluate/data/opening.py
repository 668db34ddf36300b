"""The door to data: recognizes the kind, reads it, checks it, and puts it on disk.

========================  ========================================================================
``.npz``                  arrays by input name, and ``labels`` (or ``targets``), ``groups``
a folder of images        flat, or with one folder per class
a folder of ``.wav``      likewise, for models of waveforms
``.csv``                  one row per sample, or per time step
``module:callable``       what an ``.npz`` would hold, or an iterator of batches of it
``random``                noise, where the caller allows it
========================  ========================================================================
"""

from __future__ import annotations

from pathlib import Path

from aid_edge.errors import DataError
from aid_edge.evaluate.data.arrays import LABELS, call, read_npz
from aid_edge.evaluate.data.audio import AUDIO_SUFFIXES, read_audio
from aid_edge.evaluate.data.dataset import DataSet, store
from aid_edge.evaluate.data.images import find_files, read_images
from aid_edge.evaluate.data.noise import read_noise
from aid_edge.evaluate.data.reading import Reading
from aid_edge.evaluate.data.tables import TABLE_SUFFIXES, read_table
from aid_edge.model import SourceModel

RANDOM = "random"


def load(
    spec: str,
    model: SourceModel,
    *,
    labelled: bool = False,
    limit: int | None = None,
    folder: Path | None = None,
    allow_random: bool = False,
    seed: int = 0,
) -> DataSet:
    """Return the data that ``spec`` names, checked against the inputs and outputs of ``model``.

    Args:
        spec: Path, ``module:callable`` or ``random``.
        model: What the data are for.
        labelled: Whether labels are required.
        limit: Take at most this many samples, evenly spaced.
        folder: Where the prepared samples are put, and kept; else a temporary folder that is
            deleted when nobody holds the data any more.
        allow_random: Whether noise will do: the data set is marked ``is_random``.
        seed: Of the noise.

    Raises:
        DataError: Missing, empty, too large, not finite, of a wrong name, shape or element type,
            or with labels that do not fit the outputs; says what was expected and found.
    """
    if spec == RANDOM:
        reading = _noise(model, limit, seed, allow_random=allow_random, labelled=labelled)
    else:
        reading = _recognized(spec, model, limit)
    if labelled and reading.targets is None:
        raise DataError(
            f"{spec}: has no labels, without which there is nothing to judge or train by",
            hint=f"Add an array or column {LABELS[0]!r}, or one folder per class; "
            "for unlabelled inputs use --fidelity.",
        )
    return store(reading, model, limit=limit, folder=folder)


def _recognized(spec: str, model: SourceModel, limit: int | None) -> Reading:
    path = Path(spec).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        if find_files(path, AUDIO_SUFFIXES):
            return read_audio(path, spec, model)
        return read_images(path, spec, model)
    if suffix in TABLE_SUFFIXES:
        return read_table(path, spec, model)
    if suffix in AUDIO_SUFFIXES:
        raise DataError(f"{spec}: is one recording", hint="Give the folder that it lies in.")
    if suffix == ".npz" or path.is_file():
        return read_npz(path, spec, model)
    if ":" in spec:
        return call(spec, model, limit)
    raise DataError(
        f"{spec}: there is no such data",
        hint="Give an .npz or .csv file, a folder of images or .wav files, or module:callable.",
    )


def _noise(
    model: SourceModel, limit: int | None, seed: int, *, allow_random: bool, labelled: bool
) -> Reading:
    if not allow_random or labelled:
        raise DataError(
            "random data are refused: ranges and figures made from them would mean nothing",
            hint="Give a few dozen real inputs; calibration needs no labels.",
        )
    return read_noise(model, limit, seed)
