from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from aid_edge.catalogue.draft import (
    DraftFile,
    ReleaseDraft,
    check_files,
    draft_file,
    read_draft,
    to_manifest,
    write_draft,
)
from aid_edge.errors import PublishError, UsageError
from device_agent.contract.errors import DigestMismatchError
from device_agent.contract.manifest import (
    CHUNK_BYTES,
    Golden,
    Limits,
    ProfileRef,
    RuntimeRef,
    decode_manifest,
    encode_manifest,
)
from device_agent.contract.tensors import TensorInfo

ZERO = "sha256:" + "0" * 64


def draft(folder: Path) -> ReleaseDraft:
    (folder / "model.onnx").write_bytes(b"m" * (CHUNK_BYTES + 1))
    (folder / "golden.bin").write_bytes(b"g")
    return ReleaseDraft(
        name="digits",
        version="1.0.0",
        profile=ProfileRef("generic-x86_64", ZERO),
        runtime=RuntimeRef("onnx_runtime", ">=1.20"),
        task="classification",
        inputs=(TensorInfo("x", "FP32", (1, 4)),),
        outputs=(TensorInfo("y", "FP32", (1, 2)),),
        limits=Limits(2**20, 1, 1.0),
        golden=Golden(1, 0.9, 1.0),
        files=(
            draft_file(folder, "model", "model.onnx"),
            draft_file(folder, "golden", "golden.bin"),
        ),
        source_digest=ZERO,
    )


def test_a_draft_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = draft(tmp_path)
    write_draft(tmp_path, written)
    assert read_draft(tmp_path) == written


def test_the_manifest_has_all_of_the_draft_and_the_chunks(tmp_path: Path) -> None:
    of = draft(tmp_path)
    manifest = to_manifest(of, 7, check_files(tmp_path, of))
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert (manifest.counter, manifest.name, manifest.limits) == (7, "digits", of.limits)
    model = manifest.blob("model")
    assert model is not None
    assert (model.size, len(model.chunks)) == (CHUNK_BYTES + 1, 2)


def test_every_field_of_a_manifest_but_two_is_a_field_of_a_draft() -> None:
    from device_agent.contract.manifest import Manifest

    assert set(Manifest.__struct_fields__) - {"counter", "blobs"} == (
        set(ReleaseDraft.__struct_fields__) - {"files"}
    )


def test_a_folder_without_a_draft_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a release folder"):
        read_draft(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema", "aid-edge/release-draft/v9", "schema"),
        ("name", "Up/Per", "name"),
        ("surprise", 1, "surprise"),
        ("files", [], "no model"),
        ("limits", {"memory_bytes": 0, "threads": 1, "deadline_s": 1.0}, "limits"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, key: str, value: object, said: str) -> None:
    path = write_draft(tmp_path, draft(tmp_path))
    table = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**table, key: value}))
    with pytest.raises(PublishError, match=said):
        read_draft(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b'{"schema": 3}'])
def test_what_is_not_a_draft_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "release.json").write_bytes(data)
    with pytest.raises(PublishError):
        read_draft(tmp_path)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", ".hidden", "a/b", ""])
def test_a_file_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    path = write_draft(tmp_path, draft(tmp_path))
    table = msgspec.json.decode(path.read_bytes())
    table["files"][0]["name"] = name
    path.write_bytes(msgspec.json.encode(table))
    with pytest.raises(PublishError, match="name"):
        read_draft(tmp_path)


def test_two_files_of_one_role_are_refused(tmp_path: Path) -> None:
    of = draft(tmp_path)
    twice = msgspec.structs.replace(of, files=(*of.files, DraftFile("model", "b", ZERO, 1)))
    with pytest.raises(PublishError, match="more than one model"):
        write_draft(tmp_path, twice)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    of = draft(tmp_path)
    (tmp_path / "golden.bin").unlink()
    with pytest.raises(PublishError, match=r"golden\.bin"):
        check_files(tmp_path, of)


def test_altered_bytes_are_not_published(tmp_path: Path) -> None:
    of = draft(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"M" * (CHUNK_BYTES + 1))
    with pytest.raises(DigestMismatchError, match=r"model\.onnx"):
        check_files(tmp_path, of)
