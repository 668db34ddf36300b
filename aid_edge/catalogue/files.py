"""Writing files so that a reader, or a power cut, never meets half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

COPY_BYTES = 1024 * 1024
"""How much of a file is in memory at a time."""


def sync_folder(folder: Path) -> None:
    """Make the entries of ``folder`` (new names, renames) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put ``data`` at ``path``: afterwards the file is wholly the old one or wholly the new one.

    Raises:
        OSError: It cannot be written; what stood at ``path`` still does.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the same call, next to its mkstemp
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def copy_atomic(source: Path, path: Path, *, mode: int = 0o644) -> None:
    """Copy the file ``source`` to ``path``, as :func:`write_atomic` does with bytes.

    Raises:
        OSError: It cannot be read or written; what stood at ``path`` still does.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file, source.open("rb") as origin:
            shutil.copyfileobj(origin, file, COPY_BYTES)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the same call, next to its mkstemp
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def hash_file(path: Path, chunk_bytes: int = COPY_BYTES) -> tuple[str, int, tuple[str, ...]]:
    """Return digest, size in bytes, and the sha256 (64 hex digits) of each chunk of a file.

    Raises:
        OSError: It cannot be read.
    """
    whole = hashlib.sha256()
    size = 0
    chunks: list[str] = []
    with path.open("rb") as file:
        while data := file.read(chunk_bytes):
            whole.update(data)
            size += len(data)
            chunks.append(hashlib.sha256(data).hexdigest())
    return f"sha256:{whole.hexdigest()}", size, tuple(chunks)


class Disk:
    """How the catalogue writes; the one place where tests make a write fail."""

    def write(self, path: Path, data: bytes) -> None:
        """Put ``data`` at ``path``, atomically."""
        write_atomic(path, data)

    def copy(self, source: Path, path: Path) -> None:
        """Copy the file ``source`` to ``path``, atomically."""
        copy_atomic(source, path)
