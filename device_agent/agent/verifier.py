"""Verifies desired states as they come, one at a time, newest only, on a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from device_agent.contract.desired import decode_desired, decode_envelope
from device_agent.contract.errors import (
    AidError,
    ContractError,
    SignatureError,
    TrustError,
    UnverifiableError,
)
from device_agent.contract.names import digest_of
from device_agent.deployment.controller import Controller
from device_agent.deployment.release import Wanted
from device_agent.deployment.trials import WantedTrial
from device_agent.deployment.wish import Wish
from device_agent.errors import DownloadError, StoreError, TransportError
from device_agent.transport import Backoff
from device_agent.trust.frames import VerifiedDesired

RETRY_BASE_S = 2.0
RETRY_MAX_S = 300.0
PATIENT_ATTEMPTS = 3
"""So often in a row a desired state may be unverifiable before that is reported as a refusal."""

_PASSING = (UnverifiableError, DownloadError, StoreError, TransportError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Office:
    """What the verifier works with.

    Attributes:
        addressee: Fleet and device that desired states are to be for.
        verify: Verifies an envelope, given the highest accepted revision.
        keep: Keeps the bytes of an accepted envelope.
        event: Told of refusals, for the audit trail.
    """

    controller: Controller
    addressee: tuple[str, str]
    verify: Callable[[bytes, int], VerifiedDesired]
    keep: Callable[[bytes], None]
    event: Callable[[str, str], None]


class Verifier:
    """Takes envelopes from the transport's thread, and gives wishes to the controller."""

    def __init__(self, office: Office) -> None:
        self._has = office
        self._news = threading.Condition()
        self._envelope: bytes | None = None
        self._stopped = False
        rng = random.Random()  # noqa: S311 - jitter
        self._backoff = Backoff(cap_s=RETRY_MAX_S, base_s=RETRY_BASE_S, floor=0.5, rng=rng)

    def offer(self, envelope: bytes) -> None:
        """Verify these bytes next; they take the place of any that wait."""
        with self._news:
            self._envelope = envelope
            self._news.notify_all()

    def stop(self) -> None:
        """Let :meth:`run` return soon."""
        with self._news:
            self._stopped = True
            self._news.notify_all()

    def run(self) -> None:
        """Work until :meth:`stop`."""
        while True:
            with self._news:
                while self._envelope is None and not self._stopped:
                    self._news.wait()
                envelope, self._envelope = self._envelope, None
                if self._stopped or envelope is None:
                    return
            self._settle(envelope)

    def _settle(self, envelope: bytes) -> None:
        """Verify until it is clear, or something newer came."""
        self._backoff.reset()
        attempts = 0
        while not self._try(envelope, is_patient=attempts < PATIENT_ATTEMPTS):
            attempts += 1
            with self._news:
                self._news.wait_for(
                    lambda: self._stopped or self._envelope is not None, self._backoff.next_s()
                )
                if self._stopped or self._envelope is not None:
                    return

    def _try(self, envelope: bytes, *, is_patient: bool) -> bool:
        """Verify once; whether it is clear what to do with it."""
        digest = digest_of(envelope)
        controller = self._has.controller
        if controller.is_in_force(digest):
            return True
        try:
            verified = self._has.verify(envelope, controller.revision)
            self._has.keep(envelope)
        except _PASSING as e:
            _log.warning("the desired state could not be verified yet: %s", _said(e))
            if not is_patient:
                self._refuse(e, 0)
            return False
        except (TrustError, ContractError) as e:
            self._refuse(e, _revision_of(envelope, e, self._has.addressee))
            return True
        controller.want(wish_of(verified, digest))
        return True

    def _refuse(self, error: AidError, revision: int) -> None:
        said = _said(error)
        _log.error("the desired state is refused: %s", said)
        self._has.event(error.code, said)
        self._has.controller.refuse(f"{error.code}: {said}", revision)


def wish_of(verified: VerifiedDesired, digest: str) -> Wish:
    """Return what a verified desired state is to this agent.

    Args:
        verified: The desired state with its releases.
        digest: Of the signed bytes.
    """
    by_slot = {r.slot: r for r in verified.releases}
    active = by_slot.get("active")
    return Wish(
        revision=verified.desired.revision,
        envelope=digest,
        not_after_unix_s=verified.desired.not_after_unix_s,
        target=Wanted(active.release, active.size, active.counter) if active else None,
        has_candidate="candidate" in by_slot,
        trials=tuple(
            WantedTrial(trial=t.trial, size=t.size, refusal=t.refusal) for t in verified.trials
        ),
    )


def _revision_of(envelope: bytes, error: AidError, addressee: tuple[str, str]) -> int:
    """Return the revision of a refused desired state; 0 where the director's word is not certain.

    The trust step checks the director's signature first. Only what it refuses later is decoded
    here, and only to say which revision was refused (M-4.2-1).
    """
    if isinstance(error, (SignatureError, UnverifiableError, ContractError)):
        return 0
    try:
        desired = decode_desired(decode_envelope(envelope).payload)
    except ContractError:
        return 0
    return desired.revision if (desired.fleet, desired.device) == addressee else 0


def _said(error: AidError) -> str:
    return f"{error} ({error.cause})" if error.cause else str(error)
