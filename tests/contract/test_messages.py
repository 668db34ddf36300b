"""Messages: bytes, round trips, older and newer peers, refusals, bounds (contract §3, §4)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from device_agent.contract.errors import (
    ContractError,
    MalformedMessageError,
    MessageTooLargeError,
    UnsupportedVersionError,
)
from device_agent.contract.messages import (
    MAX_CONTROL_BYTES,
    MAX_REPLY_BYTES,
    MAX_TELEMETRY_BYTES,
    MAX_TEXT_CHARACTERS,
    MAX_WINDOW_CHUNKS,
    VERSION,
    Ack,
    Birth,
    BlobRequest,
    Event,
    MetadataReply,
    MetadataRequest,
    Telemetry,
    decode,
    encode,
    missing_indices,
    missing_mask,
)
from tests.support.contract_examples import BOOT_ID, DIGEST, MACHINE_ID, MESSAGES

_BINARY = ("telemetry", "blob-refused", "metadata-reply", "metadata-reply-not-found")
_each = pytest.mark.parametrize("name", list(MESSAGES))


def _table(name: str) -> dict[str, object]:
    """Return the message as a table, to be changed and encoded again."""
    codec = msgspec.msgpack if name in _BINARY else msgspec.json
    return codec.decode(encode(MESSAGES[name]))


def _bytes(name: str, table: dict[str, object]) -> bytes:
    codec = msgspec.msgpack if name in _BINARY else msgspec.json
    return codec.encode(table)


@_each
def test_bytes_are_the_golden_ones(name: str, check_golden: Callable[[str, bytes], None]) -> None:
    """M-3.1-1."""
    suffix = "msgpack" if name in _BINARY else "json"
    check_golden(f"{name}.{suffix}", encode(MESSAGES[name]))


@_each
def test_type_and_version_are_on_the_wire(name: str) -> None:
    """M-3.1-2."""
    table = _table(name)
    assert table["type"] == name.removesuffix("-not-found")
    assert table["v"] == VERSION


@_each
def test_round_trip(name: str) -> None:
    """M-3.1-4."""
    assert decode(encode(MESSAGES[name])) == MESSAGES[name]


def test_every_type_has_an_example() -> None:
    from device_agent.contract.messages import _KNOWN_TYPES

    assert {name.removesuffix("-not-found") for name in MESSAGES} == _KNOWN_TYPES


@_each
def test_message_of_a_newer_peer_is_understood(name: str) -> None:
    """M-3.2-1: a newer peer's fields are ignored, at the top and inside."""
    table = _table(name) | {"colour": "green", "nested": {"deep": [1, None]}}
    if name == "telemetry":
        table["windows"][0]["energy_j"] = 4.5
        table["spool"]["oldest_unix_s"] = 1
    assert decode(_bytes(name, table)) == MESSAGES[name]


@_each
def test_message_of_an_older_peer_is_understood(name: str) -> None:
    """M-3.2-1: fields with a default may be missing."""
    kind = type(MESSAGES[name])
    required = {f.encode_name for f in msgspec.structs.fields(kind) if f.required}
    table = {k: v for k, v in _table(name).items() if k in required | {"type", "v"}}
    decoded = decode(_bytes(name, table))
    assert type(decoded) is kind
    for field in required:
        assert getattr(decoded, field) == getattr(MESSAGES[name], field)


@pytest.mark.parametrize("kind", ["reboot", "Birth", "", "desired", "chunk"])
@pytest.mark.parametrize("codec", [msgspec.json, msgspec.msgpack])
def test_unknown_type_is_refused(kind: str, codec: object) -> None:
    """M-3.3-1."""
    with pytest.raises(MalformedMessageError, match="unknown message type"):
        decode(codec.encode({"type": kind, "v": VERSION, "seq": 1}))


@_each
@pytest.mark.parametrize("version", [0, 2, 99])
def test_other_version_is_refused_and_named(name: str, version: int) -> None:
    """M-3.3-2."""
    with pytest.raises(UnsupportedVersionError, match=f"version {version}; .* version {VERSION}"):
        decode(_bytes(name, _table(name) | {"v": version}))


def test_newer_version_of_an_unknown_type_is_said_as_version() -> None:
    """M-3.3-2: the version explains more than the unknown type does."""
    with pytest.raises(UnsupportedVersionError) as caught:
        decode(b'{"type":"teleport","v":2}')
    assert caught.value.hint


