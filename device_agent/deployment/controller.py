"""Carries out the deployment table: does each state's work, and posts what came of it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

import msgspec

from device_agent.contract.errors import AidError, DigestMismatchError, UnverifiableError
from device_agent.contract.messages import ReleaseRef, Reported
from device_agent.deployment.journal import said
from device_agent.deployment.parts import Equipment, LocalRelease, Teller
from device_agent.deployment.proving import judge
from device_agent.deployment.release import (
    Wanted,
    check_fits,
    check_wanted,
    reference_of,
    verify_release,
)
from device_agent.deployment.report import report_of
from device_agent.deployment.table import BUSY, INTERRUPTIBLE, Event, State, advance
from device_agent.deployment.trials import PutOffError, Trials
from device_agent.deployment.wish import Wish, meaning_of
from device_agent.errors import AgentError, DownloadError, StoreError, TransportError
from device_agent.transport import Backoff

MAX_DEATHS = 3
"""A release during whose proving or activation the agent died this often is not tried again."""

RETRY_BASE_S = 5.0
RETRY_MAX_S = 600.0
MAX_WAIT_S = 3600.0
PROGRESS_STEP = 0.05
PROGRESS_INTERVAL_S = 1.0
_NEVER = float("inf")
_PASSING = (DownloadError, TransportError, StoreError, UnverifiableError)
"""Failures that may pass by themselves: of network and storage, not of the release."""

_log = logging.getLogger(__name__)


class StateTimeoutError(AgentError):
    """A state's work took longer than it may."""

    code = "state-timeout"


class _StoppedError(Exception):
    """The agent stops."""


class _SupersededError(Exception):
    """There is a newer desired state."""


