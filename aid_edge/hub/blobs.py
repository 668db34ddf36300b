"""Serves chunks of blobs and TUF metadata files over MQTT (contract §4.7, §4.8)."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from aid_edge.errors import HubError
from aid_edge.hub.mqtt import Received
from aid_edge.hub.outbox import Outbox, Receipt
from device_agent.contract.chunk import Chunk, encode_chunk
from device_agent.contract.errors import AidError, ContractError, MalformedMessageError
from device_agent.contract.manifest import CHUNK_BYTES
from device_agent.contract.messages import (
    BlobRefused,
    BlobRequest,
    MetadataReply,
    MetadataRequest,
    decode,
    encode,
    missing_indices,
)
from device_agent.contract.topics import Channel, parse

WORKERS = 2
MAX_QUEUE_REQUESTS = 2_000
MAX_REQUESTS_PER_DEVICE = 8
"""Requests of one device that may wait; further ones are dropped, and the device asks again."""
MAX_UNSENT_BYTES = 4 * 2**20
"""What one worker may have on its way to the broker; other messages wait behind it."""
SEND_TIMEOUT_S = 10.0
MAX_OPEN_BLOBS = 32
RATE_BYTES_PER_S = 512 * 2**20
"""Of one device. Above what a device takes over any link; bounds one that asks in a loop."""
BURST_BYTES = 64 * 2**20
MAX_METERS = 10_000

_log = logging.getLogger(__name__)


class BlobSource(Protocol):
    """Where blobs and metadata come from: the catalogue."""

    def blob(self, digest: str) -> Path | None:
        """Return the file that holds a blob, or None when there is no such blob."""

    def metadata(self, name: str) -> bytes | None:
        """Return a TUF metadata file, or None when there is none of this name."""


class Meter:
    """A token bucket in bytes; time is an argument."""

    def __init__(self, rate_bytes_per_s: float, burst_bytes: float) -> None:
        self._rate = rate_bytes_per_s
        self._burst = burst_bytes
        self._left = burst_bytes
        self._at_s = 0.0

    def take(self, size_bytes: int, now_s: float) -> bool:
        """Return whether ``size_bytes`` may go out now, and count them if so."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < size_bytes:
            return False
        self._left -= size_bytes
        return True


class BlobService:
    """Answers requests in worker threads, so that ingest never waits for a disk or a slow link.

    Args:
        source: The catalogue.
        outbox: Where answers go.
        on_malformed: Called with a device whose request was not of the contract.
        on_seen: Called with a device that asked.
    """

    def __init__(
        self,
        source: BlobSource,
        outbox: Outbox,
        *,
        on_malformed: Callable[[str], None] = lambda _: None,
        on_seen: Callable[[str], None] = lambda _: None,
        rate_bytes_per_s: float = RATE_BYTES_PER_S,
    ) -> None:
        self._source = source
        self._outbox = outbox
        self._on_malformed = on_malformed
        self._on_seen = on_seen
        self._rate = rate_bytes_per_s
        self._queue: queue.Queue[tuple[str, BlobRequest | MetadataRequest] | None] = queue.Queue(
            MAX_QUEUE_REQUESTS
        )
        self._waiting: dict[str, int] = {}
        self._meters: OrderedDict[str, Meter] = OrderedDict()
        self._lock = threading.Lock()
        self._files = _OpenBlobs(source)
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"blobs-{i}") for i in range(WORKERS)
        ]
        self.sent_bytes = 0
        self.dropped = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._files.close()

    @property
    def is_alive(self) -> bool:
        """Whether requests are being answered; False after a bug ended a thread."""
        return all(thread.is_alive() for thread in self._threads)

    def receive(self, received: Received) -> None:
        """Take one request; never blocks and never raises."""
        device = ""
        try:
            _, device, _ = parse(received.topic)
            request = decode(received.payload)
            if not isinstance(request, BlobRequest | MetadataRequest):
                raise MalformedMessageError(f"a {type(request).__name__} on a request channel")
        except ContractError as e:
            _log.warning("refused a request on %.200s: %s", received.topic, e)
            if device:
                self._on_malformed(device)
            return
        self._on_seen(device)
        with self._lock:
            waiting = self._waiting.get(device, 0)
            if waiting >= MAX_REQUESTS_PER_DEVICE or self._queue.qsize() >= MAX_QUEUE_REQUESTS - 1:
                self.dropped += 1
                return
            self._waiting[device] = waiting + 1
        self._queue.put((device, request))

    def _run(self) -> None:
        unsent = _Unsent()
        while (item := self._queue.get()) is not None:
            device, request = item
            with self._lock:
                self._waiting[device] -= 1
                if not self._waiting[device]:
                    del self._waiting[device]
            if self._is_closing:
                continue
            try:
                if isinstance(request, BlobRequest):
                    self._send_chunks(device, request, unsent)
                else:
                    self._send_metadata(device, request)
            except (AidError, OSError) as e:
                # The device asks again; what is wrong here must be seen by the operator.
                _log.error("request of %s for %s: %s", device, request, e)

    def _send_chunks(self, device: str, request: BlobRequest, unsent: _Unsent) -> None:
        with self._files.reading(request.digest) as file:
            if file is not None:
                self._send_file(device, request, file, unsent)
                return
        refusal = BlobRefused(
            request_id=request.request_id,
            digest=request.digest,
            reason="the catalogue has no such blob",
        )
        self._outbox.publish(device, Channel.BLOB_REPLY, encode(refusal))

    def _send_file(self, device: str, request: BlobRequest, file: _File, unsent: _Unsent) -> None:
        for index in missing_indices(request):
            offset = index * CHUNK_BYTES
            length = min(CHUNK_BYTES, file.size - offset)
            if length <= 0:
                break
            if not self._may_send(device, length):
                self.dropped += 1
                break
            data = os.pread(file.descriptor, length, offset)
            if not data:
                break  # the file was cut meanwhile; the device finds out by itself
            payload = encode_chunk(Chunk(request.digest, index, data))
            receipt = self._outbox.publish(device, Channel.BLOB_CHUNK, payload)
            if receipt is None or not unsent.add(receipt, len(payload)):
                break
            self.sent_bytes += length

    def _send_metadata(self, device: str, request: MetadataRequest) -> None:
        data = self._source.metadata(request.path)
        if data is not None and len(data) > request.max_bytes:
            data = None
        reply = MetadataReply(request_id=request.request_id, path=request.path, data=data)
        payload = encode(reply)
        if self._may_send(device, len(payload)):
            self._outbox.publish(device, Channel.BLOB_REPLY, payload)
        else:
            self.dropped += 1

    def _may_send(self, device: str, size_bytes: int) -> bool:
        with self._lock:
            meter = self._meters.get(device)
            if meter is None:
                meter = self._meters[device] = Meter(self._rate, min(BURST_BYTES, self._rate))
            self._meters.move_to_end(device)
            if len(self._meters) > MAX_METERS:
                self._meters.popitem(last=False)
            return meter.take(size_bytes, time.monotonic())


