"""Brings a release's bytes onto this disk: manifests first, then blobs, all into ``incoming/``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from device_agent.contract.errors import DigestMismatchError, MessageTooLargeError
from device_agent.contract.manifest import (
    MAX_IMAGE_MANIFEST_BYTES,
    MAX_MANIFEST_BYTES,
    Manifest,
    decode_image_manifest,
    decode_manifest,
)
from device_agent.deployment.disk import write_whole
from device_agent.deployment.release import (
    IMAGE_FILE,
    MANIFEST_FILE,
    Device,
    Wanted,
    check_fits,
    check_image,
    check_wanted,
    device_blobs,
    read_small,
)
from device_agent.errors import StoreError
from device_agent.transfer.fetch import FetchLimits, Watch, fetch_into, fetch_small
from device_agent.transfer.link import TransferLink
from device_agent.transfer.store import BlobSpec, PartialBlob

_log = logging.getLogger(__name__)


class Delivery:
    """Fetches releases over the link.

    Args:
        link: Where bytes come from.
        device: What a release must fit; one that does not is refused before its blobs travel.
        limits: Bounds of a fetch.
    """

    def __init__(self, link: TransferLink, device: Device, limits: FetchLimits) -> None:
        self._link, self._device, self._limits = link, device, limits

    def fetch(
        self,
        wanted: Wanted,
        folder: Path,
        *,
        go_on: Callable[[], None],
        progress: Callable[[float], None],
    ) -> None:
        """Bring everything that this device keeps of a release into ``folder``.

        What is there already does not travel again.

        Args:
            wanted: The release.
            folder: Where its parts arrive.
            go_on: Called often; raises to stop.
            progress: Called with the share of the blobs' bytes that is there, 0 to 1.

        Raises:
            DownloadError: The hub refuses, or nothing came for too long.
            DigestMismatchError: What came is not what was signed.
            TrustError: The release is not what the desired state names it as, or is not for this
                device's profile.
            UnfitReleaseError: This device cannot run it.
            ContractError: What was signed is not a release.
            StoreError: There is not enough room, or the disk failed.
        """
        watch = Watch(go_on)
        manifest = self._manifest(wanted, folder, watch)
        wanted_blobs = device_blobs(manifest)
        total = sum(b.size for b in wanted_blobs)
        with ExitStack() as open_files:
            # Room for all before the first byte of any.
            parts = [
                open_files.enter_context(
                    PartialBlob(folder / b.role, BlobSpec(b.digest, b.size, b.chunks))
                )
                for b in wanted_blobs
            ]
            before = 0
            for blob, part in zip(wanted_blobs, parts, strict=True):

                def tell(here: int, before: int = before) -> None:
                    progress((before + here) / total)

                found = fetch_into(self._link, part, self._limits, replace(watch, progress=tell))
                before += blob.size
                _log.info(
                    "fetched %s: %d bytes in %.2f s, %d chunks came, %d were there, %d were bad",
                    blob.role, blob.size, found.seconds, found.chunks, found.resumed_chunks,
                    found.bad_chunks,
                )  # fmt: skip

    def _manifest(self, wanted: Wanted, folder: Path, watch: Watch) -> Manifest:
        if wanted.size > MAX_IMAGE_MANIFEST_BYTES:
            raise MessageTooLargeError("OCI image manifest", wanted.size, MAX_IMAGE_MANIFEST_BYTES)
        data = self._small(folder / IMAGE_FILE, wanted.release.digest, wanted.size, watch)
        image = decode_image_manifest(data)
        config = image.config
        if config.size > MAX_MANIFEST_BYTES:
            raise MessageTooLargeError("release manifest", config.size, MAX_MANIFEST_BYTES)
        manifest = decode_manifest(
            self._small(folder / MANIFEST_FILE, config.digest, config.size, watch)
        )
        check_image(image, manifest)
        check_wanted(manifest, wanted)
        check_fits(manifest, self._device)
        return manifest

    def _small(self, path: Path, digest: str, size: int, watch: Watch) -> bytes:
        with suppress(StoreError, DigestMismatchError):
            return read_small(path, digest, size)
        data = fetch_small(self._link, digest, size, self._limits, watch)
        write_whole(path, data)
        return data