class Controller:
    """One deployment: :meth:`run` works on its own thread, the rest is called from others.

    Args:
        equipment: What it works with.
        tell: Who is told.
        trials: Done while the deployment is at rest.
        now_unix_s: The wall clock.

    Raises:
        StoreError: The journal cannot be read.
    """

    def __init__(
        self,
        equipment: Equipment,
        tell: Teller,
        *,
        trials: Trials | None = None,
        now_unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._has = equipment
        self._tell = tell
        self._now_unix_s = now_unix_s
        self._journal = equipment.journal.load()
        self._trials = trials
        self._serving: ReleaseRef | None = None
        self._progress: float | None = None
        self._told_s = 0.0
        self._until_s = 0.0
        self._retry_at_s = _NEVER
        rng = random.Random()  # noqa: S311 - jitter
        self._backoff = Backoff(cap_s=RETRY_MAX_S, base_s=RETRY_BASE_S, rng=rng)
        self._news = threading.Condition()
        self._wish: Wish | None = None
        self._crash: tuple[str, str] | None = None
        self._crashed_digest: str | None = None
        self._accepted: dict[str, object] = {}
        self._stopped = False
        self._work: dict[State, Callable[[], Event]] = {
            State.FETCHING: self._fetch,
            State.VERIFYING: self._verify,
            State.PROVING: self._prove,
            State.ACTIVATING: self._activate,
            State.ROLLING_BACK: self._roll_back,
        }

    # --- called from other threads ---

    def want(self, wish: Wish) -> None:
        """Carry out a verified desired state; a newer one takes the place of an older."""
        with self._news:
            if self._wish is None or wish.revision >= self._wish.revision:
                self._wish = wish
                if self._trials is not None:
                    self._trials.want(wish.trials)
            self._news.notify_all()

    def refuse(self, reason: str, revision: int = 0) -> None:
        """Report that a desired state was refused; what runs goes on (M-4.3-2).

        Args:
            reason: Why.
            revision: Its revision, where that is known to be the director's word.
        """
        self._change(refusal=reason or "refused", refused_revision=revision)
        self._tell.changed()

    def is_in_force(self, envelope: str) -> bool:
        """Whether the desired state in these signed bytes is in force, and need not be verified.

        So that to go on running never depends on its expiry. Takes back a refusal of others.
        """
        with self._news:
            journal = self._journal
            is_idle = self._wish is None and journal.state in (State.ACTIVE, State.IDLE)
            if not is_idle or journal.envelope != envelope:
                return False
            if journal.refusal:
                self._change(refusal="", refused_revision=0)
        self._tell.changed()
        return True

    def crashed(self, digest: str, reason: str) -> None:
        """Say that the serving worker of this release died once too often."""
        with self._news:
            self._crash = (digest, reason)
            self._news.notify_all()

    def stop(self) -> None:
        """Let :meth:`run` return soon; what is on disk is consistent at any time."""
        with self._news:
            self._stopped = True
            self._news.notify_all()

    @property
    def revision(self) -> int:
        """Highest desired revision that was accepted."""
        with self._news:
            return max(self._journal.revision, self._wish.revision if self._wish else 0)

    @property
    def serving(self) -> ReleaseRef | None:
        """The release that serves."""
        return self._serving

    def report(self, boot_id: str) -> Reported:
        """Return the whole of what this device runs (contract §4.3)."""
        return report_of(self._journal, self._serving, self._progress, boot_id)

    # --- the thread ---

    def run(self) -> None:
        """Serve what was active, then carry out what is wanted, until :meth:`stop`.

        May be called again after it raised: it begins as after a restart.
        """
        try:
            self._restart()
            while True:
                event, reason = self._wait()
                self._drive(event, reason)
        except _StoppedError:
            return

    def _restart(self) -> None:
        if self._journal.state == State.IDLE and self._has.slots.active is not None:
            # The journal was lost; the slots say what to serve until the hub says what is wanted.
            self._change(state=State.FAILED, reason="the journal was lost", is_passing=True)
        journal = self._journal
        reason = journal.reason
        if journal.state in BUSY:
            deaths = journal.deaths
            is_new = journal.target is None or journal.settled != journal.target.release.digest
            if is_new and journal.state in (State.PROVING, State.ACTIVATING):
                deaths += 1
            is_hopeless = deaths >= MAX_DEATHS
            if journal.state != State.ROLLING_BACK:
                reason = f"interrupted while {journal.state}"
                reason += f" {deaths} times; not tried again" if is_hopeless else ""
            self._change(deaths=deaths, is_passing=not is_hopeless)
        self._drive(Event.RESTARTED, reason)

    def _wait(self) -> tuple[Event, str]:
        """Wait at rest for the next event."""
        while True:
            with self._news:
                self._check_stop()
                found = self._next_event()
                if found is not None:
                    return found
                if self._wish is not None or self._crash is not None:
                    continue
                trial_at_s = self._trials.due_s if self._trials is not None else _NEVER
                if (left_s := min(self._retry_at_s, trial_at_s) - time.monotonic()) > 0:
                    self._news.wait(min(max(left_s, 0.01), MAX_WAIT_S))
                    continue
            if self._trials is not None and self._trials.is_due:
                self._trials.do_one(self._go_on_trying)

    def _go_on_trying(self) -> None:
        with self._news:
            self._check_stop()
            if self._wish is not None or self._crash is not None:
                raise PutOffError

    def _next_event(self) -> tuple[Event, str] | None:
        if self._crash is not None:
            (digest, reason), self._crash = self._crash, None
            if self._serving is not None and self._serving.digest == digest:
                return Event.CRASHED, reason
        if self._wish is not None:
            event = self._take_wish()
            if event is not None:
                return event, ""
        if self._journal.state == State.FAILED and time.monotonic() >= self._retry_at_s:
            self._retry_at_s = _NEVER
            if self._now_unix_s() <= self._journal.not_after_unix_s:
                return Event.RETRY, ""
        return None

    def _take_wish(self) -> Event | None:
        """Make the newest wish the target, and return what it means; None for nothing new."""
        wish, self._wish = self._wish, None
        journal = self._journal
        if wish is None or wish.revision < journal.revision:
            return None
        is_new = wish.revision > journal.revision
        event = meaning_of(wish, journal, self._serving)
        if is_new:
            self._backoff.reset()
        # With an event, these change together with the state: no report says the new revision
        # beside the old state.
        self._accepted = {
            "revision": wish.revision,
            "envelope": wish.envelope,
            "refusal": "",
            "refused_revision": 0,
            "target": wish.target,
            "not_after_unix_s": wish.not_after_unix_s,
            "has_candidate": wish.has_candidate,
            "deaths": 0 if is_new else journal.deaths,
        }
        if event is None:
            self._change(**self._accepted)
            self._accepted = {}
            self._tell.changed()
        return event

    def _drive(self, event: Event, reason: str) -> None:
        """Post an event, and do the work of every state it leads to, until there is a rest."""
        while True:
            self._enter(event, reason)
            work = self._work.get(self._journal.state)
            if work is None:
                return
            event, reason = self._attempt(work)

    def _enter(self, event: Event, reason: str) -> None:
        journal, serving = self._journal, self._serving
        state = advance(journal.state, event)
        if event == Event.CRASHED:
            self._crashed_digest = serving.digest if serving else None
            self._stop_serving()
        # The reason of a failure stands until something else is wanted, or serves.
        is_bad = state in (State.ROLLING_BACK, State.FAILED)
        accepted, self._accepted = self._accepted, {}
        changes: dict[str, object] = accepted | {
            "state": state,
            "reason": reason or (journal.reason if is_bad else ""),
        }
        if state in (State.ACTIVE, State.IDLE, State.FAILED):
            changes["settled"] = self._serving.digest if self._serving else None
        if state in (State.ACTIVE, State.IDLE):
            changes |= {"deaths": 0, "is_passing": False}
            self._backoff.reset()
        elif event == Event.CRASHED:
            changes |= {"settled": None, "is_passing": False}
        self._change(**changes)
        self._rest_or_go(event, state, reason)

    def _rest_or_go(self, event: Event, state: State, reason: str) -> None:
        journal = self._journal
        self._progress, self._retry_at_s = None, _NEVER
        if state == State.FAILED and journal.is_passing and journal.target:
            self._retry_at_s = time.monotonic() + self._backoff.next_s()
        target = journal.target.release if journal.target else None
        _log.info("deployment: %s -> %s %s", event, state, reason)
        self._tell.transition(state, target, reason or event.value)
        self._tell.changed()
        if state not in BUSY:
            self._has.slots.tidy(self._has.releases_kept, [target.digest] if target else [])

    def _attempt(self, work: Callable[[], Event]) -> tuple[Event, str]:
        """Do one state's work within its time, and return the event that it ended in."""
        self._until_s = time.monotonic() + self._has.state_timeout_s
        state = self._journal.state
        try:
            return work(), ""
        except _SupersededError:
            self._has.stage.discard()
            with self._news:
                event = self._take_wish()
            return event or Event.FAILED, ""
        except StateTimeoutError as e:
            self._note_failure(is_passing=state == State.FETCHING)
            return Event.TIMED_OUT, str(e)
        except AidError as e:
            self._check_stop()
            self._note_failure(is_passing=isinstance(e, _PASSING))
            return Event.FAILED, _text(e)

    def _note_failure(self, *, is_passing: bool) -> None:
        if self._journal.state != State.ROLLING_BACK:
            self._change(is_passing=is_passing)

    def _change(self, **changes: object) -> None:
        """Change the journal, in memory and on disk.

        When the disk takes nothing, the agent goes on with what it knows: the slots, not the
        journal, say what to serve.
        """
        with self._news:
            self._journal = msgspec.structs.replace(self._journal, **changes)
            try:
                self._has.journal.save(self._journal)
            except StoreError as e:
                _log.error("%s", e)

    def _go_on(self) -> None:
        """Look whether the work of this state may go on; called often by whatever takes long."""
        with self._news:
            self._check_stop()
            if self._wish is not None and self._journal.state in INTERRUPTIBLE:
                if self._wish.revision > self._journal.revision:
                    raise _SupersededError
                # The same again, after a reconnect: it is being carried out.
                self._wish = None
        if time.monotonic() > self._until_s:
            raise StateTimeoutError(
                f"{self._journal.state} took longer than {self._has.state_timeout_s:g} s"
            )

    def _check_stop(self) -> None:
        if self._stopped:
            raise _StoppedError

    # --- the work of each state ---

    def _target(self) -> Wanted:
        target = self._journal.target
        if target is None:
            raise StoreError("the journal names no target")
        return target

    def _fetch(self) -> Event:
        target = self._target()
        slots = self._has.slots
        if not slots.has(target.release.digest):
            folder = slots.incoming(target.release.digest)
            self._has.delivery.fetch(
                target, folder, go_on=self._go_on, progress=self._show_progress
            )
        return Event.DONE

    def _show_progress(self, share: float) -> None:
        now_s = time.monotonic()
        told = self._progress or 0.0
        if share - told >= PROGRESS_STEP and now_s - self._told_s >= PROGRESS_INTERVAL_S:
            self._progress, self._told_s = min(share, 1.0), now_s
            self._tell.changed()

    def _verify(self) -> Event:
        target = self._target()
        digest = target.release.digest
        slots = self._has.slots
        is_installed = slots.has(digest)
        folder = slots.folder(digest) if is_installed else slots.incoming(digest)
        try:
            manifest = verify_release(folder, digest, go_on=self._go_on)
        except (DigestMismatchError, StoreError) as e:
            slots.discard(digest)
            if is_installed:
                raise _altered(target.release, e) from e
            raise
        check_wanted(manifest, target)
        check_fits(manifest, self._has.device)
        slots.install(digest)
        return Event.DONE

    def _local(self, digest: str) -> LocalRelease:
        """Return a release that is on the disk, every byte verified again."""
        folder = self._has.slots.folder(digest)
        try:
            manifest = verify_release(folder, digest, go_on=self._go_on)
        except DigestMismatchError as e:
            raise _altered(digest, e) from e
        check_fits(manifest, self._has.device)
        return LocalRelease(reference_of(manifest, digest), folder, manifest)

    def _prove(self) -> Event:
        release = self._local(self._target().release.digest)
        stage = self._has.stage
        stage.prepare(release)
        self._go_on()
        proof = stage.prove(max(1.0, self._until_s - time.monotonic()))
        self._go_on()
        figures = judge(proof, release.manifest)
        self._tell.transition(State.PROVING, release.reference, f"proved: {figures}")
        return Event.DONE

    def _activate(self) -> Event:
        slots, stage = self._has.slots, self._has.stage
        target = self._journal.target
        if target is None:
            stage.discard()
            self._stop_serving()
            slots.activate(None)
            return Event.EMPTIED
        digest = target.release.digest
        release = stage.candidate
        if release is None or release.reference.digest != digest:
            # After a start: it proved itself before, and is only loaded.
            release = self._local(digest)
            stage.prepare(release)
        slots.activate(digest)
        self._promote(release)
        return Event.DONE

    def _roll_back(self) -> Event:
        """Make something intact serve: what serves still, else the last that was active."""
        slots, stage, journal = self._has.slots, self._has.stage, self._journal
        stage.discard()
        if self._serving is not None:
            if slots.active != self._serving.digest:
                slots.restore(self._serving.digest)
            return Event.DONE
        target = journal.target.release.digest if journal.target else None
        doomed = {self._crashed_digest, target if journal.deaths >= MAX_DEATHS else None}
        named = (journal.settled, slots.active, slots.previous)
        choices = [d for d in named if d is not None and d not in doomed]
        misses = []
        for digest in dict.fromkeys(choices):
            try:
                release = self._local(digest)
                stage.prepare(release)
                if slots.active != digest:
                    slots.restore(digest)
                self._promote(release)
            except StateTimeoutError:
                raise
            except AidError as e:
                self._check_stop()
                stage.discard()
                misses.append(_text(e))
            else:
                return Event.DONE
        if misses:
            why = "; ".join((journal.reason, *misses) if journal.reason else misses)
            raise StoreError(f"{why}; nothing serves")
        return Event.DONE

    def _promote(self, release: LocalRelease) -> None:
        self._has.stage.promote()
        self._serving = release.reference

    def _stop_serving(self) -> None:
        self._has.stage.clear()
        self._serving = None


def _altered(what: ReleaseRef | str, error: AidError) -> StoreError:
    name = what if isinstance(what, str) else said(what)
    return StoreError(f"release {name} was altered on this disk", cause=str(error))


def _text(error: AidError) -> str:
    return f"{error} ({error.cause})" if error.cause else str(error)