class _Unsent:
    """What one worker handed to the connection and has not gone out yet."""

    def __init__(self) -> None:
        self._receipts: deque[tuple[Receipt, int]] = deque()
        self._bytes = 0

    def add(self, receipt: Receipt, size_bytes: int) -> bool:
        """Take note of a message, waiting until there is room; False when nothing moves."""
        self._receipts.append((receipt, size_bytes))
        self._bytes += size_bytes
        while self._bytes > MAX_UNSENT_BYTES:
            oldest, size = self._receipts.popleft()
            self._bytes -= size
            if not oldest.wait(SEND_TIMEOUT_S):
                return False
        return True


@dataclass
class _File:
    """An open blob; ``identity`` tells whether the path still leads to it."""

    descriptor: int
    size: int
    identity: tuple[int, int, int]
    users: int = 0


class _OpenBlobs:
    """Open files of recently asked blobs, shared by the workers."""

    def __init__(self, source: BlobSource) -> None:
        self._source = source
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def reading(self, digest: str) -> Iterator[_File | None]:
        """Return the open file of a blob, or None when there is no such blob.

        Raises:
            HubError: It is there and cannot be read.
        """
        with self._lock:
            file = self._get(digest)
            if file is not None:
                file.users += 1
        try:
            yield file
        finally:
            if file is not None:
                with self._lock:
                    file.users -= 1
                    self._drop_unused(digest, file)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for file in self._open.values():
                os.close(file.descriptor)
            self._open.clear()

    def _get(self, digest: str) -> _File | None:
        path = self._source.blob(digest)
        if path is None:
            return None
        try:
            stat = path.stat()
            identity = (stat.st_dev, stat.st_ino, stat.st_size)
            file = self._open.get(digest)
            if file is None or file.identity != identity:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                # One that was replaced is closed by its last reader.
                if file is not None and not file.users:
                    os.close(file.descriptor)
                file = self._open[digest] = _File(descriptor, stat.st_size, identity)
        except OSError as e:
            raise HubError(f"{path}: cannot be read: {e.strerror}") from e
        self._open.move_to_end(digest)
        return file

    def _drop_unused(self, digest: str, file: _File) -> None:
        if self._open.get(digest) is not file and not file.users:
            os.close(file.descriptor)
        for old in [d for d, f in self._open.items() if not f.users]:
            if len(self._open) <= MAX_OPEN_BLOBS:
                break
            os.close(self._open.pop(old).descriptor)
