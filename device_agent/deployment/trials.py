"""Trials: releases that are fetched, verified, proven and timed beside what is served (§4.10).

They are done on the deployment's own thread while it is at rest, so that a fetch for a trial never
competes with one for a slot; anything new for a slot puts the trial off.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from device_agent.contract.desired import Trial
from device_agent.contract.errors import AidError
from device_agent.deployment.delivery import Delivery
from device_agent.deployment.disk import write_whole
from device_agent.deployment.parts import LocalRelease, Stage, Tried
from device_agent.deployment.release import Device, Wanted, check_fits, check_wanted, verify_release
from device_agent.deployment.slots import Slots
from device_agent.errors import DownloadError, StoreError, TransportError

SCHEMA = 1
TRIAL_TIMEOUT_S = 600.0
"""Longest that one trial's worker may take, proof and measured runs together."""

MAX_ATTEMPTS = 3
"""So often a trial is begun when the network fails or the agent is killed meanwhile."""

RETRY_S = 5.0
RETRY_STORE_S = 60.0
MAX_DONE = 256
"""Ids of finished trials that are remembered; older ones are no longer in any desired state."""

_log = logging.getLogger(__name__)


class PutOffError(Exception):
    """Something for a slot comes before trials."""


class WantedTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A trial that was verified; ``refusal`` says why its release must not be run."""

    trial: Trial
    size: int
    refusal: str = ""
    attempts: int = 0


class _Book(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    pending: tuple[WantedTrial, ...] = ()
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended: ``tried`` is None when it failed, and ``reason`` says why."""

    trial: Trial
    runtime: str = ""
    threads: int = 0
    tried: Tried | None = None
    reason: str = ""


@dataclass(frozen=True)
class TrialEquipment:
    """What trials work with; shared with the controller, on whose thread they run."""

    slots: Slots
    delivery: Delivery
    stage: Stage
    device: Device
    book: Path
    tell: Callable[[TrialEnd], None]


class Trials:
    """Trials that wait and those that are done, on disk.

    Raises:
        StoreError: The book is there, but cannot be read.
    """

    def __init__(self, has: TrialEquipment) -> None:
        self._has = has
        self._lock = threading.Lock()
        self._book = _load(has.book)
        self._not_before_s = 0.0

    def want(self, wanted: Sequence[WantedTrial]) -> None:
        """Let exactly these wait, less what is done already (M-4.10-3)."""
        with self._lock, self._logged():
            known = {w.trial.id: w.attempts for w in self._book.pending}
            pending = tuple(
                msgspec.structs.replace(w, attempts=known.get(w.trial.id, 0))
                for w in wanted
                if w.trial.id not in self._book.done
            )
            if pending != self._book.pending:
                self._write(msgspec.structs.replace(self._book, pending=pending))

    @property
    def due_s(self) -> float:
        """Monotonic time from which the next trial may be begun; infinite where none waits."""
        return self._not_before_s if self._book.pending else math.inf

    @property
    def is_due(self) -> bool:
        """Whether a trial waits and may be begun now."""
        return time.monotonic() >= self.due_s

    def do_one(self, go_on: Callable[[], None]) -> None:
        """Do the next trial and tell how it ended; when the disk fails, it waits on.

        Args:
            go_on: Called often; raises :class:`PutOffError` for what comes before trials.
        """
        with self._logged():
            begun = self._count(1)
            if begun is None:
                return
            try:
                end = self._end_of(begun, go_on)
            except PutOffError:
                self._count(-1)
                return
            if end is not None:
                self._has.tell(end)
                self._finish(begun)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except StoreError as e:
            _log.error("a trial could not be done: %s", _said(e))
            self._not_before_s = time.monotonic() + RETRY_STORE_S

    def _count(self, change: int) -> WantedTrial | None:
        """Count an attempt at the first trial, or take it back; return it."""
        with self._lock:
            if not self._book.pending:
                return None
            first, *rest = self._book.pending
            first = msgspec.structs.replace(first, attempts=max(0, first.attempts + change))
            self._write(msgspec.structs.replace(self._book, pending=(first, *rest)))
            return first

    def _end_of(self, wanted: WantedTrial, go_on: Callable[[], None]) -> TrialEnd | None:
        """Return how a trial ended; None when it is to be begun again."""
        trial = wanted.trial
        if wanted.refusal:
            return TrialEnd(trial, reason=wanted.refusal)
        if wanted.attempts > MAX_ATTEMPTS:
            return TrialEnd(trial, reason=f"begun {MAX_ATTEMPTS} times without an end")
        try:
            release = self._bring(wanted, go_on)
            tried = self._has.stage.try_out(release, trial, TRIAL_TIMEOUT_S)
        except (DownloadError, TransportError) as e:
            _log.warning("trial %s: %s", trial.id, _said(e))
            self._not_before_s = time.monotonic() + RETRY_S
            return None if wanted.attempts < MAX_ATTEMPTS else TrialEnd(trial, reason=_said(e))
        except StoreError:
            raise
        except AidError as e:
            return TrialEnd(trial, reason=_said(e))
        manifest = release.manifest
        return TrialEnd(trial, manifest.runtime.name, manifest.limits.threads, tried)

    def _bring(self, wanted: WantedTrial, go_on: Callable[[], None]) -> LocalRelease:
        """Return the release on this disk, verified as one for a slot is (M-4.10-1)."""
        slots, trial = self._has.slots, wanted.trial
        digest = trial.release.digest
        target = Wanted(trial.release, wanted.size, trial.counter)
        if not slots.has(digest):
            self._has.delivery.fetch(
                target, slots.incoming(digest), go_on=go_on, progress=lambda _share: None
            )
        is_installed = slots.has(digest)
        folder = slots.folder(digest) if is_installed else slots.incoming(digest)
        manifest = verify_release(folder, digest, go_on=go_on)
        check_wanted(manifest, target)
        check_fits(manifest, self._has.device)
        slots.install(digest)
        return LocalRelease(trial.release, slots.folder(digest), manifest)

    def _finish(self, wanted: WantedTrial) -> None:
        slots, digest = self._has.slots, wanted.trial.release.digest
        if digest not in {slots.active, slots.previous}:
            slots.discard(digest)
        with self._lock:
            pending = tuple(w for w in self._book.pending if w.trial.id != wanted.trial.id)
            done = (*self._book.done, wanted.trial.id)[-MAX_DONE:]
            self._write(msgspec.structs.replace(self._book, pending=pending, done=done))

    def _write(self, book: _Book) -> None:
        write_whole(self._has.book, msgspec.json.format(msgspec.json.encode(book)))
        self._book = book


def _load(path: Path) -> _Book:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return _Book()
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from e
    try:
        return msgspec.json.decode(data, type=_Book)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        _log.error("%s is damaged, and begun anew: %s", path, e)
        return _Book()


def _said(error: AidError) -> str:
    return f"{error} ({error.cause})" if error.cause else str(error)