@pytest.mark.parametrize("table", [{}, {"type": "ack"}, {"v": 1}, {"type": 1, "v": 1}])
def test_message_without_head_is_refused(table: dict[str, object]) -> None:
    """M-3.3-1."""
    with pytest.raises(MalformedMessageError):
        decode(msgspec.json.encode(table))


@_each
def test_other_encoding_is_refused(name: str) -> None:
    """M-3.1-3."""
    other = msgspec.json if name in _BINARY else msgspec.msgpack
    payload = other.encode(msgspec.to_builtins(MESSAGES[name], builtin_types=(bytes,)))
    with pytest.raises(MalformedMessageError, match="encoding"):
        decode(payload)


@_each
def test_every_required_field_is_required(name: str) -> None:
    """M-3.3-3: what is missing is named."""
    for field in msgspec.structs.fields(type(MESSAGES[name])):
        if field.required:
            table = _table(name)
            del table[field.encode_name]
            with pytest.raises(MalformedMessageError, match=field.encode_name):
                decode(_bytes(name, table))


@_each
def test_wrong_field_types_are_refused(name: str) -> None:
    """M-3.3-3: every field is of its type or the message is refused, and the field is named."""
    for field in _table(name).keys() - {"type"}:
        table = _table(name) | {field: {"not": ["of", "this", "type"]}}
        if field in {"runtimes", "spool"}:
            table[field] = 7
        with pytest.raises(MalformedMessageError):
            decode(_bytes(name, table))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("birth", {"boot_id": BOOT_ID.upper()}),
        ("birth", {"boot_id": BOOT_ID + "\n"}),
        ("birth", {"machine_id": MACHINE_ID[:-1]}),
        ("birth", {"connection": 0}),
        ("birth", {"profile": "Raspberry"}),
        ("birth", {"profile": "raspberry\n"}),
        ("birth", {"reporting_interval_s": 0}),
        ("ack", {"seq": -1}),
        ("ack", {"credit": 2**63}),
        ("ack", {"seq": True}),
        ("event", {"kind": "party"}),
        ("event", {"floor": 0}),
        ("event", {"at_unix_s": 1e301}),
        ("feedback", {"verdict": "maybe"}),
        ("feedback", {"confidence": 1.5}),
        ("feedback", {"latency_s": -1}),
        ("reported", {"slots": [{"slot": "attic", "state": "idle"}]}),
        ("reported", {"slots": [{"slot": "active", "state": "dancing"}]}),
        ("blob-request", {"digest": DIGEST.upper()}),
        ("blob-request", {"missing": ""}),
        ("blob-request", {"missing": "5"}),
        ("blob-request", {"missing": "00" * 9}),
        ("telemetry", {"temperature_c": float("nan")}),
        ("telemetry", {"temperature_c": float("inf")}),
    ],
)
def test_wrong_values_are_refused(name: str, change: dict[str, object]) -> None:
    """M-1.1-1, M-1.2-1, M-3.4-2."""
    with pytest.raises(MalformedMessageError):
        decode(_bytes(name, _table(name) | change))


@pytest.mark.parametrize(
    "change",
    [
        {"duration_s": float("nan")},
        {"start_unix_s": float("-inf")},
        {"duration_s": -1.0},
        {"classes": {"1": -1}},
        {"confidence": [1] * 11},
        {"outcomes": {"ok": -1}},
        {"rss_bytes": 2**63},
        {"latency": {"total": {"counts": {"0": 1}}}},
        {"latency": {"total": {"counts": {0: -1}}}},
        {"latency": {"total": {"counts": {0: 1}, "total_s": float("nan")}}},
    ],
)
def test_wrong_values_in_a_window_are_refused(change: dict[str, object]) -> None:
    """M-3.4-2: MessagePack could say NaN and 2^63; no window may."""
    table = _table("telemetry")
    table["windows"][0] |= change
    with pytest.raises(MalformedMessageError):
        decode(msgspec.msgpack.encode(table))


@pytest.mark.parametrize("index", [-284, 169, 10**9, -(10**9)])
def test_bucket_out_of_range_is_refused(index: int) -> None:
    """M-6-3: such an index would overflow when its bounds are computed."""
    table = _table("telemetry")
    table["windows"][0]["latency"] = {"total": {"counts": {index: 1}}}
    with pytest.raises(MalformedMessageError):
        decode(msgspec.msgpack.encode(table))


def test_text_over_its_bound_is_refused() -> None:
    """M-3.4-1."""
    table = _table("event")
    assert decode(_bytes("event", table | {"detail": "é" * MAX_TEXT_CHARACTERS}))
    with pytest.raises(MalformedMessageError):
        decode(_bytes("event", table | {"detail": "e" * (MAX_TEXT_CHARACTERS + 1)}))


