"""Requests to the hub for chunks and metadata, and where their answers go (contract §4.7, §4.8)."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from device_agent.contract.chunk import Chunk
from device_agent.contract.messages import (
    MAX_METADATA_BYTES,
    BlobRefused,
    BlobRequest,
    MetadataReply,
    MetadataRequest,
)
from device_agent.errors import DownloadError, TransportError

METADATA_TIMEOUT_S = 30.0
METADATA_PATIENCE_S = 3.0
MAX_WAITING_CHUNKS = 256
"""Chunks that may wait to be written; more are dropped, and asked for again."""

Request = BlobRequest | MetadataRequest
Answer = Chunk | BlobRefused


class Inbox:
    """What came for one blob."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Answer | None] = queue.Queue(MAX_WAITING_CHUNKS)

    def put(self, answer: Answer) -> None:
        """Add an answer; dropped when too many wait already."""
        try:
            self._waiting.put_nowait(answer)
        except queue.Full:
            return

    def wake(self) -> None:
        """End a wait early."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return

    def get(self, timeout_s: float) -> Answer | None:
        """Return the next answer, or None when none came in time or the wait was ended."""
        try:
            return self._waiting.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            return None


class TransferLink:
    """Sends requests and routes the answers to who asked.

    Answers come on the transport's thread through :meth:`on_chunk` and :meth:`on_reply`, which
    never block; they are waited for on the threads that asked.

    Args:
        send: Publishes a request; raises TransportError when there is no connection.
    """

    def __init__(self, send: Callable[[Request], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._last_id = 0
        self._blobs: dict[str, Inbox] = {}
        self._metadata: dict[int, queue.SimpleQueue[MetadataReply]] = {}
        self._closed = threading.Event()

    @contextmanager
    def blob(self, digest: str) -> Iterator[Inbox]:
        """Hear what comes for the blob with this digest, while the context lasts."""
        inbox = Inbox()
        with self._lock:
            if digest in self._blobs:
                raise DownloadError(f"{digest} is being fetched already")
            self._blobs[digest] = inbox
        try:
            yield inbox
        finally:
            with self._lock:
                del self._blobs[digest]

    def ask(self, digest: str, first: int, missing: str) -> None:
        """Ask for chunks of a blob.

        Raises:
            TransportError: There is no connection.
        """
        self._send(
            BlobRequest(request_id=self._next_id(), digest=digest, first=first, missing=missing)
        )

    def metadata(
        self, name: str, max_bytes: int, *, timeout_s: float = METADATA_TIMEOUT_S
    ) -> bytes | None:
        """Return the TUF metadata file ``name``, or None when the hub says that there is none.

        Asks again while no answer comes, also over a reconnect.

        Raises:
            DownloadError: No answer came in time, or one that is longer than asked for.
        """
        until_s = time.monotonic() + timeout_s
        request_id = self._next_id()
        answers: queue.SimpleQueue[MetadataReply] = queue.SimpleQueue()
        with self._lock:
            self._metadata[request_id] = answers
        request = MetadataRequest(
            request_id=request_id, path=name, max_bytes=min(max_bytes, MAX_METADATA_BYTES)
        )
        try:
            reply = self._exchange(request, answers, until_s)
        finally:
            with self._lock:
                del self._metadata[request_id]
        if reply.data is not None and len(reply.data) > max_bytes:
            raise DownloadError(f"{name} came with {len(reply.data)} bytes; {max_bytes} were asked")
        return reply.data

    def _exchange(
        self,
        request: MetadataRequest,
        answers: queue.SimpleQueue[MetadataReply],
        until_s: float,
    ) -> MetadataReply:
        cause = "the hub did not answer"
        while (left_s := until_s - time.monotonic()) > 0 and not self._closed.is_set():
            try:
                self._send(request)
            except TransportError as e:
                cause = str(e)
            try:
                reply = answers.get(timeout=min(METADATA_PATIENCE_S, left_s))
            except queue.Empty:
                continue
            if reply.path == request.path:
                return reply
        raise DownloadError(f"metadata {request.path} did not come", cause=cause)

    def on_chunk(self, chunk: Chunk) -> bool:
        """Pass a chunk on; False when nobody waits for its blob."""
        with self._lock:
            inbox = self._blobs.get(chunk.digest)
        if inbox is not None:
            inbox.put(chunk)
        return inbox is not None

    def on_reply(self, reply: BlobRefused | MetadataReply) -> bool:
        """Pass a reply on; False when nobody waits for it."""
        with self._lock:
            inbox = self._blobs.get(reply.digest) if isinstance(reply, BlobRefused) else None
            waiting = self._metadata.get(reply.request_id)
        if isinstance(reply, BlobRefused):
            if inbox is not None:
                inbox.put(reply)
            return inbox is not None
        if waiting is not None:
            waiting.put(reply)
        return waiting is not None

    def wake(self) -> None:
        """End all waits for chunks early, to look whether to go on."""
        with self._lock:
            inboxes = list(self._blobs.values())
        for inbox in inboxes:
            inbox.wake()

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._closed.set()
        self.wake()

    def _next_id(self) -> int:
        with self._lock:
            self._last_id += 1
            return self._last_id
