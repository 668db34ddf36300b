"""One chunk of a blob as it travels on ``blob/chunk``: header and raw bytes (contract §4.7)."""

from __future__ import annotations

import struct

import msgspec

from device_agent.contract.errors import MalformedMessageError, UnsupportedVersionError
from device_agent.contract.manifest import CHUNK_BYTES

_VERSION = 1
_HEADER = struct.Struct("!B32sI")
HEADER_BYTES = _HEADER.size


class Chunk(msgspec.Struct, frozen=True):
    """Chunk ``index`` of the blob with this digest."""

    digest: str
    index: int
    data: bytes | memoryview


def encode_chunk(chunk: Chunk) -> bytes:
    """Return the wire bytes of ``chunk``: version, 32 digest bytes, index, data."""
    header = _HEADER.pack(
        _VERSION, bytes.fromhex(chunk.digest.removeprefix("sha256:")), chunk.index
    )
    return header + bytes(chunk.data)


def decode_chunk(payload: bytes) -> Chunk:
    """Return the chunk in ``payload``; its data is not verified here.

    Raises:
        MalformedMessageError: Shorter than a header, empty, or longer than a chunk may be.
        UnsupportedVersionError: Another header version.
    """
    if not HEADER_BYTES < len(payload) <= HEADER_BYTES + CHUNK_BYTES:
        raise MalformedMessageError(f"chunk message of {len(payload)} bytes")
    version, digest, index = _HEADER.unpack_from(payload)
    if version != _VERSION:
        raise UnsupportedVersionError("chunk", version, _VERSION)
    return Chunk(f"sha256:{digest.hex()}", index, memoryview(payload)[HEADER_BYTES:])
