"""Who is there under a device's name: births, deaths, and two machines with one identity."""

from __future__ import annotations

import msgspec

from device_agent.contract.messages import Birth, Death

CONFLICT_MEMORY_S = 3600.0
"""A conflict is shown this long after the last change of machine."""


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """What births and deaths said of one device.

    Attributes:
        machine_changed_unix_s: When another machine last showed up; None if that never happened.
        conflict: In words, while two machines show up under this identity; else empty.
    """

    online: bool = False
    boot_id: str = ""
    connection: int = 0
    machine_id: str = ""
    previous_machine_id: str = ""
    machine_changed_unix_s: float | None = None
    conflict: str = ""


def after_birth(before: Presence, birth: Birth, now_unix_s: float) -> Presence:
    """Return the presence after ``birth`` (contract §4.1); an older connection's is ignored."""
    if birth.boot_id == before.boot_id and birth.connection < before.connection:
        return before
    presence = msgspec.structs.replace(
        before, online=True, boot_id=birth.boot_id, connection=birth.connection
    )
    if birth.machine_id == before.machine_id:
        return presence
    if not before.machine_id:
        return msgspec.structs.replace(presence, machine_id=birth.machine_id)
    conflict = f"two machines use this identity: {before.machine_id[:8]} and {birth.machine_id[:8]}"
    return msgspec.structs.replace(
        presence,
        machine_id=birth.machine_id,
        previous_machine_id=before.machine_id,
        machine_changed_unix_s=now_unix_s,
        conflict=conflict,
    )


def after_death(before: Presence, death: Death) -> Presence:
    """Return the presence after ``death``; any but the newest connection's is stale (M-4.1-4)."""
    if (death.boot_id, death.connection) != (before.boot_id, before.connection):
        return before
    return msgspec.structs.replace(before, online=False)


def is_conflict_over(presence: Presence, now_unix_s: float) -> bool:
    """Return whether a conflict lies so far back that it need not be shown any more."""
    changed = presence.machine_changed_unix_s
    return changed is not None and now_unix_s - changed > CONFLICT_MEMORY_S
