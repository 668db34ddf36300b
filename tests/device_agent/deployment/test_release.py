from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from device_agent.contract.errors import (
    DigestMismatchError,
    MalformedMessageError,
    TrustError,
    WrongDeviceError,
)
from device_agent.contract.manifest import Limits, RuntimeRef, decode_image_manifest
from device_agent.contract.messages import ReleaseRef
from device_agent.deployment.proving import judge
from device_agent.deployment.release import (
    Device,
    UnfitReleaseError,
    Wanted,
    check_fits,
    check_image,
    check_wanted,
    verify_release,
)
from device_agent.deployment.slots import Slots
from device_agent.errors import ProvingError, StoreError
from tests.support.agent_doubles import GOOD_PROOF, MadeRelease, device, make_release, profile


def put(release: MadeRelease, folder: Path) -> Path:
    """Write a release as the agent keeps it."""
    folder.mkdir(parents=True)
    image = release.blobs[release.digest]
    (folder / "image.json").write_bytes(image)
    config = decode_image_manifest(image).config.digest
    (folder / "manifest.json").write_bytes(release.blobs[config])
    for blob in release.manifest.blobs:
        (folder / blob.role).write_bytes(release.blobs[blob.digest])
    return folder


def test_intact_release_is_verified_without_clock_or_hub(tmp_path: Path) -> None:
    """M-8.2-3."""
    release = make_release()
    found = verify_release(put(release, tmp_path / "r"), release.digest)
    assert found == release.manifest


@pytest.mark.parametrize("name", ["image.json", "manifest.json", "model", "labels", "golden"])
def test_one_altered_bit_anywhere_is_found(tmp_path: Path, name: str) -> None:
    release = make_release()
    path = put(release, tmp_path / "r") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError):
        verify_release(tmp_path / "r", release.digest)


@pytest.mark.parametrize("name", ["image.json", "manifest.json", "model"])
def test_missing_part_is_a_clear_error(tmp_path: Path, name: str) -> None:
    release = make_release()
    (put(release, tmp_path / "r") / name).unlink()
    with pytest.raises(StoreError, match=name):
        verify_release(tmp_path / "r", release.digest)


def test_blob_that_is_no_layer_is_refused() -> None:
    release = make_release()
    image = decode_image_manifest(release.blobs[release.digest])
    fewer = msgspec.structs.replace(image, layers=image.layers[1:])
    with pytest.raises(MalformedMessageError, match="not a layer"):
        check_image(fewer, release.manifest)


def test_release_for_another_profile_is_refused() -> None:
    """M-5.2-4."""
    other = make_release(profile_id="raspberry-pi-4")
    with pytest.raises(WrongDeviceError, match="raspberry-pi-4"):
        check_fits(other.manifest, device())


@pytest.mark.parametrize(
    "changed",
    [
        Wanted(ReleaseRef("other", "1.0.0", "sha256:" + "0" * 64), 1, 1),
        Wanted(ReleaseRef("digits", "2.0.0", "sha256:" + "0" * 64), 1, 1),
        Wanted(ReleaseRef("digits", "1.0.0", "sha256:" + "0" * 64), 1, 2),
    ],
    ids=["name", "version", "counter"],
)
def test_release_that_is_not_what_is_wanted_is_refused(changed: Wanted) -> None:
    """M-5.2-4."""
    with pytest.raises(TrustError, match="is wanted"):
        check_wanted(make_release().manifest, changed)


@pytest.mark.parametrize(
    ("runtime", "installed", "says"),
    [
        (RuntimeRef("openvino", ">=1"), "1.32.0", "not installed"),
        (RuntimeRef("onnx_runtime", ">=2"), "1.32.0", "installed is 1.32.0"),
        (RuntimeRef("onnx_runtime", "~=1.20.0"), "1.21.0", "installed is 1.21.0"),
        (RuntimeRef("onnx_runtime", "about 1"), "1.32.0", "about 1"),
    ],
)
def test_runtime_that_does_not_fit_is_refused(
    runtime: RuntimeRef, installed: str, says: str
) -> None:
    with pytest.raises(UnfitReleaseError, match=says):
        check_fits(
            make_release(runtime=runtime).manifest,
            Device(profile(), {"onnx_runtime": installed}),
        )


def test_more_memory_than_models_have_is_refused() -> None:
    greedy = make_release(limits=Limits(2**40, 1, 1.0))
    with pytest.raises(UnfitReleaseError, match="memory"):
        check_fits(greedy.manifest, device())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"min_cosine": 0.98}, "cosine 0.98"),
        ({"min_cosine": float("nan")}, "cosine nan"),
        ({"agreement": 0.5}, "agreement 0.500"),
        ({"p95_s": 1.5}, "p95 latency 1500.0 ms > 1000.0 ms"),
        ({"peak_rss_bytes": 2**29}, "memory"),
        ({"vectors": 0}, "0 golden vectors ran, of 1"),
    ],
)
def test_release_out_of_tolerance_is_rejected_with_the_numbers(
    changes: dict[str, float], says: str
) -> None:
    """M-5.4-1."""
    proof = msgspec.structs.replace(GOOD_PROOF, **changes)
    with pytest.raises(ProvingError, match=says):
        judge(proof, make_release().manifest)


def test_good_proof_is_said_with_its_figures() -> None:
    assert "cosine 1.000000" in judge(GOOD_PROOF, make_release().manifest)


def test_slots_flip_and_remember_the_one_before(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    old, new = make_release("1.0.0"), make_release("1.1.0")
    for release in (old, new):
        put(release, slots.incoming(release.digest))
        slots.install(release.digest)
    slots.activate(old.digest)
    assert (slots.active, slots.previous) == (old.digest, None)
    slots.activate(new.digest)
    assert (slots.active, slots.previous) == (new.digest, old.digest)
    assert (tmp_path / "slots/active/model").read_bytes().startswith(b"model 1.1.0")
    slots.restore(old.digest)
    assert (slots.active, slots.previous) == (old.digest, None)
    slots.activate(None)
    assert slots.active is None


def test_what_is_not_installed_cannot_be_active(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not installed"):
        Slots(tmp_path).activate(make_release().digest)


def test_tidying_keeps_slots_and_the_newest(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    releases = [make_release(f"1.{i}.0") for i in range(5)]
    for release in releases:
        put(release, slots.incoming(release.digest))
        slots.install(release.digest)
    put(make_release("9.9.9"), slots.incoming(make_release("9.9.9").digest))
    slots.activate(releases[0].digest)
    slots.activate(releases[1].digest)
    slots.tidy(3, [])
    assert set(slots.installed()) == {releases[i].digest for i in (0, 1, 4)}
    assert not slots.incoming(make_release("9.9.9").digest).exists()


def test_discarded_release_is_in_no_slot(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    release = make_release()
    put(release, slots.incoming(release.digest))
    slots.install(release.digest)
    slots.activate(release.digest)
    slots.discard(release.digest)
    assert slots.active is None
    assert not slots.has(release.digest)
