"""A blob on disk while its chunks arrive: reserved, written in place, resumed after a kill."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from device_agent.contract.manifest import CHUNK_BYTES
from device_agent.errors import StoreError

RESERVE_BYTES = 8 * 2**20
"""Room that a reservation leaves free for the agent's own state."""

_READ_BYTES = 2**20


@dataclass(frozen=True)
class BlobSpec:
    """What to fetch.

    Attributes:
        size: In bytes.
        chunks: sha256, 64 hex digits, of each chunk; None for a small blob that only its whole
            digest can verify.
    """

    digest: str
    size: int
    chunks: tuple[str, ...] | None = None

    @property
    def count(self) -> int:
        """Number of chunks."""
        return (self.size + CHUNK_BYTES - 1) // CHUNK_BYTES

    def length_of(self, index: int) -> int:
        """Return the bytes of chunk ``index``; 0 when there is no such chunk."""
        if not 0 <= index < self.count:
            return 0
        return min(CHUNK_BYTES, self.size - index * CHUNK_BYTES)

    def is_good(self, index: int, data: bytes | memoryview) -> bool:
        """Whether ``data`` is chunk ``index``, as far as one chunk can tell."""
        if len(data) != self.length_of(index) or not data:
            return False
        if self.chunks is None:
            return True
        return hashlib.sha256(data).hexdigest() == self.chunks[index]


class PartialBlob:
    """The file that the chunks of one blob are written to; closed by ``with``.

    Which chunks are there is found by hashing what is in the file, so that a kill or power cut at
    any write costs at most the chunks that did not reach the disk.
    """

    def __init__(self, path: Path, spec: BlobSpec) -> None:
        """Open the file, and make it as long as the blob with its storage reserved.

        Raises:
            StoreError: There is not enough room, or the file cannot be written.
        """
        self._path, self.spec = path, spec
        self._is_new = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise StoreError(f"{path}: {e.strerror}") from e
        try:
            self._reserve()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def _reserve(self) -> None:
        size = self.spec.size
        try:
            found = os.fstat(self._file)
            self._is_new = found.st_size == 0
            if found.st_size > size:
                os.ftruncate(self._file, size)
            need = max(size - found.st_blocks * 512, 0)
            room = os.statvfs(self._path.parent)
            free = room.f_bavail * room.f_frsize
            if need and free < need + RESERVE_BYTES:
                why = f"{free} bytes are free, of which {RESERVE_BYTES} stay so"
                raise OSError(errno.ENOSPC, why)  # noqa: TRY301 - one message
            os.posix_fallocate(self._file, 0, size)
        except OSError as e:
            raise StoreError(
                f"{self._path}: {size} bytes cannot be reserved: {e.strerror}",
                hint="Free some storage; what is active serves on.",
            ) from e

    def missing(self, go_on: Callable[[], None] = lambda: None) -> list[int]:
        """Return the chunks that are not there yet, ascending.

        Args:
            go_on: Called between chunks; raises to stop.

        Raises:
            StoreError: The file cannot be read.
        """
        if self.spec.chunks is None or self._is_new:
            return list(range(self.spec.count))
        missing = []
        for index in range(self.spec.count):
            go_on()
            try:
                data = os.pread(self._file, self.spec.length_of(index), index * CHUNK_BYTES)
            except OSError as e:
                raise StoreError(f"{self._path}: {e.strerror}") from e
            if not self.spec.is_good(index, data):
                missing.append(index)
        return missing

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Put a chunk, which was checked, where it belongs.

        Raises:
            StoreError: It cannot be written.
        """
        try:
            written = os.pwrite(self._file, data, index * CHUNK_BYTES)
        except OSError as e:
            raise StoreError(f"{self._path}: {e.strerror}") from e
        if written != len(data):
            raise StoreError(f"{self._path}: chunk {index} was written only in part")

    def sync(self) -> None:
        """Wait until all is on the disk.

        Raises:
            StoreError: The disk failed.
        """
        try:
            os.fsync(self._file)
        except OSError as e:
            raise StoreError(f"{self._path}: {e.strerror}") from e


def file_digest(path: Path, go_on: Callable[[], None] = lambda: None) -> str:
    """Return the digest of the file at ``path``, read in pieces.

    Args:
        path: The file.
        go_on: Called between pieces; raises to stop.

    Raises:
        StoreError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                go_on()
                digest.update(piece)
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from e
    return f"sha256:{digest.hexdigest()}"
