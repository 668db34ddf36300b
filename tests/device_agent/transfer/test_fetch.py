from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from device_agent.contract.chunk import Chunk
from device_agent.contract.errors import DigestMismatchError
from device_agent.contract.manifest import CHUNK_BYTES
from device_agent.contract.messages import BlobRequest
from device_agent.contract.names import digest_of
from device_agent.errors import DownloadError, StoreError
from device_agent.transfer.fetch import FetchLimits, Watch, fetch_blob, fetch_small
from device_agent.transfer.store import BlobSpec, PartialBlob, file_digest
from tests.device_agent.transfer.conftest import Rig

LIMITS = FetchLimits(window_chunks=16, stall_s=1.5)
DATA = random.Random(7).randbytes(9 * CHUNK_BYTES + 1234)


def spec_of(data: bytes) -> BlobSpec:
    chunks = tuple(
        digest_of(data[i : i + CHUNK_BYTES]).removeprefix("sha256:")
        for i in range(0, len(data), CHUNK_BYTES)
    )
    return BlobSpec(digest_of(data), len(data), chunks)


SPEC = spec_of(DATA)


@pytest.fixture
def hub_with_data(rig: Rig) -> Rig:
    rig.hub.blobs[SPEC.digest] = DATA
    return rig


def test_blob_arrives_whole(hub_with_data: Rig, tmp_path: Path) -> None:
    seen: list[int] = []
    watch = Watch(progress=seen.append)
    fetched = fetch_blob(hub_with_data.link, SPEC, tmp_path / "in" / "model", LIMITS, watch)
    assert (tmp_path / "in" / "model").read_bytes() == DATA
    assert fetched.chunks == 10
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)
    assert set(hub_with_data.hub.sent.values()) == {1}


def test_lost_chunks_are_repaired(hub_with_data: Rig, tmp_path: Path) -> None:
    """M-4.7-4: a chunk that gets lost is asked for again."""
    lost: set[int] = set()

    def lose(_digest: str, index: int) -> bool:
        if index in (0, 3, 9) and index not in lost:
            lost.add(index)
            return True
        return False

    hub_with_data.hub.lose = lose
    fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", LIMITS, Watch())
    assert (tmp_path / "model").read_bytes() == DATA
    assert lost == {0, 3, 9}


def test_fetch_goes_on_with_what_is_there(hub_with_data: Rig, tmp_path: Path) -> None:
    """M-4.7-4: only missing chunks are asked for after a restart, however it ended."""

    class _PowerCutError(Exception):
        pass

    def cut(here: int) -> None:
        if here >= 5 * CHUNK_BYTES:
            raise _PowerCutError

    with pytest.raises(_PowerCutError):
        fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", LIMITS, Watch(progress=cut))
    hub_with_data.hub.sent.clear()
    fetched = fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", LIMITS, Watch())
    assert (tmp_path / "model").read_bytes() == DATA
    assert fetched.resumed_chunks == 5
    assert sum(hub_with_data.hub.sent.values()) == 5


def test_chunks_that_rotted_on_disk_are_fetched_anew(hub_with_data: Rig, tmp_path: Path) -> None:
    """M-4.7-3: a chunk is kept only when its hash is the signed one."""
    path = tmp_path / "model"
    fetch_blob(hub_with_data.link, SPEC, path, LIMITS, Watch())
    with path.open("r+b") as file:
        file.seek(4 * CHUNK_BYTES + 17)
        file.write(b"rot")
    fetched = fetch_blob(hub_with_data.link, SPEC, path, LIMITS, Watch())
    assert fetched.chunks == 1
    assert file_digest(path) == SPEC.digest


def test_altered_chunk_is_asked_for_again(hub_with_data: Rig, tmp_path: Path) -> None:
    spoiled: list[int] = []

    def spoil(_digest: str, index: int) -> bool:
        if index == 2 and not spoiled:
            spoiled.append(index)
            return True
        return False

    hub_with_data.hub.spoil = spoil
    fetched = fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", LIMITS, Watch())
    assert fetched.bad_chunks == 1
    assert file_digest(tmp_path / "model") == SPEC.digest


def test_chunk_that_stays_altered_ends_the_fetch(hub_with_data: Rig, tmp_path: Path) -> None:
    """M-4.7-3; and no endless retry."""
    hub_with_data.hub.spoil = lambda _digest, index: index == 2
    with pytest.raises(DigestMismatchError, match="chunk 2"):
        fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", LIMITS, Watch())
    assert hub_with_data.hub.sent[SPEC.digest, 2] == 3


