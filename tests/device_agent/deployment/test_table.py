from __future__ import annotations

from typing import get_args

import pytest

from device_agent.contract.messages import DeploymentState
from device_agent.deployment.table import (
    BUSY,
    INTERRUPTIBLE,
    TRANSITIONS,
    Event,
    State,
    advance,
)
from device_agent.errors import TransitionError

REST = set(State) - BUSY


def test_states_are_those_of_the_contract() -> None:
    assert {s.value for s in State} == set(get_args(DeploymentState))


@pytest.mark.parametrize("state", sorted(BUSY))
@pytest.mark.parametrize("event", [Event.FAILED, Event.TIMED_OUT])
def test_every_busy_state_has_a_way_out_of_failure_and_timeout(state: State, event: Event) -> None:
    after = advance(state, event)
    assert after == (State.FAILED if state == State.ROLLING_BACK else State.ROLLING_BACK)


@pytest.mark.parametrize("state", sorted(State))
def test_every_state_knows_what_to_do_after_a_restart(state: State) -> None:
    assert advance(state, Event.RESTARTED) in {State.IDLE, State.ACTIVATING, State.ROLLING_BACK}


@pytest.mark.parametrize("state", sorted(REST | INTERRUPTIBLE))
@pytest.mark.parametrize("event", [Event.WANTED, Event.UNWANTED])
def test_a_new_wish_is_heard_in_every_state_that_may_last(state: State, event: Event) -> None:
    assert (state, event) in TRANSITIONS


def test_failure_alone_always_ends_at_rest() -> None:
    for state in BUSY:
        seen = [state]
        while seen[-1] in BUSY:
            seen.append(advance(seen[-1], Event.FAILED))
            assert len(seen) < 4
        assert seen[-1] == State.FAILED


def test_a_release_serves_only_after_every_step() -> None:
    """Only activation leads to ``active``, and only proving to activation of a new release."""
    to_active = {(s, e) for (s, e), t in TRANSITIONS.items() if t == State.ACTIVE}
    assert {e for s, e in to_active if s != State.ACTIVATING} == {Event.KEPT}
    up = {s for (s, e), t in TRANSITIONS.items() if t == State.ACTIVATING and e == Event.DONE}
    assert up == {State.PROVING}


def test_missing_rows_are_an_error_that_names_both() -> None:
    with pytest.raises(TransitionError, match=r"'done' in state 'idle'"):
        advance(State.IDLE, Event.DONE)
