"""Which framework a source model is written for, told from its content without loading it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from aid_edge.errors import SourceError, first_line
from aid_edge.model import Framework
from aid_edge.sources.inspection import check_file

ARCHIVE_SUFFIX = ".pt2"
SAVED_MODEL = "saved_model.pb"
KINDS = (
    "Read are: PyTorch as path/to/file.py:factory or module:factory (with --weights), .pt2 "
    "(torch.export), TorchScript, ONNX (.onnx), Keras (.keras, .h5), SavedModel folders, .tflite."
)
_SUFFIXES: dict[str, Framework] = {
    ".onnx": "onnx", ".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".tflite": "tflite",
    ".pt2": "torch",
}  # fmt: skip
_ZIPPED = frozenset({".pth", ".pt", ".pts", ".ts", ".jit", ".torchscript", ".bin", ".ckpt", ".zip"})
_WEIGHTS = frozenset({".pth", ".pt", ".safetensors", ".bin", ".ckpt"})
_MAX_ENTRIES = 200_000

Archive = Literal["torchscript", "pt2", "state-dict", "other"]


def recognize(spec: str) -> Framework:
    """Return the framework of the model that ``spec`` names, without loading it.

    Raises:
        SourceError: There is no such file, or it is of no kind that is read.
    """
    path = Path(spec)
    if ":" in spec and not path.exists():
        _check_factory(spec)
        return "torch"
    if path.is_dir():
        return _recognize_folder(path)
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        check_file(path, "model")
        return _SUFFIXES[suffix]
    if not path.exists():
        raise SourceError(f"{spec}: there is no such file", hint=KINDS)
    if suffix == ".py":
        raise SourceError(f"{spec}: which factory?", hint=f"Name it: {spec}:FACTORY")
    if suffix in _ZIPPED and (found := _recognize_archive(path)) is not None:
        return found
    if suffix in _WEIGHTS:
        raise SourceError(
            f"{spec}: holds weights; the code of the model is needed as well",
            hint=f"Give path/to/file.py:factory --weights {spec}",
        )
    raise SourceError(f"{spec}: is of no kind that is read", hint=KINDS)


def _check_factory(spec: str) -> None:
    where, _, factory = spec.rpartition(":")
    if where.endswith(".py"):
        check_file(Path(where), "model code")
    elif not all(part.isidentifier() for part in where.split(".")):
        raise SourceError(f"{spec}: is neither a file nor module:factory", hint=KINDS)
    if not factory.isidentifier():
        raise SourceError(f"{spec}: {factory!r} cannot name a factory", hint=KINDS)


def file_of(spec: str, framework: Framework) -> Path:
    """Return the file or folder that holds the model, or the code of its factory."""
    return Path(spec.rpartition(":")[0] if is_factory(spec, framework) else spec)


def is_factory(spec: str, framework: Framework) -> bool:
    """Return whether ``spec`` names a factory, whose code is run, not a file."""
    return framework == "torch" and not Path(spec).is_file()


def archive_kind(path: Path) -> Archive:
    """Return what a file that PyTorch wrote holds.

    Raises:
        SourceError: It is a zip archive that is cut short or has too many entries.
    """
    try:
        if not zipfile.is_zipfile(path):
            return "other"
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as e:
        raise SourceError(f"{path}: is not a whole archive: {e}") from e
    if len(entries) > _MAX_ENTRIES:
        raise SourceError(f"{path}: has {len(entries)} entries; at most {_MAX_ENTRIES} are read")
    inside = [entry.filename.partition("/")[2] or entry.filename for entry in entries]
    if any(name.startswith("code/") for name in inside) and "data.pkl" in inside:
        return "torchscript"
    if "archive_format" in inside or any(name.startswith("models/") for name in inside):
        return "pt2"
    return "state-dict" if "data.pkl" in inside else "other"


def check_whole(path: Path) -> None:
    """Return if every part of what PyTorch wrote is as its checksum says: torch does not look.

    Raises:
        SourceError: A part is damaged: its weights would be other ones, without a word.
    """
    if archive_kind(path) == "other":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as e:  # what damage leads to, the readers of parts say in many ways
        raise SourceError(f"{path}: is not a whole archive: {first_line(e)}") from e
    if damaged is not None:
        raise SourceError(
            f"{path}: is damaged: {damaged} does not match its checksum",
            hint="Compare its checksum with the original and copy it again, or save it anew.",
        )


def is_saved_model(spec: str) -> bool:
    """Return whether ``spec`` is a SavedModel folder."""
    return (Path(spec) / SAVED_MODEL).is_file()


def _recognize_archive(path: Path) -> Framework | None:
    check_file(path, "model")
    kind = archive_kind(path)
    if kind == "torchscript":
        return "torchscript"
    if kind == "pt2":
        raise SourceError(
            f"{path}: is a torch.export archive", hint=f"Call it {path.stem}{ARCHIVE_SUFFIX}."
        )
    return None


def _recognize_folder(path: Path) -> Framework:
    if (path / SAVED_MODEL).is_file():
        return "keras"
    if (path / "saved_model.pbtxt").is_file():
        raise SourceError(
            f"{path}: is a SavedModel in text form, which is not read",
            hint="Save it again with model.export(path).",
        )
    raise SourceError(f"{path}: is a folder without {SAVED_MODEL}", hint=KINDS)
