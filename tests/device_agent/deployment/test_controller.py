from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from device_agent.contract.errors import DigestMismatchError
from device_agent.contract.manifest import Limits
from device_agent.deployment.release import verify_release
from device_agent.deployment.table import State
from device_agent.deployment.wish import Wish
from device_agent.errors import WorkerCrashedError
from tests.device_agent.deployment.conftest import MakeRig
from tests.support.agent_doubles import (
    GOOD_PROOF,
    HubDouble,
    MadeRelease,
    StageDouble,
    make_release,
    wait_for,
)
from tests.support.deployment_rig import Rig

OLD, NEW = make_release("1.0.0"), make_release("1.1.0", counter=2)
WAY_UP = [State.FETCHING, State.VERIFYING, State.PROVING, State.ACTIVATING, State.ACTIVE]


def model_of(release: MadeRelease) -> str:
    blob = release.manifest.blob("model")
    assert blob is not None
    return blob.digest


def test_wanted_release_is_fetched_verified_proved_and_serves(rig: Rig) -> None:
    """M-4.4-1: every transition is told, in order. M-5.4-1: none is left out."""
    rig.deploy(OLD, 1)
    assert rig.states() == [State.IDLE, *WAY_UP]
    assert rig.serving == "1.0.0"
    assert rig.slots.active == OLD.digest
    assert verify_release(rig.slots.folder(OLD.digest), OLD.digest) == OLD.manifest
    assert rig.report.accepted
    assert any(detail.startswith("proved: cosine") for _, detail in rig.history)


def test_rolling_back_needs_no_download_but_everything_else(rig: Rig) -> None:
    rig.deploy(OLD, 1)
    rig.deploy(NEW, 2)
    rig.hub.sent.clear()
    rig.history.clear()
    rig.deploy(OLD, 3)
    assert rig.states() == WAY_UP
    assert not rig.hub.sent
    assert (rig.slots.active, rig.slots.previous) == (OLD.digest, NEW.digest)


def test_same_release_under_a_higher_revision_is_kept(rig: Rig) -> None:
    rig.deploy(OLD, 1)
    rig.history.clear()
    rig.deploy(OLD, 2)
    assert rig.history == []


def test_no_slots_means_run_nothing(rig: Rig) -> None:
    """M-4.2-5: what is served is unloaded."""
    rig.deploy(OLD, 1)
    rig.controller.want(Wish(2, "envelope-2", time.time() + 60, None))
    rig.wait(State.IDLE)
    assert rig.serving is None
    assert rig.slots.active is None
    rig.deploy(OLD, 3)
    assert rig.serving == "1.0.0"


def test_refusal_is_reported_and_what_runs_goes_on(rig: Rig) -> None:
    """M-4.3-2."""
    rig.deploy(OLD, 1)
    rig.controller.refuse("signature: wrong", 9)
    assert (rig.report.accepted, rig.report.revision) == (False, 9)
    assert "signature" in rig.report.reason
    assert rig.serving == "1.0.0"
    assert rig.controller.revision == 1
    assert rig.controller.is_in_force("envelope-1")
    assert rig.report.accepted


def test_what_is_in_force_is_not_verified_again(make_rig: MakeRig) -> None:
    rig = make_rig()
    assert not rig.controller.is_in_force("envelope-1")
    rig.deploy(OLD, 1)
    assert rig.controller.is_in_force("envelope-1")
    assert not rig.controller.is_in_force("envelope-2")
    again = make_rig()
    again.wait(State.ACTIVE)
    assert again.controller.is_in_force("envelope-1")


def test_lower_revision_changes_nothing(rig: Rig) -> None:
    rig.deploy(OLD, 5)
    rig.hub.add(NEW)
    rig.controller.want(NEW.wish(4))
    rig.deploy(OLD, 6)
    assert rig.slots.installed() == [OLD.digest]