def test_json_over_its_bound_is_refused_unread() -> None:
    """M-3.4-1."""
    just = b'{"type":"ack","v":2' + b" " * MAX_CONTROL_BYTES
    with pytest.raises(UnsupportedVersionError):
        decode(just[: MAX_CONTROL_BYTES - 1] + b"}")
    with pytest.raises(MessageTooLargeError) as caught:
        decode(just[:MAX_CONTROL_BYTES] + b"}")
    assert caught.value.max_bytes == MAX_CONTROL_BYTES


def test_binary_over_its_bound_is_refused_unread() -> None:
    """M-3.4-1."""
    with pytest.raises(MessageTooLargeError) as caught:
        decode(b"\x80" * (MAX_REPLY_BYTES + 1))
    assert caught.value.size_bytes == MAX_REPLY_BYTES + 1


def test_telemetry_over_its_bound_is_refused() -> None:
    """M-3.4-1."""
    table = _table("telemetry") | {"padding": b"x" * MAX_TELEMETRY_BYTES}
    with pytest.raises(MessageTooLargeError, match="telemetry"):
        decode(msgspec.msgpack.encode(table))


def test_metadata_of_the_largest_size_travels() -> None:
    """M-3.4-1: the bound of replies leaves room for the largest file."""
    from device_agent.contract.messages import MAX_METADATA_BYTES

    reply = MetadataReply(request_id=2**63 - 1, path="9.root.json", data=bytes(MAX_METADATA_BYTES))
    assert decode(encode(reply)) == reply


@pytest.mark.parametrize(
    "path",
    ["../root.json", "a/root.json", "/root.json", ".json", "root.json\n", "root", "", "a\\b.json"],
)
def test_metadata_name_that_is_a_path_is_refused(path: str) -> None:
    """M-4.8-2."""
    table = _table("metadata-request") | {"path": path}
    with pytest.raises(MalformedMessageError, match="path"):
        decode(msgspec.json.encode(table))


@pytest.mark.parametrize("path", ["timestamp.json", "7.root.json", "snapshot.json"])
def test_metadata_names_of_tuf_are_taken(path: str) -> None:
    """M-4.8-2."""
    request = MetadataRequest(request_id=1, path=path, max_bytes=1)
    assert decode(encode(request)) == request


def test_mask_layout() -> None:
    """M-4.7-1: bit i of the little-endian number asks for chunk first + i."""
    assert missing_mask(64, [64, 66, 79]) == "0580"
    request = BlobRequest(request_id=1, digest=DIGEST, first=64, missing="0580")
    assert missing_indices(request) == [64, 66, 79]


@pytest.mark.parametrize("indices", [[0], [63], list(range(64)), [7, 8]])
def test_mask_round_trip(indices: list[int]) -> None:
    """M-4.7-1."""
    mask = missing_mask(1000, [1000 + i for i in indices])
    request = BlobRequest(request_id=1, digest=DIGEST, first=1000, missing=mask)
    assert missing_indices(decode(encode(request))) == [1000 + i for i in indices]


@pytest.mark.parametrize("indices", [[], [9], [10 + MAX_WINDOW_CHUNKS]])
def test_mask_that_cannot_be_written_is_refused(indices: list[int]) -> None:
    """M-4.7-1."""
    with pytest.raises(ValueError, match="chunk"):
        missing_mask(10, indices)


def test_empty_and_deeply_nested_payloads_are_refused() -> None:
    """M-3.3-3."""
    for payload in (b"", b"{", b"null", b"[]", b"\xff", b"\x81\xa4type", b'{"a":' * 30_000):
        with pytest.raises(ContractError):
            decode(payload)


def test_telemetry_of_an_idle_device_is_small() -> None:
    """An idle device costs little: no models, no windows."""
    assert len(encode(Telemetry(boot_id=BOOT_ID, seq=1))) < 200


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Ack(boot_id=BOOT_ID, seq=1, credit=1).seq = 2


def test_floor_of_an_older_agent_says_that_nothing_was_dropped() -> None:
    """M-3.2-1: records without ``floor`` begin at 1."""
    table = _table("event")
    del table["floor"]
    decoded = decode(_bytes("event", table))
    assert isinstance(decoded, Event)
    assert decoded.floor == 1


def test_control_messages_are_readable_json() -> None:
    """A plain MQTT client shows them."""
    assert encode(MESSAGES["birth"]).startswith(b'{"type":"birth",')
    assert isinstance(decode(encode(MESSAGES["birth"])), Birth)
