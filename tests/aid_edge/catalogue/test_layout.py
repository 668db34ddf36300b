"""The layout against the OCI image specification 1.1, checked independently of our own types."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aid_edge.catalogue.check import check_draft
from aid_edge.catalogue.draft import read_draft
from aid_edge.catalogue.layout import ImageLayout, PackedRelease, pack
from device_agent.contract.errors import DigestMismatchError, MalformedMessageError
from device_agent.contract.manifest import MEDIA_TYPES, decode_image_manifest, decode_manifest
from tests.support.releases import OTHER_PROFILE, make_draft, make_home, publish

# RFC 6838 §4.2, as descriptor.md and manifest.md require of media and artifact types.
MEDIA_TYPE = re.compile(
    r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$"
)


def check_descriptor(layout: Path, found: dict[str, Any]) -> bytes:
    """Check one content descriptor (descriptor.md) and return the content."""
    assert set(found) <= {
        *("mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform")
    }
    assert MEDIA_TYPE.match(found["mediaType"])
    algorithm, encoded = found["digest"].split(":")
    assert algorithm == "sha256"
    assert re.fullmatch(r"[a-f0-9]{64}", encoded)
    content = (layout / "blobs" / algorithm / encoded).read_bytes()
    assert hashlib.sha256(content).hexdigest() == encoded
    assert type(found["size"]) is int
    assert found["size"] == len(content)
    check_annotations(found.get("annotations", {}))
    return content


def check_annotations(found: dict[str, Any]) -> None:
    """Check annotations (annotations.md): a map of strings, with keys."""
    assert all(key and isinstance(value, str) for key, value in found.items())


def check_layout(layout: Path) -> list[dict[str, Any]]:
    """Check a whole image layout (image-layout.md) and return its image manifests."""
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    manifests = []
    for entry in index["manifests"]:
        assert entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        manifest = json.loads(check_descriptor(layout, entry))
        assert manifest["schemaVersion"] == 2
        assert manifest["mediaType"] == entry["mediaType"]
        # manifest.md: artifactType MUST be set when config is the empty value, and complies with
        # RFC 6838; an index descriptor carries the same one.
        assert MEDIA_TYPE.match(manifest["artifactType"])
        assert manifest["artifactType"] == entry["artifactType"]
        check_annotations(manifest.get("annotations", {}))
        check_descriptor(layout, manifest["config"])
        assert len(manifest["layers"]) >= 1
        for layer in manifest["layers"]:
            check_descriptor(layout, layer)
        manifests.append(manifest)
    for blob in (layout / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    return manifests


def packed(folder: Path, counter: int = 1) -> PackedRelease:
    draft = read_draft(folder)
    return pack(draft, folder, counter, check_draft(folder, draft))


def test_an_empty_catalogue_is_a_valid_layout(tmp_path: Path) -> None:
    assert check_layout(make_home(tmp_path / "home").catalogue) == []


def test_published_releases_are_a_valid_layout(tmp_path: Path) -> None:
    """M-5.3-3."""
    home = make_home(tmp_path / "home")
    out = tmp_path / "out"
    publish(home, [make_draft(out), make_draft(out, profile=OTHER_PROFILE, seed=1)])
    manifests = check_layout(home.catalogue)
    assert len(manifests) == 2
    for manifest in manifests:
        config = (home.catalogue / "blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes()
        blobs = decode_manifest(config).blobs
        assert [(x["digest"], x["size"], x["mediaType"]) for x in manifest["layers"]] == [
            (b.digest, b.size, MEDIA_TYPES[b.role]) for b in blobs
        ]


def test_a_foreign_tool_copies_a_release_with_its_digest(tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed (apt install skopeo)")
    home = make_home(tmp_path / "home")
    (published,) = publish(home, [make_draft(tmp_path / "out")])
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    subprocess.run(
        [
            *(skopeo, "--policy", tmp_path / "policy.json", "copy"),
            f"oci:{home.catalogue}:digits/generic-x86_64:1.0.0",
            f"oci:{tmp_path / 'copy'}:digits:1.0.0",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    (entry,) = json.loads((tmp_path / "copy" / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == published.digest


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one = packed(make_draft(tmp_path / "one"))
    two = packed(make_draft(tmp_path / "two"))
    assert (one.image, one.config, one.digest) == (two.image, two.config, two.digest)


@pytest.mark.parametrize("change", [{"seed": 1}, {"version": "1.0.1"}, {"name": "letters"}])
def test_another_release_has_another_digest(tmp_path: Path, change: dict[str, Any]) -> None:
    one = packed(make_draft(tmp_path / "one"))
    assert packed(make_draft(tmp_path / "two", **change)).digest != one.digest


def test_the_counter_is_part_of_the_bytes(tmp_path: Path) -> None:
    folder = make_draft(tmp_path)
    assert packed(folder, 1).digest != packed(folder, 2).digest


def test_the_packed_image_names_the_packed_config(tmp_path: Path) -> None:
    release = packed(make_draft(tmp_path), 5)
    image = decode_image_manifest(release.image)
    assert image.config.digest == "sha256:" + hashlib.sha256(release.config).hexdigest()
    assert decode_manifest(release.config).counter == 5


def test_a_file_that_changes_while_it_is_stored_leaves_no_blob(tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    layout = ImageLayout(tmp_path / "layout")
    layout.create()
    source = tmp_path / "model"
    source.write_bytes(b"measured")
    digest = "sha256:" + hashlib.sha256(b"measured").hexdigest()
    source.write_bytes(b"altered")
    with pytest.raises(DigestMismatchError):
        layout.put_file(source, digest)
    assert list((tmp_path / "layout" / "blobs" / "sha256").iterdir()) == []


def test_a_rotten_blob_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    layout = ImageLayout(tmp_path / "layout")
    layout.create()
    digest = layout.put_bytes(b"sound")
    layout.blob_path(digest).write_bytes(b"rotten")
    assert layout.put_bytes(b"sound") == digest
    assert layout.blob_path(digest).read_bytes() == b"sound"


@pytest.mark.parametrize("digest", ["sha256:../../keys/root.pem", "../x", "", "sha256:" + "A" * 64])
def test_a_digest_is_never_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(MalformedMessageError):
        ImageLayout(tmp_path).blob_path(digest)
