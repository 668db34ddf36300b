"""The manifest of a release: all a device needs to decide, fetch, prove and serve (contract §5).

It is the OCI config blob of the release. The release itself is addressed by the digest of its OCI
image manifest, which is what TUF targets metadata signs.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from device_agent.contract.errors import (
    MalformedMessageError,
    MessageTooLargeError,
    UnsupportedVersionError,
)
from device_agent.contract.names import (
    DIGEST_PATTERN,
    IDENTIFIER_PATTERN,
    VERSION_PATTERN,
)
from device_agent.contract.tensors import TensorInfo

SCHEMA = 1
CHUNK_BYTES = 128 * 1024
"""Size of every chunk but the last; a chunk is what is hashed, asked for and sent."""

MAX_MANIFEST_BYTES = 1024 * 1024
MAX_IMAGE_MANIFEST_BYTES = 64 * 1024
MAX_BLOB_BYTES = 2 * 2**30

MEDIA_TYPE_CONFIG = "application/vnd.aid-edge.manifest.v1+json"
MEDIA_TYPE_IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.aid-edge.release.v1"
MEDIA_TYPES: dict[str, str] = {
    "model": "application/vnd.aid-edge.model",
    "labels": "text/plain",
    "golden": "application/vnd.aid-edge.tensors.v1",
    "report": "text/html",
    "report-data": "application/json",
    "provenance": "application/json",
}
"""Media type of the layer that holds each role's blob."""

Identifier = Annotated[str, msgspec.Meta(pattern=IDENTIFIER_PATTERN)]
Version = Annotated[str, msgspec.Meta(pattern=VERSION_PATTERN)]
Digest = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
MAX_WHOLE = 2**63 - 1
"""Largest whole number that travels: what every store can hold (contract §3.4)."""

MAX_REAL = 1e300
"""Largest other number; the bound refuses infinities and NaN too."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_WHOLE)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=MAX_WHOLE)]
Real = Annotated[float, msgspec.Meta(ge=-MAX_REAL, le=MAX_REAL)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=MAX_REAL)]
Role = Literal["model", "labels", "golden", "report", "report-data", "provenance"]

DEVICE_ROLES: frozenset[str] = frozenset({"model", "labels", "golden"})
"""What a device fetches; the rest stays in the catalogue."""


class Resize(msgspec.Struct, frozen=True, tag="resize", forbid_unknown_fields=True):
    """Scale an image so that its shorter side has ``size`` pixels."""

    size: Positive
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"


class CenterCrop(msgspec.Struct, frozen=True, tag="center-crop", forbid_unknown_fields=True):
    """Cut the middle ``height`` x ``width`` pixels."""

    height: Positive
    width: Positive


class Normalize(msgspec.Struct, frozen=True, tag="normalize", forbid_unknown_fields=True):
    """``(x - mean) / std`` per channel, on values 0..255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Rescale(msgspec.Struct, frozen=True, tag="rescale", forbid_unknown_fields=True):
    """``x * scale + offset`` on every value, such as 1/255 for values 0 to 1."""

    scale: Real
    offset: Real = 0.0


class Channels(msgspec.Struct, frozen=True, tag="channels", forbid_unknown_fields=True):
    """Order of the color channels; without this step it is RGB."""

    order: Literal["RGB", "BGR"]


class Layout(msgspec.Struct, frozen=True, tag="layout", forbid_unknown_fields=True):
    """Order of the axes in the tensor that the model takes; a batch axis of 1 is put in front."""

    order: Literal["NCHW", "NHWC"]


PreprocessStep = Resize | CenterCrop | Channels | Rescale | Normalize | Layout


class Softmax(msgspec.Struct, frozen=True, tag="softmax", forbid_unknown_fields=True):
    """Scores to probabilities over the last axis."""


class TopK(msgspec.Struct, frozen=True, tag="top-k", forbid_unknown_fields=True):
    """Keep the ``k`` best classes with their labels."""

    k: Positive


PostprocessStep = Softmax | TopK


class ProfileRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The hardware profile that a release was made for."""

    id: Identifier
    digest: Digest


class RuntimeRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The runtime that loads the model: entry-point name and PEP 440 version range."""

    name: str
    version: str
    providers: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the worker process that holds the model may use, and when an answer is due."""

    memory_bytes: Positive
    threads: Positive
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How golden vectors are judged on the device before a release serves.

    The golden blob is a tensor frame: for vector i, ``i/in/<input>`` and ``i/out/<output>``.

    Attributes:
        vectors: Number of vectors.
        min_cosine: Smallest cosine similarity of any output to its golden output.
        min_agreement: Smallest share of vectors whose arg-max is the golden one (classification).
    """

    vectors: Positive
    min_cosine: Annotated[float, msgspec.Meta(ge=-1, le=1)]
    min_agreement: Annotated[float, msgspec.Meta(ge=0, le=1)]


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure, never without where, how and on how many it was made."""

    what: str
    value: float
    unit: str
    where: Literal["host", "device", "estimate"]
    how: str
    n: Natural
    low: float | None = None
    high: float | None = None


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One blob of the release.

    Attributes:
        chunks: sha256, 64 hex digits, of each ``CHUNK_BYTES`` chunk in order.
    """

    role: Role
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOB_BYTES)]
    chunks: tuple[Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")], ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is signed about a release (contract §5.2). Unknown fields are refused.

    Attributes:
        counter: Grows with every release of this name and profile; a device never installs a
            release under a revision older than the one it has seen.
        task: What the outputs mean; ``classification`` makes the agent count classes.
        tools: Tool name to version that made the artifact.
    """

    schema: int = SCHEMA
    name: Identifier
    version: Version
    counter: Positive
    profile: ProfileRef
    runtime: RuntimeRef
    task: Literal["classification", "other"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocess: tuple[PreprocessStep, ...] = ()
    postprocess: tuple[PostprocessStep, ...] = ()
    limits: Limits
    golden: Golden
    blobs: tuple[Blob, ...]
    measurements: tuple[Measurement, ...] = ()
    recipe: str = ""
    licence: str = ""
    source_digest: Digest
    calibration_digest: Digest | None = None
    tools: dict[str, str] = {}

    def blob(self, role: Role) -> Blob | None:
        """Return the blob of ``role``, or None when the release has none."""
        return next((b for b in self.blobs if b.role == role), None)


class Descriptor(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    """An OCI content descriptor (OCI image specification 1.1, descriptor.md)."""

    media_type: str
    digest: Digest
    size: Natural
    annotations: dict[str, str] = {}


class ImageManifest(
    msgspec.Struct,
    frozen=True,
    rename={
        "schema_version": "schemaVersion",
        "media_type": "mediaType",
        "artifact_type": "artifactType",
    },
):
    """An OCI image manifest (OCI image specification 1.1, manifest.md)."""

    schema_version: Literal[2]
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}


class _Schema(msgspec.Struct):
    schema: object = None


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the one canonical JSON encoding of ``manifest`` (contract §5.1)."""
    return msgspec.json.encode(manifest, order="sorted")


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest in ``data``, which must already be verified.

    Raises:
        MessageTooLargeError: Over ``MAX_MANIFEST_BYTES``.
        UnsupportedVersionError: It has another schema number.
        MalformedMessageError: It is not JSON, a field is missing, unknown or wrong, or its blobs
            contradict themselves.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise MessageTooLargeError("release manifest", len(data), MAX_MANIFEST_BYTES)
    try:
        found = msgspec.json.decode(data, type=_Schema).schema
        if found != SCHEMA:
            raise UnsupportedVersionError("release manifest", found, SCHEMA)
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise MalformedMessageError(f"release manifest: {e}") from e
    _check_blobs(manifest)
    return manifest


def _check_blobs(manifest: Manifest) -> None:
    roles = [b.role for b in manifest.blobs]
    for role in ("model", "golden"):
        if role not in roles:
            raise MalformedMessageError(f"release manifest: has no {role} blob")
    for blob in manifest.blobs:
        if roles.count(blob.role) > 1:
            raise MalformedMessageError(f"release manifest: has two {blob.role} blobs")
        chunks = -(-blob.size // CHUNK_BYTES)
        if len(blob.chunks) != chunks:
            raise MalformedMessageError(
                f"release manifest: {blob.role} blob of {blob.size} bytes has {len(blob.chunks)} "
                f"chunk hashes, not {chunks}"
            )


def decode_image_manifest(data: bytes) -> ImageManifest:
    """Return the OCI image manifest in ``data``, which must already be verified.

    Raises:
        MessageTooLargeError: Over ``MAX_IMAGE_MANIFEST_BYTES``.
        MalformedMessageError: It is not one of a release.
    """
    if len(data) > MAX_IMAGE_MANIFEST_BYTES:
        raise MessageTooLargeError("OCI image manifest", len(data), MAX_IMAGE_MANIFEST_BYTES)
    try:
        image = msgspec.json.decode(data, type=ImageManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise MalformedMessageError(f"OCI image manifest: {e}") from e
    if image.config.media_type != MEDIA_TYPE_CONFIG or image.artifact_type != ARTIFACT_TYPE:
        raise MalformedMessageError("OCI image manifest is not one of a release")
    return image
