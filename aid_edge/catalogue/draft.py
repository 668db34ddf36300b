"""A release before it is published: what ``aid-edge convert`` leaves in its ``release`` folder.

::

    <profile id>/release/
      release.json     a ReleaseDraft
      model.onnx       and the other files that it names, each under a plain file name
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from aid_edge.catalogue.files import hash_file, write_atomic
from aid_edge.errors import PublishError, UsageError
from device_agent.contract.errors import DigestMismatchError
from device_agent.contract.manifest import (
    CHUNK_BYTES,
    MAX_BLOB_BYTES,
    MAX_MANIFEST_BYTES,
    Blob,
    Digest,
    Golden,
    Identifier,
    Limits,
    Manifest,
    Measurement,
    PostprocessStep,
    PreprocessStep,
    ProfileRef,
    Role,
    RuntimeRef,
    Version,
)
from device_agent.contract.tensors import TensorInfo

SCHEMA = "aid-edge/release-draft/v1"
FILE_NAME = "release.json"
REQUIRED_ROLES: tuple[Role, ...] = ("model", "golden")


class DraftFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file beside ``release.json``.

    Attributes:
        name: Plain file name; never a path.
        digest: Of the bytes that were measured; other bytes are not published.
    """

    role: Role
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOB_BYTES)]


class ReleaseDraft(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A :class:`Manifest` less what only publishing knows: the counter and the chunk hashes."""

    schema: str = SCHEMA
    name: Identifier
    version: Version
    profile: ProfileRef
    runtime: RuntimeRef
    task: Literal["classification", "other"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocess: tuple[PreprocessStep, ...] = ()
    postprocess: tuple[PostprocessStep, ...] = ()
    limits: Limits
    golden: Golden
    files: tuple[DraftFile, ...]
    measurements: tuple[Measurement, ...] = ()
    recipe: str = ""
    licence: str = ""
    source_digest: Digest
    calibration_digest: Digest | None = None
    tools: dict[str, str] = {}

    def file(self, role: Role) -> DraftFile | None:
        """Return the file of ``role``, or None when the draft has none."""
        return next((f for f in self.files if f.role == role), None)


def draft_file(folder: Path, role: Role, name: str) -> DraftFile:
    """Return the entry for the file ``name`` in ``folder``, with its digest and size.

    Raises:
        OSError: It cannot be read.
    """
    digest, size, _ = hash_file(folder / name)
    return DraftFile(role, name, digest, size)


def write_draft(folder: Path, draft: ReleaseDraft) -> Path:
    """Write ``release.json`` into ``folder``, where the draft's files already lie; return its path.

    Raises:
        PublishError: A role is missing or there twice.
        OSError: It cannot be written.
    """
    _check_roles(draft, str(folder / FILE_NAME))
    path = folder / FILE_NAME
    data = msgspec.json.format(msgspec.json.encode(draft, order="sorted"), indent=2)
    write_atomic(path, data + b"\n")
    return path


def read_draft(folder: Path) -> ReleaseDraft:
    """Return the draft in ``folder``; the files that it names are not looked at.

    Raises:
        UsageError: ``folder`` holds no ``release.json``.
        PublishError: It is not a valid draft; names file and field.
    """
    path = folder / FILE_NAME
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(
            f"{folder} is not a release folder",
            cause=f"{path.name}: {e.strerror}",
            hint="Name a folder that `aid-edge convert --out` made.",
        ) from e
    if len(data) > MAX_MANIFEST_BYTES:
        raise PublishError(
            f"{path}: has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed"
        )
    try:
        draft = msgspec.json.decode(data, type=ReleaseDraft)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise PublishError(f"{path}: {e}", hint="Convert again; the file was altered.") from e
    if draft.schema != SCHEMA:
        raise PublishError(f"{path}: schema: is {draft.schema!r}; allowed: {SCHEMA}")
    _check_roles(draft, str(path))
    return draft


def check_files(folder: Path, draft: ReleaseDraft) -> tuple[Blob, ...]:
    """Return the blobs of the draft's files in ``folder``, each read and hashed as a whole.

    Raises:
        PublishError: A file is missing or cannot be read.
        DigestMismatchError: A file is not the one that was measured.
    """
    blobs = []
    for file in draft.files:
        path = folder / file.name
        try:
            digest, size, chunks = hash_file(path, CHUNK_BYTES)
        except OSError as e:
            raise PublishError(
                f"{path}: {e.strerror}", hint=f"The release needs its {file.role}; convert again."
            ) from e
        if digest != file.digest or size != file.size:
            mismatch = DigestMismatchError(str(path), file.digest, digest)
            mismatch.hint = "It is not the file that was measured; convert again."
            raise mismatch
        blobs.append(Blob(file.role, digest, size, chunks))
    return tuple(blobs)


def to_manifest(draft: ReleaseDraft, counter: int, blobs: tuple[Blob, ...]) -> Manifest:
    """Return the manifest that is published for ``draft`` as release number ``counter``."""
    fields = {f: getattr(draft, f) for f in draft.__struct_fields__ if f not in {"schema", "files"}}
    return Manifest(counter=counter, blobs=blobs, **fields)


def _check_roles(draft: ReleaseDraft, source: str) -> None:
    roles = [f.role for f in draft.files]
    for role in REQUIRED_ROLES:
        if role not in roles:
            raise PublishError(f"{source}: files: there is no {role}")
    for role in roles:
        if roles.count(role) > 1:
            raise PublishError(f"{source}: files: there is more than one {role}")
