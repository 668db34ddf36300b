from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aid_edge.hub.blobs import MAX_REQUESTS_PER_DEVICE, BlobService, Meter
from aid_edge.hub.mqtt import Received
from device_agent.contract.chunk import decode_chunk
from device_agent.contract.manifest import CHUNK_BYTES
from device_agent.contract.messages import (
    BlobRefused,
    BlobRequest,
    MetadataReply,
    MetadataRequest,
    decode,
    encode,
    missing_mask,
)
from device_agent.contract.names import digest_of
from device_agent.contract.topics import Channel, topic
from tests.aid_edge.hub.conftest import FLEET, ListOutbox
from tests.support.simulated_device import wait_for

DATA = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"tail"
DIGEST = digest_of(DATA)


class FolderSource:
    """Our own seam to the catalogue, on a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def blob(self, digest: str) -> Path | None:
        path = self._folder / digest.removeprefix("sha256:")
        return path if path.is_file() else None

    def metadata(self, name: str) -> bytes | None:
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    (tmp_path / DIGEST.removeprefix("sha256:")).write_bytes(DATA)
    (tmp_path / "timestamp.json").write_bytes(b"{}" * 100)
    return FolderSource(tmp_path)


@pytest.fixture
def blobs(source: FolderSource, outbox: ListOutbox) -> Iterator[BlobService]:
    with BlobService(source, outbox) as blobs:
        yield blobs


def _ask(blobs: BlobService, message: BlobRequest | MetadataRequest | bytes) -> None:
    payload = message if isinstance(message, bytes) else encode(message)
    blobs.receive(Received(topic(FLEET, "cam-1", Channel.BLOB_REQUEST), payload, is_copy=False))


def _request(*indices: int, digest: str = DIGEST) -> BlobRequest:
    first = min(indices)
    return BlobRequest(
        request_id=7, digest=digest, first=first, missing=missing_mask(first, indices)
    )


def test_exactly_the_chunks_that_were_asked_for_are_sent(
    blobs: BlobService, outbox: ListOutbox
) -> None:
    """M-4.7-5."""
    _ask(blobs, _request(1, 3))
    wait_for("two chunks", lambda: len(outbox.sent) == 2)
    chunks = [decode_chunk(payload) for payload in outbox.on(Channel.BLOB_CHUNK)]
    assert [(c.digest, c.index) for c in chunks] == [(DIGEST, 1), (DIGEST, 3)]
    assert bytes(chunks[0].data) == DATA[CHUNK_BYTES : 2 * CHUNK_BYTES]
    assert bytes(chunks[1].data) == b"tail"


def test_chunks_beyond_the_end_are_not_made_up(blobs: BlobService, outbox: ListOutbox) -> None:
    """M-4.7-5."""
    _ask(blobs, _request(3, 4, 60))
    _ask(blobs, _request(2**40))
    _ask(blobs, _request(0))
    wait_for("the last request", lambda: len(outbox.sent) == 2)
    assert {decode_chunk(p).index for p in outbox.on(Channel.BLOB_CHUNK)} == {0, 3}


def test_unknown_blob_is_refused_at_once(blobs: BlobService, outbox: ListOutbox) -> None:
    """M-4.7-5: with the request's id, so that the device need not wait."""
    _ask(blobs, _request(0, digest="sha256:" + "0" * 64))
    wait_for("the refusal", lambda: len(outbox.sent) == 1)
    refusal = decode(outbox.on(Channel.BLOB_REPLY)[0])
    assert isinstance(refusal, BlobRefused)
    assert refusal.request_id == 7


@pytest.mark.parametrize(
    ("path", "max_bytes", "found"),
    [
        ("timestamp.json", 1000, True),
        ("timestamp.json", 199, False),
        ("2.root.json", 1000, False),
    ],
)
def test_metadata_is_sent_or_explicitly_not_found(
    blobs: BlobService, outbox: ListOutbox, path: str, max_bytes: int, *, found: bool
) -> None:
    """M-4.8-1."""
    _ask(blobs, MetadataRequest(request_id=3, path=path, max_bytes=max_bytes))
    wait_for("the reply", lambda: len(outbox.sent) == 1)
    reply = decode(outbox.on(Channel.BLOB_REPLY)[0])
    assert isinstance(reply, MetadataReply)
    assert (reply.request_id, reply.path) == (3, path)
    assert reply.data == (b"{}" * 100 if found else None)


def test_request_that_is_not_of_the_contract_is_counted(
    source: FolderSource, outbox: ListOutbox
) -> None:
    malformed: list[str] = []
    with BlobService(source, outbox, on_malformed=malformed.append) as blobs:
        _ask(blobs, b"{}")
        _ask(blobs, b'{"type":"metadata-request","v":1,"request_id":1,"path":"../x.json"}')
        _ask(blobs, _request(0))
        wait_for("the good request", lambda: len(outbox.sent) == 1)
    assert malformed == ["cam-1", "cam-1"]


def test_blob_that_was_replaced_is_read_anew(
    blobs: BlobService, outbox: ListOutbox, source: FolderSource
) -> None:
    _ask(blobs, _request(3))
    wait_for("the first", lambda: len(outbox.sent) == 1)
    path = source.blob(DIGEST)
    assert path is not None
    other = path.with_name("other")
    other.write_bytes(DATA[:-4] + b"TAIL!")
    other.replace(path)
    _ask(blobs, _request(3))
    wait_for("the second", lambda: len(outbox.sent) == 2)
    assert bytes(decode_chunk(outbox.on(Channel.BLOB_CHUNK)[1]).data) == b"TAIL!"


def test_one_device_cannot_fill_the_queue(source: FolderSource, outbox: ListOutbox) -> None:
    blobs = BlobService(source, outbox)  # nobody works yet
    for _ in range(100):
        _ask(blobs, _request(0))
    assert blobs.dropped == 100 - MAX_REQUESTS_PER_DEVICE
    with blobs:
        wait_for("what was taken", lambda: len(outbox.sent) == MAX_REQUESTS_PER_DEVICE)


def test_rate_of_a_device_is_bounded(source: FolderSource, outbox: ListOutbox) -> None:
    with BlobService(source, outbox, rate_bytes_per_s=1.5 * CHUNK_BYTES) as blobs:
        _ask(blobs, _request(0, 1, 2))
        wait_for("the bound", lambda: blobs.dropped == 1)
    assert len(outbox.on(Channel.BLOB_CHUNK)) == 1


def test_meter_fills_with_time_and_no_further_than_its_burst() -> None:
    meter = Meter(rate_bytes_per_s=10, burst_bytes=20)
    assert meter.take(20, 100.0)
    assert not meter.take(1, 100.0)
    assert meter.take(10, 101.0)
    assert not meter.take(21, 999.0)
    assert meter.take(20, 999.0)
