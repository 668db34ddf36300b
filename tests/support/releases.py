"""Small but real homes and release drafts, for tests of catalogue, trust and hub."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Sequence
from pathlib import Path

from aid_edge.catalogue.create import create_home
from aid_edge.catalogue.draft import ReleaseDraft, draft_file, write_draft
from aid_edge.catalogue.files import Disk
from aid_edge.catalogue.repository import Published, Repository, load_signers
from aid_edge.home import Home
from device_agent.contract.manifest import (
    CHUNK_BYTES,
    Golden,
    Limits,
    ProfileRef,
    RuntimeRef,
)
from device_agent.contract.tensors import Tensor, TensorInfo, encode_frame

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
PROFILE = "generic-x86_64"
OTHER_PROFILE = "raspberry-pi-4"
ZERO = "sha256:" + "0" * 64


def make_home(path: Path, fleet: str = "fleet-a", passphrase: bytes | None = None) -> Home:
    """Return a new home whose metadata was signed at ``NOW``."""
    return create_home(path, fleet, passphrase=passphrase, now=NOW)


def make_draft(
    out: Path,
    *,
    name: str = "digits",
    version: str = "1.0.0",
    profile: str = PROFILE,
    seed: int = 0,
) -> Path:
    """Write a draft as ``convert --out OUT`` does and return its release folder."""
    folder = out / profile / "release"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes([seed % 256]) * (2 * CHUNK_BYTES + 5))
    (folder / "labels.txt").write_text("zero\none\n")
    golden = [
        Tensor("0/in/x", "FP32", (1, 4), struct.pack("<4f", 1, 2, 3, 4)),
        Tensor("0/out/y", "FP32", (1, 2), struct.pack("<2f", 0.25, 0.75)),
    ]
    (folder / "golden.bin").write_bytes(encode_frame(golden))
    write_draft(
        folder,
        ReleaseDraft(
            name=name,
            version=version,
            profile=ProfileRef(profile, ZERO),
            runtime=RuntimeRef("onnx_runtime", ">=1.20"),
            task="classification",
            inputs=(TensorInfo("x", "FP32", (1, 4)),),
            outputs=(TensorInfo("y", "FP32", (1, 2)),),
            limits=Limits(2**28, 1, 1.0),
            golden=Golden(1, 0.99, 1.0),
            files=(
                draft_file(folder, "model", "model.onnx"),
                draft_file(folder, "labels", "labels.txt"),
                draft_file(folder, "golden", "golden.bin"),
            ),
            source_digest=ZERO,
        ),
    )
    return folder


def publish(
    home: Home, folders: Sequence[Path], *, now: dt.datetime = NOW, disk: Disk | None = None
) -> list[Published]:
    """Publish drafts into ``home`` with its own keys."""
    return Repository(home, disk).publish(folders, load_signers(home.keys, None), now=now)
