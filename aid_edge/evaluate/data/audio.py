"""Reads folders of ``.wav`` files for models of waveforms: flat, or one folder per class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aid_edge.errors import DataError, MissingDependencyError
from aid_edge.evaluate.data.images import find_files, folder_labels
from aid_edge.evaluate.data.reading import Batches, Reading, per_batch, sample_shape
from aid_edge.model import SourceModel
from device_agent.contract.tensors import TensorInfo

AUDIO_SUFFIXES = frozenset({".wav"})
MAX_FILE_BYTES = 512 * 2**20
"""Bound of one recording, which is held in memory while it is cut: 90 minutes of CD quality."""

MIN_LAST_SHARE = 0.5
"""The rest of a recording is padded with silence and used when it fills this much of a window."""

_FULL_SCALE = {"int16": 2**15, "int32": 2**31}


@dataclass(frozen=True)
class _Window:
    file: int
    number: int


def read_audio(folder: Path, spec: str, model: SourceModel) -> Reading:
    """Return windows of the recordings in a folder: mono, -1 to 1, the input's length each.

    Windows follow each other without overlap; those of one file are one group. The rate of all
    files must be the same: the one that the model was trained on, which no model says.

    Raises:
        DataError: The model does not take waveforms, or a file cannot be read; names the file.
        MissingDependencyError: SciPy, which reads the files, is not installed.
    """
    tensor, length = _waveform_input(spec, model)
    files = find_files(folder, AUDIO_SUFFIXES)
    labels = folder_labels(spec, folder, files, model)
    first_rate = 0
    windows = []
    for index, file in enumerate(files):
        samples, rate = _read(file)
        first_rate = first_rate or rate
        if rate != first_rate:
            raise DataError(
                f"{file}: has {rate} samples a second; {files[0].name} has {first_rate}",
                hint="Bring all recordings to the rate that the model was trained on.",
            )
        whole, rest = divmod(len(samples), length)
        number = max(whole + (rest >= MIN_LAST_SHARE * length), 1)
        windows += [_Window(index, i) for i in range(number)]

    def batches(chosen: Sequence[int]) -> Batches:
        picked = [windows[i] for i in chosen]
        cut = _cut(files, picked, length)
        size = per_batch(4 * length)
        for start in range(0, len(picked), size):
            values = [next(cut) for _ in picked[start : start + size]]
            shape = (
                len(values),
                *(length if d in {-1, length} else d for d in sample_shape(model, tensor)),
            )
            yield {tensor.name: np.stack(values).reshape(shape)}

    names = [str(f.relative_to(folder)) for f in files]
    return Reading(
        spec=spec,
        names=[f"{names[w.file]}#{w.number}" for w in windows],
        batches=batches,
        targets=None if labels is None else labels[[w.file for w in windows]],
        groups=[names[w.file] for w in windows],
    )


def _waveform_input(spec: str, model: SourceModel) -> tuple[TensorInfo, int]:
    """Return the input that takes a waveform, and how many samples it takes."""
    tensor = model.inputs[0]
    sizes = [d for d in sample_shape(model, tensor) if d != 1]
    if len(model.inputs) != 1 or tensor.datatype != "FP32" or len(sizes) != 1:
        raise DataError(
            f"{spec}: the model takes "
            f"{', '.join(f'{t.name} {t.datatype} {list(t.shape)}' for t in model.inputs)}; "
            "recordings feed one float input of samples [n, length]",
            hint="Give features as .npz, made by the model's own front end.",
        )
    if sizes[0] == -1:
        raise DataError(
            f"{spec}: input {tensor.name!r} takes any length",
            hint=f"Fix it, for example with --input {tensor.name}=1,16000.",
        )
    return tensor, sizes[0]


def _cut(
    files: Sequence[Path], windows: Sequence[_Window], length: int
) -> Iterator[npt.NDArray[np.float32]]:
    opened, samples = -1, np.zeros(0, np.float32)
    for window in windows:
        if window.file != opened:
            opened = window.file
            samples = _read(files[opened])[0]
        part = samples[window.number * length : (window.number + 1) * length]
        yield np.pad(part, (0, length - len(part)))


def _read(file: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Return a recording as mono, -1 to 1, and its rate in samples a second.

    PCM of 8, 16, 24 and 32 bits and floats.
    """
    try:
        from scipy.io import wavfile  # noqa: PLC0415 -- only recordings need it
    except ModuleNotFoundError as e:
        raise MissingDependencyError("reading recordings", "scipy", "convert") from e
    if (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise DataError(
            f"{file}: has {size} bytes; at most {MAX_FILE_BYTES} are allowed",
            hint="Cut it into shorter recordings.",
        )
    try:
        with warnings.catch_warnings():
            # A cut file is read as far as it goes, with a warning only; other chunks are no fault.
            warnings.filterwarnings("error", "Reached EOF prematurely")
            warnings.filterwarnings("ignore", "Chunk")
            rate, values = wavfile.read(file)
    except (OSError, ValueError, EOFError, wavfile.WavFileWarning, SyntaxError) as e:
        raise DataError(f"{file}: is not a readable recording", cause=str(e)) from e
    except Exception as e:  # struct.error and others of a damaged header
        raise DataError(f"{file}: is not a readable recording", cause=repr(e)) from e
    if not len(values) or rate <= 0:
        raise DataError(f"{file}: is an empty recording")
    # Eight bits are unsigned in WAV; 24 bits come in the upper bits of 32.
    if values.dtype == np.uint8:
        scaled = (values.astype(np.float32) - 128) / 128
    else:
        scaled = values.astype(np.float32) / _FULL_SCALE.get(values.dtype.name, 1)
    mono = scaled if scaled.ndim == 1 else scaled.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(f"{file}: holds NaN or infinity")
    return mono, int(rate)
