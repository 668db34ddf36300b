"""Named tensors as bytes: golden vectors and what supervisor and worker exchange (contract §7).

A frame is a 4-byte big-endian header length, a JSON header, and the tensors' raw bytes one after
another: little-endian, C order, in the order the header lists them. The same payload layout as
the binary tensor data extension of the Open Inference Protocol v2, so tensors pass through
unchanged.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Literal

import msgspec

from device_agent.contract.errors import MalformedMessageError, MessageTooLargeError

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64",
]  # fmt: skip
"""Element types of the Open Inference Protocol v2, less BYTES."""

ITEM_BYTES: dict[str, int] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2,
    "INT32": 4, "INT64": 8, "FP16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip

MAX_HEADER_BYTES = 64 * 1024
MAX_RANK = 8
_LENGTH = struct.Struct("!I")


class TensorInfo(msgspec.Struct, frozen=True):
    """Name, element type and shape; -1 is a dimension that may vary."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class Tensor(msgspec.Struct, frozen=True):
    """A tensor with its raw bytes: little-endian, C order."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes | memoryview


class _Header(msgspec.Struct, frozen=True):
    tensors: list[TensorInfo]
    meta: dict[str, msgspec.Raw] = {}


_header_decoder = msgspec.json.Decoder(_Header)


def size_bytes(datatype: str, shape: Sequence[int]) -> int:
    """Return how many bytes a tensor of ``datatype`` and concrete ``shape`` takes."""
    return ITEM_BYTES[datatype] * math.prod(shape)


def encode_frame(tensors: Sequence[Tensor], meta: dict[str, object] | None = None) -> bytes:
    """Return ``tensors`` and a small JSON ``meta`` as one frame (contract §7.1)."""
    infos = [TensorInfo(t.name, t.datatype, t.shape) for t in tensors]
    header = msgspec.json.encode({"tensors": infos, "meta": meta or {}})
    return b"".join([_LENGTH.pack(len(header)), header, *(t.data for t in tensors)])


def decode_frame(
    frame: bytes | memoryview, *, max_bytes: int
) -> tuple[list[Tensor], dict[str, msgspec.Raw]]:
    """Return the tensors and the undecoded ``meta`` values of a frame (contract §7.1).

    The tensors are views into ``frame``.

    Raises:
        MessageTooLargeError: The frame or its header is over its bound.
        MalformedMessageError: The header is not valid, or lengths do not add up.
    """
    if len(frame) > max_bytes:
        raise MessageTooLargeError("tensor frame", len(frame), max_bytes)
    view = memoryview(frame)
    if len(view) < _LENGTH.size:
        raise MalformedMessageError("tensor frame is shorter than its length prefix")
    (header_bytes,) = _LENGTH.unpack_from(view)
    if header_bytes > MAX_HEADER_BYTES:
        raise MessageTooLargeError("tensor frame header", header_bytes, MAX_HEADER_BYTES)
    offset = _LENGTH.size + header_bytes
    try:
        header = _header_decoder.decode(view[_LENGTH.size : offset])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise MalformedMessageError(f"tensor frame header: {e}") from e
    if len({info.name for info in header.tensors}) != len(header.tensors):
        raise MalformedMessageError("tensor frame has two tensors of one name")
    tensors = []
    for info in header.tensors:
        if len(info.shape) > MAX_RANK or any(d < 0 for d in info.shape):
            raise MalformedMessageError(f"tensor {info.name!r} has no concrete shape: {info.shape}")
        end = offset + size_bytes(info.datatype, info.shape)
        if end > len(view):
            raise MalformedMessageError(f"tensor {info.name!r} is cut short")
        tensors.append(Tensor(info.name, info.datatype, info.shape, view[offset:end]))
        offset = end
    if offset != len(view):
        raise MalformedMessageError(f"tensor frame has {len(view) - offset} bytes too many")
    return tensors, header.meta
