"""Trials: done at rest, once, by the same rules as releases for slots, touching nothing else."""

from __future__ import annotations

import threading
from dataclasses import replace

from device_agent.deployment.trials import MAX_ATTEMPTS, WantedTrial
from device_agent.errors import ProvingError, WorkerCrashedError
from tests.device_agent.deployment.conftest import MakeRig
from tests.support.agent_doubles import HubDouble, MadeRelease, make_release, wait_for
from tests.support.deployment_rig import Rig

SERVED, TRIED = make_release("1.0.0"), make_release("1.1.0", counter=2)
OTHER = make_release("1.2.0", counter=3)


def ask(rig: Rig, revision: int, *trials: WantedTrial, slot: MadeRelease = SERVED) -> None:
    rig.controller.want(replace(slot.wish(revision), trials=trials))


def ended(rig: Rig, count: int) -> None:
    wait_for(f"{count} trials", lambda: len(rig.ends) >= count)


def test_a_trial_is_verified_timed_and_removed_while_the_slot_serves_on(rig: Rig) -> None:
    """M-4.10-1, M-4.10-2, M-4.10-3."""
    rig.deploy(SERVED, 1)
    rig.hub.add(TRIED)
    steps: list[tuple[str, str]] = []
    rig.stage.on_step = lambda step, version: steps.append((step, version))
    ask(rig, 2, TRIED.trial("t1", runs=5))
    ended(rig, 1)
    end = rig.ends[0]
    assert end.tried is not None
    assert (end.trial.id, end.runtime, len(end.tried.latencies_s)) == ("t1", "onnx_runtime", 5)
    assert steps == [("try", "1.1.0")]
    assert rig.serving == "1.0.0"
    wait_for("it is removed", lambda: not rig.slots.has(TRIED.digest))
    assert rig.slots.active == SERVED.digest


def test_a_trial_of_what_serves_leaves_it(rig: Rig) -> None:
    rig.deploy(SERVED, 1)
    ask(rig, 2, SERVED.trial("t1"))
    ended(rig, 1)
    assert rig.ends[0].tried is not None
    assert rig.slots.has(SERVED.digest)


def test_a_trial_is_done_once_over_restarts(make_rig: MakeRig) -> None:
    """M-4.10-3: also when the same desired state comes again."""
    hub = HubDouble()
    hub.add(TRIED)
    rig = make_rig(hub=hub)
    rig.deploy(SERVED, 1)
    ask(rig, 2, TRIED.trial("t1"))
    ended(rig, 1)
    rig = make_rig(hub=hub)
    ask(rig, 3, TRIED.trial("t1"), TRIED.trial("t2"))
    ended(rig, 1)
    assert [e.trial.id for e in rig.ends] == ["t2"]


def test_a_trial_that_waits_is_done_after_a_restart(make_rig: MakeRig) -> None:
    hub = HubDouble()
    rig = make_rig(hub=hub, stall_s=0.2)
    rig.deploy(SERVED, 1)
    ask(rig, 2, TRIED.trial("t1"))
    wait_for("it was begun", lambda: rig.trials.due_s > 0)
    hub.add(TRIED)
    rig = make_rig(hub=hub)
    ended(rig, 1)
    assert rig.ends[0].tried is not None


def test_what_is_refused_fails_with_its_reason(rig: Rig) -> None:
    """M-4.10-1, M-4.10-2: another counter, an altered release, a model that proves nothing."""
    rig.deploy(SERVED, 1)
    stranger = make_release("9.0.0", counter=9, profile_id="another-board")
    for made in (TRIED, OTHER, stranger):
        rig.hub.add(made)
    wrong = TRIED.trial("counter")
    wrong = WantedTrial(trial=_with_counter(wrong, 7), size=wrong.size)

    def step(name: str, version: str) -> None:
        if (name, version) == ("try", "1.2.0"):
            raise ProvingError("1.2.0 did not prove itself")

    rig.stage.on_step = step
    ask(
        rig, 2, wrong, stranger.trial("profile"), OTHER.trial("proof"),
        TRIED.trial("unsigned", refusal="the publisher has signed no such release"),
    )  # fmt: skip
    ended(rig, 4)
    reasons = {e.trial.id: e.reason for e in rig.ends}
    assert "its counter is 2; 7 is wanted" in reasons["counter"]
    assert "is for another-board" in reasons["profile"]
    assert "did not prove itself" in reasons["proof"]
    assert "signed no such release" in reasons["unsigned"]
    assert all(e.tried is None for e in rig.ends)
    assert rig.serving == "1.0.0"


def _with_counter(wanted: WantedTrial, counter: int) -> object:
    import msgspec

    return msgspec.structs.replace(wanted.trial, counter=counter)


def test_a_wish_for_a_slot_comes_before_trials(rig: Rig) -> None:
    rig.deploy(SERVED, 1)
    rig.hub.add(TRIED)
    rig.hub.add(OTHER)
    tried, go = threading.Event(), threading.Event()

    def step(name: str, _version: str) -> None:
        if name == "try" and not tried.is_set():
            tried.set()
            go.wait(10)

    rig.stage.on_step = step
    ask(rig, 2, TRIED.trial("t1"), TRIED.trial("t2"))
    assert tried.wait(10)
    ask(rig, 3, TRIED.trial("t2"), slot=OTHER)
    go.set()
    wait_for("the new one serves", lambda: rig.stage.serving is not None and rig.serving == "1.2.0")
    ended(rig, 2)
    assert [e.trial.id for e in rig.ends] == ["t1", "t2"]


def test_a_worker_that_dies_ends_the_trial_alone(rig: Rig) -> None:
    rig.deploy(SERVED, 1)
    rig.hub.add(TRIED)

    def step(name: str, _version: str) -> None:
        if name == "try":
            raise WorkerCrashedError("the worker died of signal 9")

    rig.stage.on_step = step
    ask(rig, 2, TRIED.trial("t1"))
    ended(rig, 1)
    assert "signal 9" in rig.ends[0].reason
    assert rig.serving == "1.0.0"


def test_a_trial_that_never_ends_is_given_up(rig: Rig) -> None:
    rig.deploy(SERVED, 1)
    ask(rig, 2, TRIED.trial("t1", attempts=0))
    # As a killed agent leaves it: begun as often as allowed, and not ended.
    for _ in range(MAX_ATTEMPTS):
        rig.trials._count(1)
    rig.trials._not_before_s = 0.0
    ended(rig, 1)
    assert rig.ends[0].tried is None


def test_trials_that_are_withdrawn_are_forgotten(rig: Rig) -> None:
    rig.deploy(SERVED, 1)
    rig.stall_s = 0.2
    ask(rig, 2, TRIED.trial("t1"))
    ask(rig, 3)
    wait_for("forgotten", lambda: rig.trials.due_s == float("inf"))
