"""The director's signature over a desired state (DSSE; contract §8). Runs in the trust step."""

from __future__ import annotations

import json

from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import Key, Signature

from device_agent.contract.desired import (
    Desired,
    decode_desired,
    decode_envelope,
    pre_authentication_encoding,
)
from device_agent.contract.errors import SignatureError, UnverifiableError


def open_envelope(data: bytes, key_document: bytes) -> Desired:
    """Return the desired state in an envelope, after its signature has been checked.

    Args:
        data: Bytes of the DSSE envelope.
        key_document: The director's public key, as the device was flashed with it.

    Raises:
        ContractError: It is not an envelope, or its signed payload is not a desired state.
        UnverifiableError: It bears no signature of the director that this device knows.
        SignatureError: The director's signature is wrong.
    """
    envelope = decode_envelope(data)
    key = _read_key(key_document)
    signature = next((s for s in envelope.signatures if s.keyid == key.keyid), None)
    if signature is None:
        raise UnverifiableError(
            "desired state is not signed by the director that this device knows",
            cause=f"known key {key.keyid[:16]}, signed with "
            f"{', '.join(s.keyid[:16] for s in envelope.signatures) or 'none'}",
            hint="The device was flashed for another home: flash it again.",
        )
    signed = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    try:
        key.verify_signature(Signature(key.keyid, signature.sig.hex()), signed)
    except SecureSystemsError as e:
        raise SignatureError("the director's signature of the desired state is wrong") from e
    return decode_desired(envelope.payload)


def _read_key(document: bytes) -> Key:
    try:
        fields = json.loads(document)
        return Key.from_dict(fields.pop("keyid"), fields)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UnverifiableError(
            f"the director's public key cannot be read: {e}", hint="Flash the device again."
        ) from e
