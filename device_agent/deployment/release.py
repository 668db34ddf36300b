"""A release on this disk: is every byte what was signed, and is it for this device."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from device_agent.contract.errors import (
    DigestMismatchError,
    MalformedMessageError,
    TrustError,
    WrongDeviceError,
)
from device_agent.contract.manifest import (
    DEVICE_ROLES,
    MAX_IMAGE_MANIFEST_BYTES,
    MAX_MANIFEST_BYTES,
    MEDIA_TYPES,
    Blob,
    ImageManifest,
    Manifest,
    decode_image_manifest,
    decode_manifest,
)
from device_agent.contract.messages import ReleaseRef
from device_agent.contract.profile import HardwareProfile
from device_agent.errors import AgentError, StoreError
from device_agent.transfer.store import file_digest

IMAGE_FILE = "image.json"
MANIFEST_FILE = "manifest.json"
_DISTRIBUTIONS = {
    "onnx_runtime": ("onnxruntime",),
    "litert": ("ai-edge-litert", "tflite-runtime"),
}
"""Runtime name, as manifests have it, to the packages that bring it."""


class UnfitReleaseError(AgentError):
    """The release is genuine, but this device cannot run it: runtime or memory."""

    code = "unfit-release"


@dataclass(frozen=True)
class Device:
    """What a release must fit.

    Attributes:
        runtimes: Runtime name to installed version.
    """

    profile: HardwareProfile
    runtimes: Mapping[str, str]


@dataclass(frozen=True)
class Wanted:
    """A release that the director wants, with what is signed about it.

    Attributes:
        size: Bytes of the OCI image manifest that ``release.digest`` is of.
        counter: Release counter; the manifest must have the same.
    """

    release: ReleaseRef
    size: int
    counter: int


def installed_runtimes() -> dict[str, str]:
    """Return the runtimes that are installed, by name, with their versions; imports none."""
    found = {}
    for name, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def device_blobs(manifest: Manifest) -> list[Blob]:
    """Return the blobs that a device keeps, smallest first so that a refusal comes early."""
    return sorted((b for b in manifest.blobs if b.role in DEVICE_ROLES), key=lambda b: b.size)


def check_image(image: ImageManifest, manifest: Manifest) -> None:
    """Refuse a manifest that names other blobs than the image manifest (contract §5.3).

    Raises:
        MalformedMessageError: A blob is in one of them only.
    """
    layers = {(layer.media_type, layer.digest, layer.size) for layer in image.layers}
    for blob in manifest.blobs:
        if (MEDIA_TYPES[blob.role], blob.digest, blob.size) not in layers:
            raise MalformedMessageError(
                f"release: its {blob.role} blob {blob.digest} is not a layer of its image manifest"
            )


def check_wanted(manifest: Manifest, wanted: Wanted) -> None:
    """Refuse a release that is not what the desired state names it as (M-5.2-4).

    Raises:
        TrustError: Its own name, version or counter is another.
    """
    for what, expected, found in (
        ("name", wanted.release.name, manifest.name),
        ("version", wanted.release.version, manifest.version),
        ("counter", wanted.counter, manifest.counter),
    ):
        if expected != found:
            raise TrustError(
                f"release {wanted.release.digest}: its {what} is {found!r}; {expected!r} is wanted"
            )


def check_fits(manifest: Manifest, device: Device) -> None:
    """Refuse a release that is not made for this device or cannot run on it.

    Raises:
        WrongDeviceError: It is for another hardware profile.
        UnfitReleaseError: The runtime is missing or of another version, or memory is short.
    """
    name = f"{manifest.name}@{manifest.version}"
    profile = device.profile
    if manifest.profile.id != profile.id:
        raise WrongDeviceError(
            f"release {name} is for {manifest.profile.id}; this device is a {profile.id}"
        )
    runtime = manifest.runtime
    installed = device.runtimes.get(runtime.name)
    if installed is None:
        raise UnfitReleaseError(
            f"release {name} needs the runtime {runtime.name}, which is not installed",
            hint=f"Installed: {', '.join(sorted(device.runtimes)) or 'none'}.",
        )
    try:
        is_in_range = SpecifierSet(runtime.version).contains(Version(installed), prereleases=True)
    except (InvalidSpecifier, InvalidVersion) as e:
        raise UnfitReleaseError(f"release {name}: runtime {runtime.name}: {e}") from e
    if not is_in_range:
        raise UnfitReleaseError(
            f"release {name} needs {runtime.name} {runtime.version}; installed is {installed}"
        )
    if manifest.limits.memory_bytes > profile.memory.models:
        raise UnfitReleaseError(
            f"release {name} may take {manifest.limits.memory_bytes} bytes of memory; "
            f"models have {profile.memory.models} on a {profile.id}"
        )


def read_small(path: Path, digest: str, max_bytes: int) -> bytes:
    """Return a small file, verified.

    Raises:
        StoreError: It cannot be read.
        DigestMismatchError: It is not what its digest says.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from e
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != digest:
        raise DigestMismatchError(str(path), digest, found)
    return data


def verify_release(
    folder: Path, digest: str, *, go_on: Callable[[], None] = lambda: None
) -> Manifest:
    """Return the manifest of the release in ``folder`` after verifying every byte of it.

    The chain begins with ``digest``: image manifest, manifest, blobs. Nothing is decoded before
    it is verified, and neither clock nor hub is asked (M-8.2-3).

    Args:
        folder: The release folder.
        digest: The release's digest, which was signed for.
        go_on: Called often; raises to stop.

    Raises:
        DigestMismatchError: Something was altered.
        StoreError: Something is missing or cannot be read.
        ContractError: What was signed is not a release.
    """
    data = read_small(folder / IMAGE_FILE, digest, MAX_IMAGE_MANIFEST_BYTES)
    image = decode_image_manifest(data)
    data = read_small(folder / MANIFEST_FILE, image.config.digest, MAX_MANIFEST_BYTES)
    manifest = decode_manifest(data)
    check_image(image, manifest)
    for blob in device_blobs(manifest):
        found = file_digest(folder / blob.role, go_on)
        if found != blob.digest:
            raise DigestMismatchError(str(folder / blob.role), blob.digest, found)
    return manifest


def reference_of(manifest: Manifest, digest: str) -> ReleaseRef:
    """Return how people and digests name the release."""
    return ReleaseRef(name=manifest.name, version=manifest.version, digest=digest)