@pytest.mark.parametrize(
    "data", [b"short", DATA[:CHUNK_BYTES] + b"long"], ids=["shorter", "longer"]
)
def test_chunk_of_another_length_is_not_written(rig: Rig, data: bytes) -> None:
    spec = BlobSpec(SPEC.digest, CHUNK_BYTES * 2)
    assert not spec.is_good(0, data)
    assert not spec.is_good(2, data)


def test_refusal_of_the_hub_is_an_error_with_its_reason(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as refused:
        fetch_blob(rig.link, SPEC, tmp_path / "model", LIMITS, Watch())
    assert refused.value.cause == "no such blob"


def test_silent_hub_is_a_stall(hub_with_data: Rig, tmp_path: Path) -> None:
    hub_with_data.hub.is_silent = True
    with pytest.raises(DownloadError, match="stalled"):
        fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", LIMITS, Watch())
    assert len(hub_with_data.hub.asked) > 1


def test_lost_connection_is_waited_for(hub_with_data: Rig, tmp_path: Path) -> None:
    hub_with_data.is_connected = False
    back = threading.Timer(0.3, lambda: setattr(hub_with_data, "is_connected", True))
    back.start()
    fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", FetchLimits(16, 10.0), Watch())
    assert file_digest(tmp_path / "model") == SPEC.digest


def test_chunks_of_other_blobs_go_nowhere(rig: Rig) -> None:
    assert not rig.link.on_chunk(Chunk(SPEC.digest, 0, b"x"))


def test_small_blob_is_verified_as_a_whole(rig: Rig) -> None:
    """M-4.7-3: before there are chunk hashes, the whole digest decides."""
    data = DATA[: CHUNK_BYTES + 10]
    digest = digest_of(data)
    rig.hub.blobs[digest] = data
    assert fetch_small(rig.link, digest, len(data), LIMITS, Watch()) == data
    rig.hub.spoil = lambda _digest, index: index == 1
    with pytest.raises(DigestMismatchError):
        fetch_small(rig.link, digest, len(data), LIMITS, Watch())


def test_caller_can_stop_a_fetch(hub_with_data: Rig, tmp_path: Path) -> None:
    class _StopError(Exception):
        pass

    def stop() -> None:
        raise _StopError

    with pytest.raises(_StopError):
        fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", LIMITS, Watch(go_on=stop))


def test_storage_is_reserved_before_the_first_byte(tmp_path: Path) -> None:
    with PartialBlob(tmp_path / "model", SPEC):
        found = os.stat(tmp_path / "model")  # noqa: PTH116 - blocks, not length
        assert found.st_size == SPEC.size
        assert found.st_blocks * 512 >= SPEC.size


def test_disk_without_room_is_a_clear_error(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    too_large = room.f_bavail * room.f_frsize + 2**20
    with pytest.raises(StoreError, match="cannot be reserved") as full:
        PartialBlob(tmp_path / "model", BlobSpec(SPEC.digest, too_large))
    assert full.value.hint


def test_request_masks_stay_within_the_contract(hub_with_data: Rig, tmp_path: Path) -> None:
    fetch_blob(hub_with_data.link, SPEC, tmp_path / "model", FetchLimits(500, 5.0), Watch())
    assert all(isinstance(r, BlobRequest) and len(r.missing) <= 16 for r in hub_with_data.hub.asked)


def test_metadata_comes_or_is_said_not_to_exist(rig: Rig) -> None:
    files = {"timestamp.json": b"{}"}
    rig.hub.metadata = lambda name, _max_bytes: files.get(name)
    assert rig.link.metadata("timestamp.json", 100) == b"{}"
    assert rig.link.metadata("7.root.json", 100) is None


def test_silence_is_not_not_found(rig: Rig) -> None:
    """M-4.8-3: without a reply in time the step fails."""
    rig.hub.is_silent = True
    with pytest.raises(DownloadError, match=r"timestamp\.json did not come"):
        rig.link.metadata("timestamp.json", 100, timeout_s=0.2)


def test_metadata_longer_than_asked_is_refused(rig: Rig) -> None:
    rig.hub.metadata = lambda _name, _max_bytes: b"x" * 101
    with pytest.raises(DownloadError, match="101 bytes"):
        rig.link.metadata("timestamp.json", 100)


def test_closed_link_lets_nobody_wait(rig: Rig) -> None:
    rig.hub.is_silent = True
    rig.link.close()
    with pytest.raises(DownloadError):
        rig.link.metadata("timestamp.json", 100)
