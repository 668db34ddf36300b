"""The life of a deployment as a table: states, events, transitions. Pure.

::

    idle ──────┐
    active ────┼─ wanted ─► fetching ─► verifying ─► proving ─► activating ─► active
    failed ────┘                │           │           │           │
       ▲                        └───────────┴─ failed ──┴───────────┘
       └────────── done ── rolling-back ◄────  timed-out, restarted

A state does its work and posts one event. Where a row is missing, the event cannot happen there.
"""

from __future__ import annotations

from enum import StrEnum

from device_agent.errors import TransitionError


class State(StrEnum):
    """How far a change is. The values are those that travel (contract §4.3)."""

    IDLE = "idle"
    """Nothing serves, and nothing is wanted."""

    FETCHING = "fetching"
    """Manifests and blobs of the wanted release are pulled."""

    VERIFYING = "verifying"
    """Every byte of it is held against its digest, and it against this device."""

    PROVING = "proving"
    """Its golden vectors run in a sandboxed worker."""

    ACTIVATING = "activating"
    """The slot flips, and requests go to the new worker."""

    ACTIVE = "active"
    """The wanted release serves."""

    ROLLING_BACK = "rolling-back"
    """What served before is made to serve."""

    FAILED = "failed"
    """The wanted release does not serve; what served before, if anything, does."""


class Event(StrEnum):
    """What happens to a deployment."""

    WANTED = "wanted"
    """A verified desired state names another release than the one that serves."""

    UNWANTED = "unwanted"
    """A verified desired state names no release."""

    KEPT = "kept"
    """A verified desired state names the release that serves."""

    DONE = "done"
    EMPTIED = "emptied"
    """Activation of nothing is done."""

    FAILED = "failed"
    TIMED_OUT = "timed-out"
    RESTARTED = "restarted"
    """The agent was killed, or lost power, in this state."""

    RETRY = "retry"
    """Time to try again what failed for a passing reason."""

    CRASHED = "crashed"
    """The serving worker died once too often."""


BUSY = frozenset(
    {State.FETCHING, State.VERIFYING, State.PROVING, State.ACTIVATING, State.ROLLING_BACK}
)
"""States with work to do; each has a timeout."""

INTERRUPTIBLE = frozenset({State.FETCHING, State.VERIFYING, State.PROVING})
"""Busy states that a newer desired state ends; the others are short and finish first."""

_S, _E = State, Event

TRANSITIONS: dict[tuple[State, Event], State] = {
    # A new wish. Activating and rolling back finish before they hear one.
    (_S.IDLE, _E.WANTED): _S.FETCHING,
    (_S.ACTIVE, _E.WANTED): _S.FETCHING,
    (_S.FAILED, _E.WANTED): _S.FETCHING,
    (_S.FETCHING, _E.WANTED): _S.FETCHING,
    (_S.VERIFYING, _E.WANTED): _S.FETCHING,
    (_S.PROVING, _E.WANTED): _S.FETCHING,
    (_S.ACTIVE, _E.UNWANTED): _S.ACTIVATING,
    (_S.FAILED, _E.UNWANTED): _S.ACTIVATING,
    (_S.FETCHING, _E.UNWANTED): _S.ACTIVATING,
    (_S.VERIFYING, _E.UNWANTED): _S.ACTIVATING,
    (_S.PROVING, _E.UNWANTED): _S.ACTIVATING,
    (_S.IDLE, _E.UNWANTED): _S.IDLE,
    (_S.ACTIVE, _E.KEPT): _S.ACTIVE,
    (_S.FAILED, _E.KEPT): _S.ACTIVE,
    (_S.FETCHING, _E.KEPT): _S.ACTIVE,
    (_S.VERIFYING, _E.KEPT): _S.ACTIVE,
    (_S.PROVING, _E.KEPT): _S.ACTIVE,
    # The way up.
    (_S.FETCHING, _E.DONE): _S.VERIFYING,
    (_S.VERIFYING, _E.DONE): _S.PROVING,
    (_S.PROVING, _E.DONE): _S.ACTIVATING,
    (_S.ACTIVATING, _E.DONE): _S.ACTIVE,
    (_S.ACTIVATING, _E.EMPTIED): _S.IDLE,
    # The way back.
    (_S.FETCHING, _E.FAILED): _S.ROLLING_BACK,
    (_S.VERIFYING, _E.FAILED): _S.ROLLING_BACK,
    (_S.PROVING, _E.FAILED): _S.ROLLING_BACK,
    (_S.ACTIVATING, _E.FAILED): _S.ROLLING_BACK,
    (_S.FETCHING, _E.TIMED_OUT): _S.ROLLING_BACK,
    (_S.VERIFYING, _E.TIMED_OUT): _S.ROLLING_BACK,
    (_S.PROVING, _E.TIMED_OUT): _S.ROLLING_BACK,
    (_S.ACTIVATING, _E.TIMED_OUT): _S.ROLLING_BACK,
    (_S.ROLLING_BACK, _E.DONE): _S.FAILED,
    # It ends even so: what is left to serve is said in the reason.
    (_S.ROLLING_BACK, _E.FAILED): _S.FAILED,
    (_S.ROLLING_BACK, _E.TIMED_OUT): _S.FAILED,
    (_S.FAILED, _E.RETRY): _S.FETCHING,
    (_S.ACTIVE, _E.CRASHED): _S.ROLLING_BACK,
    (_S.FAILED, _E.CRASHED): _S.FAILED,
    # After a start: what served is loaded again; what was on its way is given up until the
    # desired state comes again, and then goes on with what is on disk.
    (_S.IDLE, _E.RESTARTED): _S.IDLE,
    (_S.ACTIVE, _E.RESTARTED): _S.ACTIVATING,
    (_S.FAILED, _E.RESTARTED): _S.ROLLING_BACK,
    (_S.FETCHING, _E.RESTARTED): _S.ROLLING_BACK,
    (_S.VERIFYING, _E.RESTARTED): _S.ROLLING_BACK,
    (_S.PROVING, _E.RESTARTED): _S.ROLLING_BACK,
    (_S.ACTIVATING, _E.RESTARTED): _S.ROLLING_BACK,
    (_S.ROLLING_BACK, _E.RESTARTED): _S.ROLLING_BACK,
}


def advance(state: State, event: Event) -> State:
    """Return the state that ``event`` leads to.

    Raises:
        TransitionError: It cannot happen in ``state``.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise TransitionError(state.value, event.value) from None
