"""What must hold of a draft before its release is signed."""

from __future__ import annotations

from pathlib import Path

from aid_edge.catalogue.draft import ReleaseDraft, check_files
from aid_edge.errors import PublishError
from device_agent.contract.errors import ContractError
from device_agent.contract.manifest import MAX_BLOB_BYTES, Blob
from device_agent.contract.tensors import TensorInfo, decode_frame


def check_draft(folder: Path, draft: ReleaseDraft) -> tuple[Blob, ...]:
    """Return the blobs of ``draft`` after its files and golden vectors have been checked.

    Raises:
        PublishError: A file is missing, or the golden vectors do not fit the declared tensors.
        DigestMismatchError: A file is not the one that was measured.
    """
    blobs = check_files(folder, draft)
    golden = draft.file("golden")
    if golden is not None:
        _check_golden(folder / golden.name, draft)
    return blobs


def _check_golden(path: Path, draft: ReleaseDraft) -> None:
    try:
        tensors, _ = decode_frame(path.read_bytes(), max_bytes=MAX_BLOB_BYTES)
    except ContractError as e:
        raise PublishError(f"{path}: {e}", hint="Convert again.") from e
    found = {t.name: t for t in tensors}
    for i in range(draft.golden.vectors):
        for kind, infos in (("in", draft.inputs), ("out", draft.outputs)):
            for info in infos:
                name = f"{i}/{kind}/{info.name}"
                tensor = found.get(name)
                if tensor is None:
                    raise PublishError(f"{path}: there is no golden tensor {name!r}")
                if tensor.datatype != info.datatype or not _fits(tensor.shape, info):
                    raise PublishError(
                        f"{path}: golden tensor {name!r} is {tensor.datatype}{list(tensor.shape)}; "
                        f"the release declares {info.datatype}{list(info.shape)}"
                    )


def _fits(shape: tuple[int, ...], info: TensorInfo) -> bool:
    return len(shape) == len(info.shape) and all(
        declared in (-1, size) for size, declared in zip(shape, info.shape, strict=True)
    )
