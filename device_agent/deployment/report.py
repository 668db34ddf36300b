"""What a device says it runs, out of its journal. Pure (contract §4.3)."""

from __future__ import annotations

from device_agent.contract.messages import (
    MAX_TEXT_CHARACTERS,
    ReleaseRef,
    Reported,
    SlotReport,
)
from device_agent.deployment.journal import Journal
from device_agent.deployment.table import State


def report_of(
    journal: Journal, serving: ReleaseRef | None, progress: float | None, boot_id: str
) -> Reported:
    """Return the whole document.

    Args:
        journal: Where the deployment stands.
        serving: The release that serves, whatever is wanted.
        progress: How far the work of this state is, 0 to 1, where that is known.
        boot_id: Of this start of the agent.
    """
    slots = [
        SlotReport(
            slot="active",
            state=journal.state.value,
            release=serving,
            reason=journal.reason[:MAX_TEXT_CHARACTERS],
            progress=progress,
            # contract M-4.3-3
            retrying=journal.state == State.FAILED and journal.is_passing and bool(journal.target),
        )
    ]
    if journal.has_candidate:
        reason = "this agent has no candidate slot"
        slots.append(SlotReport(slot="candidate", state="failed", reason=reason))
    return Reported(
        boot_id=boot_id,
        revision=max(journal.revision, journal.refused_revision),
        accepted=not journal.refusal,
        reason=journal.refusal[:MAX_TEXT_CHARACTERS],
        slots=tuple(slots),
    )
