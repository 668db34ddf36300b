from __future__ import annotations

import pytest

from aid_edge.hub.presence import (
    CONFLICT_MEMORY_S,
    Presence,
    after_birth,
    after_death,
    is_conflict_over,
)
from device_agent.contract.messages import Birth, Death

BOOT, OTHER_BOOT = "1" * 32, "2" * 32
MACHINE, TWIN = "a" * 32, "b" * 32


def _birth(boot: str = BOOT, connection: int = 1, machine: str = MACHINE) -> Birth:
    return Birth(
        boot_id=boot, connection=connection, machine_id=machine, agent_version="1", profile="p"
    )


def test_newest_death_is_believed() -> None:
    """M-4.1-4."""
    presence = after_birth(Presence(), _birth(connection=2), 0.0)
    assert presence.online
    assert not after_death(presence, Death(boot_id=BOOT, connection=2)).online


@pytest.mark.parametrize(
    "death",
    [
        Death(boot_id=BOOT, connection=1),
        Death(boot_id=BOOT, connection=3),
        Death(boot_id=OTHER_BOOT, connection=2),
    ],
)
def test_stale_death_is_ignored(death: Death) -> None:
    """M-4.1-4: the will of an older connection comes after the new birth."""
    presence = after_birth(Presence(), _birth(connection=2), 0.0)
    assert after_death(presence, death) == presence


def test_birth_of_an_older_connection_is_ignored() -> None:
    presence = after_birth(Presence(), _birth(connection=2), 0.0)
    assert after_birth(presence, _birth(connection=1), 1.0) == presence


def test_two_machines_with_one_identity_are_a_conflict() -> None:
    """M-4.1-5."""
    first = after_birth(Presence(), _birth(), 0.0)
    assert first.conflict == ""
    both = after_birth(first, _birth(OTHER_BOOT, machine=TWIN), 5.0)
    assert MACHINE[:8] in both.conflict
    assert TWIN[:8] in both.conflict
    back = after_birth(both, _birth(connection=2), 10.0)
    assert back.conflict
    assert not is_conflict_over(back, 10.0 + CONFLICT_MEMORY_S)
    assert is_conflict_over(back, 11.0 + CONFLICT_MEMORY_S)


def test_same_machine_again_is_no_conflict() -> None:
    first = after_birth(Presence(), _birth(), 0.0)
    assert after_birth(first, _birth(OTHER_BOOT), 5.0).conflict == ""
