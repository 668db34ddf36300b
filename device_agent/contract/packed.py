"""Models of several files as the one model blob of a release (contract §5.5).

An OpenVINO model is two files and a Core ML model a folder, but a release holds one model blob: a
zip archive whose members are stored uncompressed, in a fixed order and without times, so that the
same files give the same bytes and a device reads them without unpacking to disk.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from device_agent.contract.errors import MalformedMessageError, MessageTooLargeError

OPENVINO_MEMBERS = ("model.xml", "model.bin")
MAX_MEMBERS = 64
MAX_PACKED_BYTES = 2**31
"""Of one packed model, so also of each member; what a release's blob may have."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_PLAIN_FILE = 0o100644 << 16


def pack(members: Mapping[str, bytes]) -> bytes:
    """Return the files ``members``, by path, as one archive; equal for equal files.

    Raises:
        MessageTooLargeError: They are too many or too large.
    """
    if len(members) > MAX_MEMBERS:
        raise MessageTooLargeError("the list of files of a packed model", len(members), MAX_MEMBERS)
    if (size := sum(map(len, members.values()))) > MAX_PACKED_BYTES:
        raise MessageTooLargeError("a packed model", size, MAX_PACKED_BYTES)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = _UNIX
            entry.external_attr = _PLAIN_FILE
            archive.writestr(entry, data)
    return stream.getvalue()


def unpack(path: Path, wanted: Sequence[str] | None = None) -> dict[str, bytes]:
    """Return the files in the archive at ``path``, by path.

    Args:
        path: The archive.
        wanted: The paths that it must have, and no others; None takes what there is.

    Raises:
        MalformedMessageError: It is no such archive, is damaged, or has other files.
        MessageTooLargeError: It is too large.
        OSError: There is no such file.
    """
    size = path.stat().st_size
    if size > MAX_PACKED_BYTES:
        raise MessageTooLargeError("a packed model", size, MAX_PACKED_BYTES)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check(entries, size)
            names = [entry.filename for entry in entries]
            if wanted is not None and sorted(names) != sorted(wanted):
                raise MalformedMessageError(
                    f"a packed model has {', '.join(names) or 'no files'}; "
                    f"wanted {', '.join(wanted)}"
                )
            return {entry.filename: archive.read(entry) for entry in entries}
    # What zipfile raises where an archive lies about itself, such as an offset below zero.
    except (
        zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OSError,
    ) as e:  # fmt: skip
        raise MalformedMessageError(f"a packed model is no zip archive, or damaged: {e}") from e


def _check(entries: Sequence[zipfile.ZipInfo], size_bytes: int) -> None:
    if len(entries) > MAX_MEMBERS:
        raise MalformedMessageError(
            f"a packed model has {len(entries)} files; at most {MAX_MEMBERS}"
        )
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise MalformedMessageError("a packed model has two files of the same name")
    for entry in entries:
        # What is stored uncompressed cannot be larger than the archive: no decompression bombs.
        is_plain = (
            entry.compress_type == zipfile.ZIP_STORED
            and entry.file_size == entry.compress_size
            and not entry.is_dir()
        )
        if not is_plain:
            raise MalformedMessageError(f"{entry.filename} of a packed model is not stored plainly")
    if sum(entry.file_size for entry in entries) > size_bytes:
        raise MalformedMessageError("the files of a packed model overlap")
