"""Desired state, its envelope, chunks and target paths (contract §4.2, §4.7, §5.3, §8.1)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import msgspec
import pytest

from device_agent.contract.chunk import HEADER_BYTES, Chunk, decode_chunk, encode_chunk
from device_agent.contract.desired import (
    MAX_DESIRED_BYTES,
    MAX_TRIALS,
    DesiredSlot,
    Trial,
    decode_desired,
    decode_envelope,
    encode_envelope,
    pre_authentication_encoding,
)
from device_agent.contract.errors import (
    MalformedMessageError,
    MessageTooLargeError,
    UnsupportedVersionError,
)
from device_agent.contract.manifest import CHUNK_BYTES
from device_agent.contract.messages import MAX_TRIAL_RUNS, ReleaseRef
from device_agent.contract.trust import parse_target_path, target_path
from tests.support.contract_examples import CHUNK, DESIRED, DIGEST, ENVELOPE


def _payload(**change: object) -> bytes:
    return json.dumps(msgspec.to_builtins(DESIRED) | change).encode()


def test_golden_bytes(check_golden: Callable[[str, bytes], None]) -> None:
    """M-3.1-1."""
    check_golden("desired.json", msgspec.json.encode(DESIRED))
    check_golden("envelope.json", encode_envelope(ENVELOPE))
    check_golden("chunk.bin", encode_chunk(CHUNK))


def test_round_trips() -> None:
    """M-3.1-4."""
    assert decode_desired(msgspec.json.encode(DESIRED)) == DESIRED
    assert decode_envelope(encode_envelope(ENVELOPE)) == ENVELOPE
    assert decode_chunk(encode_chunk(CHUNK)) == CHUNK


def test_envelope_is_dsse_json() -> None:
    """M-8.1-1: the field names and base64 of DSSE's envelope.md."""
    table = json.loads(encode_envelope(ENVELOPE))
    assert set(table) == {"payload", "payloadType", "signatures"}
    assert base64.b64decode(table["payload"]) == ENVELOPE.payload
    assert set(table["signatures"][0]) == {"keyid", "sig"}


def test_pre_authentication_encoding_is_the_one_of_dsse() -> None:
    """M-8.1-1: the test vector of DSSE's protocol.md; lengths are in bytes, not characters."""
    found = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pre_authentication_encoding("ä", b"") == b"DSSEv1 2 \xc3\xa4 0 "


def test_unknown_fields_of_a_desired_state_are_ignored() -> None:
    """M-3.2-1, M-4.10-4: such as trials, for an agent that knows none."""
    assert decode_desired(_payload(policy={"probation_s": 60})) == DESIRED


def test_no_slots_is_a_desired_state() -> None:
    """M-4.2-5: "run nothing" can be said."""
    assert decode_desired(_payload(slots=[])).slots == ()


@pytest.mark.parametrize("version", [0, 2])
def test_other_version_of_desired_is_refused(version: int) -> None:
    """M-3.3-2."""
    with pytest.raises(UnsupportedVersionError):
        decode_desired(_payload(v=version))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "ack"},
        {"type": None},
        {"fleet": "LAB"},
        {"device": "pi-1\n"},
        {"revision": 0},
        {"revision": 2**63},
        {"not_after_unix_s": "tomorrow"},
        {"slots": [{"slot": "active"}]},
        {"slots": {}},
    ],
)
def test_wrong_desired_state_is_refused(change: dict[str, object]) -> None:
    """M-3.3-1, M-3.4-2, M-1.1-1."""
    with pytest.raises(MalformedMessageError):
        decode_desired(_payload(**change))


def test_desired_state_without_type_is_refused() -> None:
    """M-3.3-1: signed bytes of another kind must not pass for a desired state."""
    table = msgspec.to_builtins(DESIRED)
    del table["type"]
    with pytest.raises(MalformedMessageError):
        decode_desired(json.dumps(table).encode())


def test_envelope_over_its_bound_is_refused() -> None:
    """M-4.2-7."""
    data = encode_envelope(ENVELOPE)
    assert decode_envelope(data + b" " * (MAX_DESIRED_BYTES - len(data))) == ENVELOPE
    with pytest.raises(MessageTooLargeError):
        decode_envelope(data + b" " * (MAX_DESIRED_BYTES - len(data) + 1))


