"""Signing what one device should run (contract §8): the second half of trust, beside TUF."""

from __future__ import annotations

import msgspec
from securesystemslib.signer import Key, Signer

from device_agent.contract.desired import (
    MAX_DESIRED_BYTES,
    PAYLOAD_TYPE,
    Desired,
    Envelope,
    Signature,
    encode_envelope,
    pre_authentication_encoding,
)
from device_agent.contract.errors import MessageTooLargeError


def sign_desired(desired: Desired, signer: Signer) -> bytes:
    """Return the wire bytes of ``desired`` in a DSSE envelope signed by the director.

    Raises:
        MessageTooLargeError: It would be over what a device accepts.
    """
    payload = msgspec.json.encode(desired, order="sorted")
    signature = signer.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    envelope = Envelope(
        payload,
        PAYLOAD_TYPE,
        (Signature(signature.keyid, bytes.fromhex(signature.signature)),),
    )
    data = encode_envelope(envelope)
    if len(data) > MAX_DESIRED_BYTES:
        raise MessageTooLargeError("desired state", len(data), MAX_DESIRED_BYTES)
    return data


def public_key_document(key: Key) -> bytes:
    """Return ``trust/director.json`` of a bundle: the director's public key with its key id."""
    return msgspec.json.encode({"keyid": key.keyid, **key.to_dict()}, order="sorted")
