"""Release manifests and their OCI image (contract §5)."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest

from device_agent.contract.errors import (
    MalformedMessageError,
    MessageTooLargeError,
    UnsupportedVersionError,
)
from device_agent.contract.manifest import (
    CHUNK_BYTES,
    MAX_IMAGE_MANIFEST_BYTES,
    MAX_MANIFEST_BYTES,
    Manifest,
    decode_image_manifest,
    decode_manifest,
    encode_manifest,
)
from tests.support.contract_examples import IMAGE_MANIFEST, MANIFEST


def _data(**change: object) -> bytes:
    return json.dumps(msgspec.to_builtins(MANIFEST) | change).encode()


def _blob(**change: object) -> dict[str, object]:
    return msgspec.to_builtins(MANIFEST)["blobs"][0] | change


def test_golden_bytes(check_golden: Callable[[str, bytes], None]) -> None:
    """M-3.1-1."""
    check_golden("manifest.json", encode_manifest(MANIFEST))
    check_golden("image-manifest.json", msgspec.json.encode(IMAGE_MANIFEST))


def test_round_trips() -> None:
    """M-3.1-4."""
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST
    assert decode_image_manifest(msgspec.json.encode(IMAGE_MANIFEST)) == IMAGE_MANIFEST


def test_one_value_has_one_encoding() -> None:
    """M-5.1-1: neither key order nor blanks nor the order of tools make other bytes."""
    table = msgspec.to_builtins(MANIFEST)
    shuffled = json.dumps(dict(reversed(table.items())), indent=3).encode()
    assert encode_manifest(decode_manifest(shuffled)) == encode_manifest(MANIFEST)
    one = msgspec.structs.replace(MANIFEST, tools={"a": "1", "b": "2"})
    other = msgspec.structs.replace(MANIFEST, tools={"b": "2", "a": "1"})
    assert encode_manifest(one) == encode_manifest(other)


def test_canonical_json_is_sorted_and_tight() -> None:
    """M-5.1-1."""
    data = encode_manifest(MANIFEST)
    again = json.dumps(
        json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    assert data == again


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_other_schema_is_refused(schema: object) -> None:
    """M-5.2-1."""
    with pytest.raises(UnsupportedVersionError):
        decode_manifest(_data(schema=schema))


def test_missing_schema_is_refused() -> None:
    """M-5.2-1."""
    table = msgspec.to_builtins(MANIFEST)
    del table["schema"]
    with pytest.raises(UnsupportedVersionError):
        decode_manifest(json.dumps(table).encode())


def test_unknown_fields_are_refused_at_every_depth() -> None:
    """M-3.2-2, M-5.2-1."""
    with pytest.raises(MalformedMessageError, match="script"):
        decode_manifest(_data(script="rm"))
    for field in ("profile", "runtime", "limits", "golden"):
        inner = msgspec.to_builtins(getattr(MANIFEST, field)) | {"extra": 1}
        with pytest.raises(MalformedMessageError, match="extra"):
            decode_manifest(_data(**{field: inner}))
    with pytest.raises(MalformedMessageError, match="extra"):
        decode_manifest(_data(preprocess=[{"type": "resize", "size": 9, "extra": 1}]))


@pytest.mark.parametrize("field", [f.encode_name for f in msgspec.structs.fields(Manifest)])
def test_required_fields_are_required(field: str) -> None:
    """M-5.2-1."""
    info = next(f for f in msgspec.structs.fields(Manifest) if f.encode_name == field)
    table = msgspec.to_builtins(MANIFEST)
    del table[field]
    data = json.dumps(table).encode()
    if info.required:
        with pytest.raises(MalformedMessageError, match=field):
            decode_manifest(data)
    elif field != "schema":
        assert isinstance(decode_manifest(data), Manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Animals"},
        {"version": "1/2"},
        {"version": "1.0\n"},
        {"counter": 0},
        {"task": "magic"},
        {"preprocess": [{"type": "exec", "code": "1"}]},
        {"preprocess": [{"type": "resize", "size": 0}]},
        {"postprocess": [{"type": "top-k", "k": 0}]},
        {"limits": {"memory_bytes": 0, "threads": 1, "deadline_s": 1}},
        {"limits": {"memory_bytes": 1, "threads": 1, "deadline_s": 0}},
        {"golden": {"vectors": 0, "min_cosine": 1, "min_agreement": 1}},
        {"golden": {"vectors": 1, "min_cosine": 1.1, "min_agreement": 1}},
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}]},
        {"source_digest": "md5:1"},
        {"measurements": [{"what": "p95", "value": 1, "unit": "s"}]},
    ],
)
def test_wrong_values_are_refused(change: dict[str, object]) -> None:
    """M-5.2-1."""
    with pytest.raises(MalformedMessageError):
        decode_manifest(_data(**change))


@pytest.mark.parametrize(
    ("blobs", "says"),
    [
        ([], "no model"),
        ([_blob()], "no golden"),
        ([_blob(role="golden", size=1, chunks=["ab" * 32])], "no model"),
        ([_blob(), _blob(), _blob(role="golden")], "two model"),
        ([_blob(size=CHUNK_BYTES), _blob(role="golden")], "not 1"),
        ([_blob(size=2 * CHUNK_BYTES + 1), _blob(role="golden")], "not 3"),
        ([_blob(chunks=[]), _blob(role="golden")], "not 2"),
    ],
)
def test_blobs_that_contradict_themselves_are_refused(blobs: object, says: str) -> None:
    """M-5.2-2."""
    with pytest.raises(MalformedMessageError, match=says):
        decode_manifest(_data(blobs=blobs))


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_number_of_chunks_at_the_edges(size: int) -> None:
    """M-5.2-2."""
    chunks = ["ab" * 32] * (1 if size <= CHUNK_BYTES else 2)
    small = _blob(role="golden", size=1, chunks=["ab" * 32])
    decoded = decode_manifest(_data(blobs=[_blob(size=size, chunks=chunks), small]))
    assert decoded.blob("model").size == size


@pytest.mark.parametrize("change", [{"size": 0}, {"size": 2**31 + 1}, {"chunks": ["AB" * 32]}])
def test_wrong_blob_is_refused(change: dict[str, object]) -> None:
    """M-3.4-1."""
    with pytest.raises(MalformedMessageError):
        decode_manifest(_data(blobs=[_blob(**change), _blob(role="golden")]))


def test_blob_by_role() -> None:
    assert MANIFEST.blob("golden") is MANIFEST.blobs[1]
    assert MANIFEST.blob("labels") is None


def test_documents_over_their_bounds_are_refused() -> None:
    """M-3.4-1."""
    with pytest.raises(MessageTooLargeError):
        decode_manifest(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(MessageTooLargeError):
        decode_image_manifest(b" " * (MAX_IMAGE_MANIFEST_BYTES + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"artifactType": "application/vnd.oci.empty.v1+json"},
        {"schemaVersion": 1},
        {"config": {"mediaType": "text/plain", "digest": "sha256:" + "ab" * 32, "size": 1}},
        {"layers": [{"mediaType": "x", "digest": "sha256:1", "size": 1}]},
        {"layers": None},
    ],
)
def test_image_of_something_else_is_refused(change: dict[str, object]) -> None:
    """M-5.3-1."""
    table = msgspec.to_builtins(IMAGE_MANIFEST) | change
    with pytest.raises(MalformedMessageError):
        decode_image_manifest(json.dumps(table).encode())


def test_image_manifest_with_more_fields_is_taken() -> None:
    """Fields of later OCI versions are not ours to refuse."""
    table = msgspec.to_builtins(IMAGE_MANIFEST) | {"subject": {"digest": "x"}}
    assert decode_image_manifest(json.dumps(table).encode()) == IMAGE_MANIFEST
