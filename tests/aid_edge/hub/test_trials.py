"""Trials at the hub: asked in signed desired state until the result is stored or withdrawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aid_edge.catalogue.keys import KeyRole, load_signer
from aid_edge.catalogue.store import Catalogue
from aid_edge.home import Home
from aid_edge.hub import trials
from aid_edge.hub.director import Director
from aid_edge.hub.errors import NotFoundError, RefusedError
from aid_edge.hub.queries import Queries
from aid_edge.hub.store import Store
from device_agent.contract.desired import MAX_TRIALS, Desired, decode_desired, decode_envelope
from device_agent.contract.messages import ReleaseRef, TrialResult
from device_agent.contract.topics import Channel
from tests.aid_edge.hub.conftest import FLEET, Clock, ListOutbox

Make = Callable[..., str]
BOOT = "0" * 32


@pytest.fixture
def director(store: Store, home: Home, outbox: ListOutbox) -> Director:
    signer = load_signer(home.keys, KeyRole.DIRECTOR)
    return Director(store, Catalogue(home), FLEET, signer, outbox)


def _told(director: Director, outbox: ListOutbox) -> Desired:
    director.publish_pending()
    return decode_desired(decode_envelope(outbox.on(Channel.DESIRED)[-1]).payload)


def _ask(director: Director, *versions: str) -> list[trials.TrialRow]:
    releases = [("digits", v) for v in versions]
    return director.try_out("cam-1", releases, runs=20, warmup=2, actor="me")


def _result(row: trials.TrialRow, digest: str | None = None) -> TrialResult:
    return TrialResult(
        boot_id=BOOT, seq=1, at_unix_s=1.0, trial=row.id, outcome="ok", latencies_s=(0.01, 0.02),
        release=ReleaseRef(row.release.name, row.release.version, digest or row.release.digest),
    )  # fmt: skip


def test_trials_stand_beside_what_the_device_runs(
    director: Director, outbox: ListOutbox, release: Make, registered: Make
) -> None:
    release()
    tried = release("1.1.0")
    registered("cam-1")
    director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    (row,) = _ask(director, "1.1.0")
    desired = _told(director, outbox)
    assert [(s.release.version, s.slot) for s in desired.slots] == [("1.0.0", "active")]
    assert [(t.id, t.release.digest, t.runs, t.warmup) for t in desired.trials] == [
        (row.id, tried, 20, 2)
    ]


def test_a_trial_stays_until_its_result_is_stored(  # noqa: PLR0917
    director: Director, outbox: ListOutbox, store: Store, queries: Queries, release: Make,
    registered: Make,
) -> None:  # fmt: skip
    """M-4.10-5: a new wish for the slot keeps it."""
    release()
    release("1.1.0")
    registered("cam-1")
    first, second = _ask(director, "1.0.0", "1.1.0")
    director.deploy(["cam-1"], "digits", "1.1.0", actor="me")
    assert [t.id for t in _told(director, outbox).trials] == sorted([first.id, second.id])
    with store.transaction() as transaction:
        transaction.trial_result("cam-1", _result(first))
    director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    assert [t.id for t in _told(director, outbox).trials] == [second.id]
    found = {row.id: row.result for row in queries.trials("cam-1")}
    assert found[second.id] is None
    assert found[first.id] == _result(first)


def test_a_device_that_runs_nothing_can_be_asked(
    director: Director, outbox: ListOutbox, release: Make, registered: Make
) -> None:
    release()
    registered("cam-1")
    _ask(director, "1.0.0")
    desired = _told(director, outbox)
    assert (desired.slots, len(desired.trials)) == ((), 1)
    with pytest.raises(RefusedError, match="no release to go back to"):
        director.rollback(["cam-1"], actor="me")


def test_rolling_back_leaves_trials_out_of_the_history(
    director: Director, outbox: ListOutbox, release: Make, registered: Make
) -> None:
    release()
    release("1.1.0")
    registered("cam-1")
    director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    director.deploy(["cam-1"], "digits", "1.1.0", actor="me")
    _ask(director, "1.0.0")
    director.rollback(["cam-1"], actor="me")
    assert _told(director, outbox).slots[0].release.version == "1.0.0"


def test_what_is_withdrawn_is_asked_no_more(
    director: Director, outbox: ListOutbox, release: Make, registered: Make
) -> None:
    release()
    registered("cam-1")
    (row,) = _ask(director, "1.0.0")
    director.withdraw("cam-1", [row.id], actor="me")
    assert _told(director, outbox).trials == ()


def test_old_trials_are_asked_no_more(
    director: Director, outbox: ListOutbox, clock: Clock, release: Make, registered: Make
) -> None:
    release()
    registered("cam-1")
    _ask(director, "1.0.0")
    clock.now += trials.VALID_S + 1
    director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    assert _told(director, outbox).trials == ()


def test_a_result_for_another_release_or_device_is_left_out(
    director: Director, store: Store, queries: Queries, release: Make, registered: Make
) -> None:
    release()
    registered("cam-1")
    (row,) = _ask(director, "1.0.0")
    with store.transaction() as transaction:
        transaction.trial_result("cam-2", _result(row))
        transaction.trial_result("cam-1", _result(row, "sha256:" + "f" * 64))
    assert queries.trials("cam-1")[0].result is None


def test_what_cannot_be_asked(director: Director, release: Make, registered: Make) -> None:
    release()
    registered("cam-1")
    with pytest.raises(NotFoundError, match="no device 'cam-9'"):
        director.try_out("cam-9", [("digits", "1.0.0")], runs=1, warmup=0, actor="me")
    with pytest.raises(NotFoundError, match=r"no release digits@9\.0\.0"):
        _ask(director, "9.0.0")
    _ask(director, *["1.0.0"] * MAX_TRIALS)
    with pytest.raises(RefusedError, match="at most 8 may wait"):
        _ask(director, "1.0.0")
