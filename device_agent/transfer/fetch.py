"""Fetches one blob chunk by chunk: window, repair, stall, resume (contract §4.7)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_agent.contract.chunk import Chunk
from device_agent.contract.errors import DigestMismatchError
from device_agent.contract.manifest import CHUNK_BYTES
from device_agent.contract.messages import MAX_WINDOW_CHUNKS, BlobRefused
from device_agent.contract.names import digest_of
from device_agent.errors import DownloadError, TransportError
from device_agent.transfer.link import Inbox, TransferLink
from device_agent.transfer.store import BlobSpec, PartialBlob, file_digest
from device_agent.transfer.window import Window, masks_of

MAX_BAD_COPIES = 3
"""A chunk that came broken this often is not asked for again."""

_LOOK_S = 0.5
"""How often a wait looks whether to go on."""


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of one fetch.

    Attributes:
        window_chunks: Most chunks on their way at once.
        stall_s: Longest time without a good chunk, in seconds.
    """

    window_chunks: int
    stall_s: float


@dataclass(frozen=True)
class Watch:
    """How the caller follows a fetch.

    Attributes:
        go_on: Called often; raises to stop the fetch.
        progress: Called with the bytes that are there, as they grow.
    """

    go_on: Callable[[], None] = lambda: None
    progress: Callable[[int], None] = lambda _bytes: None


@dataclass(frozen=True)
class Fetched:
    """What a fetch came to.

    Attributes:
        chunks: Chunks that travelled and were good.
        resumed_chunks: Chunks that were there already.
        bad_chunks: Chunks that came broken.
        seconds: How long it took.
    """

    chunks: int
    resumed_chunks: int
    bad_chunks: int
    seconds: float


class _Fetch:
    """One blob on its way."""

    def __init__(
        self,
        link: TransferLink,
        spec: BlobSpec,
        limits: FetchLimits,
        watch: Watch,
        write: Callable[[int, bytes | memoryview], None],
    ) -> None:
        self._link, self._spec, self._limits, self._watch = link, spec, limits, watch
        self._write = write
        self._bad: Counter[int] = Counter()
        self._here_bytes = 0
        self._good = 0

    def run(self, missing: list[int]) -> Fetched:
        spec = self._spec
        began_s = time.monotonic()
        resumed = spec.count - len(missing)
        self._here_bytes = spec.size - sum(spec.length_of(i) for i in missing)
        self._watch.progress(self._here_bytes)
        cap = min(self._limits.window_chunks, MAX_WINDOW_CHUNKS)
        window = Window(missing, cap_chunks=cap, now_s=began_s)
        alive_s = began_s
        with self._link.blob(spec.digest) as inbox:
            while not window.is_done:
                self._watch.go_on()
                self._ask(window)
                if self._take(inbox, window):
                    alive_s = time.monotonic()
                elif time.monotonic() - alive_s > self._limits.stall_s:
                    raise DownloadError(
                        f"{spec.digest} stalled: no chunk for {self._limits.stall_s:g} s, "
                        f"{self._here_bytes} of {spec.size} bytes are here"
                    )
        seconds = time.monotonic() - began_s
        return Fetched(self._good, resumed, self._bad.total(), seconds)

    def _ask(self, window: Window) -> None:
        chunks = window.next_chunks(time.monotonic())
        for first, missing in masks_of(chunks, max_chunks=MAX_WINDOW_CHUNKS):
            try:
                self._link.ask(self._spec.digest, first, missing)
            except TransportError:
                # The connection is away: what was asked counts as lost once patience ends, and
                # the fetch as stalled if it stays away.
                return

    def _take(self, inbox: Inbox, window: Window) -> bool:
        """Wait for an answer and use it; whether it was a chunk that is good and new."""
        patience_s = window.patience_left_s(time.monotonic())
        answer = inbox.get(min(patience_s, _LOOK_S))
        now_s = time.monotonic()
        if answer is None:
            if window.patience_left_s(now_s) <= 0:
                window.give_up(now_s)
            return False
        if isinstance(answer, BlobRefused):
            raise DownloadError(
                f"the hub does not give {self._spec.digest}", cause=answer.reason[:200]
            )
        return self._use(answer, window, now_s)

    def _use(self, chunk: Chunk, window: Window, now_s: float) -> bool:
        index = chunk.index
        if not self._spec.is_good(index, chunk.data):
            self._bad[index] += 1
            if self._bad[index] >= MAX_BAD_COPIES:
                raise DigestMismatchError(
                    f"chunk {index} of {self._spec.digest}",
                    self._expected(index),
                    f"{digest_of(chunk.data)} ({len(chunk.data)} bytes)",
                )
            window.refuse(index)
            return False
        if not window.arrived(index, now_s):
            return False
        self._write(index, chunk.data)
        self._good += 1
        self._here_bytes += len(chunk.data)
        self._watch.progress(self._here_bytes)
        return True

    def _expected(self, index: int) -> str:
        length = self._spec.length_of(index)
        if self._spec.chunks is None or not length:
            return f"{length} bytes"
        return f"sha256:{self._spec.chunks[index]} ({length} bytes)"


def fetch_blob(
    link: TransferLink, spec: BlobSpec, to: Path, limits: FetchLimits, watch: Watch
) -> Fetched:
    """Fetch a blob into the file ``to``, going on with the chunks that are there already.

    The chunks are verified, the whole is not: that is :func:`file_digest` for the caller.

    Raises:
        DownloadError: The hub refuses, or nothing came for too long.
        DigestMismatchError: A chunk came broken again and again.
        StoreError: There is not enough room, or the disk fails.
    """
    with PartialBlob(to, spec) as blob:
        return fetch_into(link, blob, limits, watch)


def fetch_into(link: TransferLink, blob: PartialBlob, limits: FetchLimits, watch: Watch) -> Fetched:
    """Fetch into a file that is open and reserved already; else as :func:`fetch_blob`.

    Raises:
        DownloadError: The hub refuses, or nothing came for too long.
        DigestMismatchError: A chunk came broken again and again.
        StoreError: The disk fails.
    """
    fetched = _Fetch(link, blob.spec, limits, watch, blob.write).run(blob.missing(watch.go_on))
    blob.sync()
    return fetched


def fetch_small(
    link: TransferLink, digest: str, size: int, limits: FetchLimits, watch: Watch
) -> bytes:
    """Return a small blob, verified as a whole.

    Raises:
        DownloadError: The hub refuses, or nothing came for too long.
        DigestMismatchError: It is not the blob with this digest.
    """
    buffer = bytearray(size)

    def write(index: int, data: bytes | memoryview) -> None:
        offset = index * CHUNK_BYTES
        buffer[offset : offset + len(data)] = data

    spec = BlobSpec(digest, size)
    _Fetch(link, spec, limits, watch, write).run(list(range(spec.count)))
    data = bytes(buffer)
    found = digest_of(data)
    if found != digest:
        raise DigestMismatchError("blob", digest, found)
    return data


__all__ = [
    "FetchLimits",
    "Fetched",
    "Watch",
    "fetch_blob",
    "fetch_into",
    "fetch_small",
    "file_digest",
]
