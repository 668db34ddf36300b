"""Tensor frames (contract §7)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract.errors import MalformedMessageError, MessageTooLargeError
from device_agent.contract.tensors import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    Tensor,
    decode_frame,
    encode_frame,
    size_bytes,
)
from tests.support.contract_examples import TENSORS

LIMIT = 1 << 20


def _frame(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!I", len(text)) + text + data


def _tensor(**change: object) -> dict[str, object]:
    return {"name": "x", "datatype": "UINT8", "shape": [2]} | change


def test_golden_bytes(check_golden: Callable[[str, bytes], None]) -> None:
    """M-3.1-1, M-7.1-1."""
    check_golden("tensors.bin", encode_frame(TENSORS, {"id": "7"}))


def test_layout() -> None:
    """M-7.1-1: length, header, and the data in the header's order."""
    frame = encode_frame(TENSORS, {"id": "7"})
    (length,) = struct.unpack_from("!I", frame)
    header = json.loads(frame[4 : 4 + length])
    assert [t["name"] for t in header["tensors"]] == [t.name for t in TENSORS]
    assert header["meta"] == {"id": "7"}
    assert frame[4 + length :] == b"".join(t.data for t in TENSORS)


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 4), max_size=4)),
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_tensors_pass_through_unchanged(kinds: list, random: object) -> None:
    """M-7.1-1."""
    tensors = [
        Tensor(f"t{i}", kind, tuple(shape), random.randbytes(size_bytes(kind, shape)))
        for i, (kind, shape) in enumerate(kinds)
    ]
    decoded, meta = decode_frame(encode_frame(tensors), max_bytes=LIMIT)
    assert decoded == tensors
    assert meta == {}


def test_tensors_are_views() -> None:
    """M-7.1-1: nothing is copied."""
    frame = encode_frame(TENSORS)
    decoded, _ = decode_frame(memoryview(frame), max_bytes=LIMIT)
    assert all(isinstance(t.data, memoryview) and t.data.obj is frame for t in decoded)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00\x00",
        struct.pack("!I", 2),
        struct.pack("!I", 10) + b"{}",
        _frame(b"["),
        _frame({"meta": {}}),
        _frame({"tensors": {}}),
        _frame({"tensors": [_tensor()]}),
        _frame({"tensors": [_tensor()]}, b"1"),
        _frame({"tensors": [_tensor()]}, b"123"),
        _frame({"tensors": [_tensor(), _tensor()]}, b"1234"),
        _frame({"tensors": [_tensor(datatype="BYTES")]}, b"12"),
        _frame({"tensors": [_tensor(datatype="FP8")]}, b"12"),
        _frame({"tensors": [_tensor(shape=[-1])]}, b"12"),
        _frame({"tensors": [_tensor(shape=[-1, -2])]}, b"12"),
        _frame({"tensors": [_tensor(shape=[1] * 9)]}, b"1"),
        _frame({"tensors": [_tensor(shape=[2**62, 2**62])]}, b"12"),
        _frame({"tensors": [_tensor(shape=["2"])]}, b"12"),
        _frame({"tensors": [_tensor(name=None)]}, b"12"),
        _frame(b'{"a":' * 5000),
    ],
)
def test_wrong_frame_is_refused(frame: bytes) -> None:
    """M-7.1-2."""
    with pytest.raises(MalformedMessageError):
        decode_frame(frame, max_bytes=LIMIT)


def test_bytes_behind_no_tensor_are_refused() -> None:
    """M-7.1-2."""
    with pytest.raises(MalformedMessageError, match="1 bytes too many"):
        decode_frame(_frame({"tensors": []}, b"!"), max_bytes=LIMIT)


def test_frame_over_its_bound_is_refused() -> None:
    """M-7.1-2."""
    frame = encode_frame(TENSORS)
    assert decode_frame(frame, max_bytes=len(frame))
    with pytest.raises(MessageTooLargeError):
        decode_frame(frame, max_bytes=len(frame) - 1)


def test_header_over_its_bound_is_refused() -> None:
    """M-7.1-2."""
    padding = b" " * MAX_HEADER_BYTES
    with pytest.raises(MessageTooLargeError, match="header"):
        decode_frame(_frame(b'{"tensors":[]}' + padding), max_bytes=LIMIT)


def test_scalars_and_empty_tensors_travel() -> None:
    """M-7.1-1."""
    tensors = [Tensor("s", "FP64", (), b"\x00" * 8), Tensor("e", "FP32", (0, 3), b"")]
    assert decode_frame(encode_frame(tensors), max_bytes=LIMIT)[0] == tensors
