"""Any bytes give a value or a ContractError; what was decoded encodes again (contract §3.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from device_agent.contract import topics
from device_agent.contract.chunk import decode_chunk, encode_chunk
from device_agent.contract.desired import (
    decode_desired,
    decode_envelope,
    encode_envelope,
)
from device_agent.contract.errors import ContractError, ProfileError
from device_agent.contract.manifest import (
    decode_image_manifest,
    decode_manifest,
    encode_manifest,
)
from device_agent.contract.messages import decode, encode
from device_agent.contract.profile import decode_profile
from device_agent.contract.tensors import decode_frame, encode_frame
from tests.support.contract_examples import (
    CHUNK,
    DESIRED,
    ENVELOPE,
    IMAGE_MANIFEST,
    MANIFEST,
    MESSAGES,
    TENSORS,
)

_bounded = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

PROFILE = Path(__file__).parents[2] / "hardware-profiles" / "raspberry-pi-4.toml"
SEEDS = [encode(m) for m in MESSAGES.values()]
DECODERS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "message": (decode, SEEDS),
    "chunk": (decode_chunk, [encode_chunk(CHUNK)]),
    "envelope": (decode_envelope, [encode_envelope(ENVELOPE)]),
    "desired": (decode_desired, [msgspec.json.encode(DESIRED)]),
    "manifest": (decode_manifest, [encode_manifest(MANIFEST)]),
    "image": (decode_image_manifest, [msgspec.json.encode(IMAGE_MANIFEST)]),
    "frame": (lambda b: decode_frame(b, max_bytes=1 << 20), [encode_frame(TENSORS, {"a": 1})]),
    "topic": (lambda b: topics.parse(b.decode("utf-8", "replace")), [b"aid/v1/lab/pi-1/conn"]),
    "profile": (lambda b: decode_profile(b, "fuzz.toml"), [PROFILE.read_bytes()]),
}


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Valid bytes with a few cuts, changed bytes and insertions."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=12))
            case _:
                data[at:at] = data[at : at + draw(st.integers(1, 60))]
    return bytes(data)


@pytest.mark.parametrize("name", list(DECODERS))
def test_mutated_bytes_give_a_value_or_a_contract_error(name: str) -> None:
    """M-3.3-3."""
    decoder, seeds = DECODERS[name]

    @_bounded
    @given(mutated(seeds))
    def check(data: bytes) -> None:
        with contextlib.suppress(ContractError, ProfileError):
            decoder(data)

    check()


@pytest.mark.parametrize("name", list(DECODERS))
def test_any_bytes_give_a_value_or_a_contract_error(name: str) -> None:
    """M-3.3-3."""
    decoder, _ = DECODERS[name]

    @_bounded
    @given(st.binary(max_size=300))
    @example(b"")
    @example(b"{" * 2000)
    @example(b'{"type":"\\ud800","v":1}')
    @example(b"\xdf\xff\xff\xff\xff")
    def check(data: bytes) -> None:
        with contextlib.suppress(ContractError, ProfileError):
            decoder(data)

    check()


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", list(MESSAGES))
def test_fields_of_any_type_give_a_value_or_a_contract_error(name: str) -> None:
    """M-3.3-3: structurally valid messages with any value in any field; and back again."""
    binary = encode(MESSAGES[name])[:1] != b"{"
    codec = msgspec.msgpack if binary else msgspec.json
    table = codec.decode(encode(MESSAGES[name]))

    @_bounded
    @given(st.sampled_from(sorted(table)), _plain)
    def check(field: str, value: object) -> None:
        try:
            message = decode(codec.encode(table | {field: value}))
        except ContractError:
            return
        assert decode(encode(message)) == message

    check()


@_bounded
@given(mutated(SEEDS))
def test_what_was_decoded_encodes_to_the_same_value(data: bytes) -> None:
    """M-3.1-4, for what came from outside too."""
    try:
        message = decode(data)
    except ContractError:
        return
    assert decode(encode(message)) == message
