"""A verified desired state as far as it concerns this agent, and what it means. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.contract.messages import ReleaseRef
from device_agent.deployment.journal import Journal
from device_agent.deployment.release import Wanted
from device_agent.deployment.table import Event, State
from device_agent.deployment.trials import WantedTrial


@dataclass(frozen=True)
class Wish:
    """A verified desired state.

    Attributes:
        envelope: Digest of the signed bytes.
        target: The release for the active slot, if any.
        has_candidate: It names a candidate slot too.
        trials: Releases to be measured.
    """

    revision: int
    envelope: str
    not_after_unix_s: float
    target: Wanted | None
    has_candidate: bool = False
    trials: tuple[WantedTrial, ...] = ()


def meaning_of(wish: Wish, journal: Journal, serving: ReleaseRef | None) -> Event | None:
    """Return the event that a wish is, or None when nothing is to be done for it.

    Args:
        wish: Not older than what was accepted last.
        journal: Where the deployment stands.
        serving: The release that serves now.
    """
    if wish.target is None:
        return None if journal.state == State.IDLE else Event.UNWANTED
    if serving is not None and serving.digest == wish.target.release.digest:
        return None if journal.state == State.ACTIVE else Event.KEPT
    is_old = wish.revision == journal.revision
    if journal.state == State.FAILED and is_old and not journal.is_passing:
        # Rejected for good; only another desired state can change that.
        return None
    return Event.WANTED