class _FailingStage(StageDouble):
    """A stage that fails in one step for the new release."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.failing = step
        self.on_step = self._fail

    def _fail(self, step: str, version: str) -> None:
        if step == self.failing and version == "1.1.0":
            raise WorkerCrashedError(f"it died in {step}")


def _spoil_fetch(rig: Rig) -> None:
    rig.hub.spoil = lambda digest, _index: digest == model_of(NEW)


def _spoil_verify(rig: Rig) -> None:
    def spoil(state: State) -> None:
        if state == State.VERIFYING:
            path = rig.slots.incoming(NEW.digest) / "model"
            path.write_bytes(path.read_bytes()[:-1] + b"!")

    rig.on_state = spoil


def _spoil_proof(rig: Rig) -> None:
    rig.stage.proof["1.1.0"] = msgspec.structs.replace(GOOD_PROOF, min_cosine=0.5)


@pytest.mark.parametrize(
    ("spoil", "stage", "reached", "says"),
    [
        (_spoil_fetch, StageDouble(), State.FETCHING, "chunk 0"),
        (_spoil_verify, StageDouble(), State.VERIFYING, "expected sha256"),
        (_spoil_proof, StageDouble(), State.PROVING, "cosine 0.500000 < 0.990000"),
        (lambda _rig: None, _FailingStage("prepare"), State.PROVING, "it died in prepare"),
        (lambda _rig: None, _FailingStage("prove"), State.PROVING, "it died in prove"),
        (lambda _rig: None, _FailingStage("promote"), State.ACTIVATING, "it died in promote"),
    ],
    ids=["fetching", "verifying", "proving-numbers", "loading", "proving-crash", "activating"],
)
def test_failure_in_every_state_leaves_the_old_one_serving(
    make_rig: MakeRig, spoil: object, stage: StageDouble, reached: State, says: str
) -> None:
    """M-5.4-1, M-4.3-3; and the reason with its numbers is reported."""
    rig = make_rig(stage=stage)
    rig.deploy(OLD, 1)
    rig.hub.add(NEW)
    spoil(rig)  # type: ignore[operator]
    rig.history.clear()
    rig.controller.want(NEW.wish(2))
    rig.wait(State.FAILED)
    assert rig.states()[-3:] == [reached, State.ROLLING_BACK, State.FAILED]
    assert says in rig.reason
    assert rig.serving == "1.0.0"
    assert rig.slots.active == OLD.digest
    assert (rig.report.revision, rig.report.accepted) == (2, True)
    assert not rig.report.slots[0].retrying


@pytest.mark.parametrize(
    "unfit",
    [
        make_release("1.1.0", counter=2, profile_id="raspberry-pi-4"),
        make_release("1.1.0", counter=2, limits=Limits(2**40, 1, 1.0)),
    ],
    ids=["profile", "memory"],
)
def test_release_that_does_not_fit_is_refused_before_its_blobs_travel(
    rig: Rig, unfit: MadeRelease
) -> None:
    """M-5.2-4."""
    rig.deploy(OLD, 1)
    rig.hub.add(unfit)
    rig.hub.sent.clear()
    rig.controller.want(unfit.wish(2))
    rig.wait(State.FAILED)
    assert rig.serving == "1.0.0"
    assert (model_of(unfit), 0) not in rig.hub.sent


def test_rejected_release_is_not_tried_again_until_something_else_is_wanted(rig: Rig) -> None:
    rig.deploy(OLD, 1)
    rig.hub.add(NEW)
    _spoil_proof(rig)
    rig.controller.want(NEW.wish(2))
    rig.wait(State.FAILED)
    rig.history.clear()
    rig.controller.want(NEW.wish(2))
    time.sleep(0.2)
    assert rig.history == []
    rig.deploy(OLD, 3)
    assert rig.reason == ""
    assert rig.serving == "1.0.0"


def test_what_may_pass_is_tried_again_when_the_desired_state_comes_again(rig: Rig) -> None:
    rig.deploy(OLD, 1)
    rig.controller.want(NEW.wish(2))  # the hub does not have it
    rig.wait(State.FAILED)
    assert "no such blob" in rig.reason
    rig.deploy(NEW, 2)
    assert rig.serving == "1.1.0"


@pytest.mark.parametrize(("step", "state"), [("fetch", State.FETCHING), ("prove", State.PROVING)])
def test_state_that_takes_too_long_is_left(make_rig: MakeRig, step: str, state: State) -> None:
    stage = StageDouble()
    rig = make_rig(stage=stage, stall_s=60.0)
    rig.deploy(OLD, 1)
    rig.hub.add(NEW)
    rig.controller._has = replace(rig.controller._has, state_timeout_s=0.4)
    if step == "fetch":
        rig.hub.lose = lambda digest, _index: digest == model_of(NEW)
    else:
        stage.on_step = lambda s, v: time.sleep(0.6) if (s, v) == ("prove", "1.1.0") else None
    rig.history.clear()
    rig.controller.want(NEW.wish(2))
    rig.wait(State.FAILED)
    assert rig.states()[-3:] == [state, State.ROLLING_BACK, State.FAILED]
    assert "took longer than 0.4 s" in rig.reason
    assert rig.serving == "1.0.0"


def test_newer_wish_ends_a_fetch(rig: Rig) -> None:
    rig.deploy(OLD, 1)
    stuck, third = NEW, make_release("1.2.0", counter=3)
    rig.hub.add(stuck)
    rig.hub.lose = lambda digest, _index: digest == model_of(stuck)
    rig.controller.want(stuck.wish(2))
    rig.wait(State.FETCHING)
    rig.deploy(third, 3)
    assert rig.serving == "1.2.0"


def test_wish_for_what_serves_ends_a_fetch(rig: Rig) -> None:
    rig.deploy(OLD, 1)
    rig.hub.add(NEW)
    rig.hub.lose = lambda digest, _index: digest == model_of(NEW)
    rig.controller.want(NEW.wish(2))
    rig.wait(State.FETCHING)
    rig.history.clear()
    rig.deploy(OLD, 3)
    wait_for("the transition", lambda: rig.states() == [State.ACTIVE])
    assert rig.serving == "1.0.0"


def test_intact_release_serves_after_a_restart_without_the_hub(make_rig: MakeRig) -> None:
    """M-8.2-3."""
    make_rig().deploy(OLD, 1)
    again = make_rig(hub=HubDouble(is_silent=True))
    again.wait(State.ACTIVE)
    assert again.serving == "1.0.0"
    assert not again.hub.asked


def test_altered_release_does_not_serve_after_a_restart_and_the_one_before_does(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    rig = make_rig()
    rig.deploy(OLD, 1)
    rig.deploy(NEW, 2)
    folder = rig.slots.folder(NEW.digest)
    rig.stop()
    (folder / "model").write_bytes(b"evil")
    with pytest.raises(DigestMismatchError):
        verify_release(folder, NEW.digest)
    again = make_rig(hub=rig.hub)
    again.wait(State.FAILED)
    assert again.serving == "1.0.0"
    assert "altered" in again.reason
    # The desired state comes again with the connection: it is fetched anew.
    again.controller.want(NEW.wish(2))
    wait_for("the removal", lambda: "altered" in again.reason and not again.slots.has(NEW.digest))
    again.deploy(NEW, 2)
    assert again.serving == "1.1.0"


def test_worker_that_keeps_crashing_gives_way_to_the_release_before(rig: Rig) -> None:
    rig.deploy(OLD, 1)
    rig.deploy(NEW, 2)
    rig.controller.crashed(NEW.digest, "its worker died 5 times")
    wait_for("the roll-back", lambda: rig.serving == "1.0.0" and rig.state == State.FAILED)
    assert "died 5 times" in rig.reason
    assert rig.slots.active == OLD.digest
    rig.controller.crashed(OLD.digest, "this one too")
    wait_for("nothing", lambda: rig.serving is None)


def test_crash_of_what_no_longer_serves_is_no_news(rig: Rig) -> None:
    rig.deploy(OLD, 1)
    rig.deploy(NEW, 2)
    rig.history.clear()
    rig.controller.crashed(OLD.digest, "late")
    time.sleep(0.1)
    assert rig.history == []


def test_nothing_is_tried_again_after_its_time(make_rig: MakeRig) -> None:
    """M-4.2-4: after ``not_after`` nothing is installed; what runs goes on."""
    clock = [1000.0]
    rig = make_rig(now_unix_s=lambda: clock[0])
    rig.deploy(OLD, 1)
    rig.controller.want(Wish(2, "envelope-2", 2000.0, NEW.wanted))
    rig.wait(State.FAILED)
    clock[0] = 3000.0
    rig.hub.add(NEW)
    with rig.controller._news:
        rig.controller._retry_at_s = 0.0
        rig.controller._news.notify_all()
    wait_for("the retry", lambda: rig.controller._retry_at_s == float("inf"))
    assert rig.state == State.FAILED
    assert rig.serving == "1.0.0"


def test_candidate_slot_is_answered_not_ignored(rig: Rig) -> None:
    rig.controller.want(Wish(1, "e", time.time() + 60, None, has_candidate=True))
    wait_for("the wish", lambda: rig.report.revision == 1)
    assert [s.slot for s in rig.report.slots] == ["active", "candidate"]
    assert rig.report.slots[1].state == "failed"


def test_controller_stops_while_it_waits_for_chunks(make_rig: MakeRig) -> None:
    rig = make_rig(stall_s=60.0)
    rig.hub.add(OLD)
    rig.hub.lose = lambda _digest, _index: True
    rig.controller.want(OLD.wish(1))
    rig.wait(State.FETCHING)
    rig.stop()
    assert rig.state == State.FETCHING


def test_full_disk_is_reported_and_the_old_one_serves_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.deploy(OLD, 1)
    rig.hub.add(NEW)
    monkeypatch.setattr("device_agent.transfer.store.RESERVE_BYTES", 2**62)
    rig.controller.want(NEW.wish(2))
    rig.wait(State.FAILED)
    assert "cannot be reserved" in rig.reason
    assert rig.serving == "1.0.0"
    # M-4.3-3
    assert rig.report.slots[0].retrying


def test_damaged_journal_does_not_keep_the_agent_from_starting(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.deploy(OLD, 1)
    rig.stop()
    (rig.home / "state" / "deployment.json").write_bytes(b"\0" * 200)
    again = make_rig(hub=rig.hub)
    again.deploy(OLD, 1)
    assert again.serving == "1.0.0"