def test_envelope_of_another_payload_is_refused() -> None:
    """M-4.2-7: a signature over something else is not one over a desired state."""
    other = msgspec.structs.replace(ENVELOPE, payload_type="application/vnd.in-toto+json")
    with pytest.raises(MalformedMessageError, match="in-toto"):
        decode_envelope(encode_envelope(other))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"payload":"%%"}', b'{"a":' * 1000])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    """M-3.3-3."""
    with pytest.raises(MalformedMessageError):
        decode_envelope(data)


def test_chunk_layout() -> None:
    """M-4.7-1."""
    data = encode_chunk(CHUNK)
    assert HEADER_BYTES == 37
    assert data[0] == 1
    assert data[1:33] == b"\xab" * 32
    assert data[33:37] == b"\x00\x00\x01\x02"
    assert data[37:] == b"\x00\x01\x02chunk"


def test_largest_chunk_travels() -> None:
    """M-4.7-1."""
    chunk = Chunk(DIGEST, 2**32 - 1, b"z" * CHUNK_BYTES)
    assert decode_chunk(encode_chunk(chunk)) == chunk


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, CHUNK_BYTES + 38])
def test_chunk_of_a_wrong_size_is_refused(size: int) -> None:
    """M-4.7-2."""
    with pytest.raises(MalformedMessageError):
        decode_chunk(b"\x01" * size)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_chunk_of_another_version_is_refused(version: int) -> None:
    """M-4.7-2."""
    with pytest.raises(UnsupportedVersionError):
        decode_chunk(bytes([version]) + encode_chunk(CHUNK)[1:])


def test_target_path() -> None:
    """M-5.3-2."""
    path = target_path("animals", "raspberry-pi-4", "1.4.0+edge")
    assert path == "releases/animals/raspberry-pi-4/1.4.0+edge.json"
    assert parse_target_path(path) == ("animals", "raspberry-pi-4", "1.4.0+edge")


@pytest.mark.parametrize("parts", [("../x", "p", "1"), ("n", "P", "1"), ("n", "p", "../1")])
def test_target_path_of_a_wrong_name_is_not_built(parts: tuple[str, str, str]) -> None:
    """M-5.3-2."""
    with pytest.raises(MalformedMessageError):
        target_path(*parts)


@pytest.mark.parametrize(
    "path", ["", "releases/a/b", "releases/a/b/c", "other/a/b/1.json", "releases/a/b/../1.json"]
)
def test_path_of_another_target_is_not_read(path: str) -> None:
    """M-5.3-2."""
    assert parse_target_path(path) is None


def test_trials_are_bounded() -> None:
    """M-4.10-6."""
    trial = msgspec.to_builtins(DESIRED)["trials"][0]
    assert len(decode_desired(_payload(trials=[trial] * MAX_TRIALS)).trials) == MAX_TRIALS
    for wrong in ([trial] * (MAX_TRIALS + 1), [trial | {"runs": MAX_TRIAL_RUNS + 1}],
                  [trial | {"runs": 0}], [trial | {"id": "../x"}]):  # fmt: skip
        with pytest.raises(MalformedMessageError):
            decode_desired(_payload(trials=wrong))


def test_a_full_desired_state_is_under_its_bound() -> None:
    long = "n" * 63
    release = ReleaseRef(name=long, version=long, digest=DIGEST)
    trials = tuple(Trial(id=f"{i}".rjust(63, "t"), release=release, counter=2**40, runs=1000)
                   for i in range(MAX_TRIALS))  # fmt: skip
    slots = tuple(
        DesiredSlot(slot=s, release=release, counter=2**40) for s in ("active", "candidate")
    )
    payload = msgspec.json.encode(msgspec.structs.replace(DESIRED, slots=slots, trials=trials))
    envelope = msgspec.structs.replace(ENVELOPE, payload=payload)
    assert decode_envelope(encode_envelope(envelope)) == envelope
