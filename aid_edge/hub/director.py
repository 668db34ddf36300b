"""Decides and signs what each device should run, and keeps it at the broker (contract §4.2)."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import msgspec
from securesystemslib.signer import Signer

from aid_edge.catalogue.director import sign_desired
from aid_edge.catalogue.store import Release
from aid_edge.hub.errors import NotFoundError, RefusedError
from aid_edge.hub.outbox import Outbox
from aid_edge.hub.schema import DAY_S
from aid_edge.hub.store import DesiredRow, DeviceFacts, Store, Transaction
from aid_edge.hub.trials import TrialRow, new_id, wanted
from device_agent.contract.desired import MAX_TRIALS, Desired, DesiredSlot
from device_agent.contract.errors import AidError
from device_agent.contract.messages import ReleaseRef
from device_agent.contract.topics import Channel

VALID_S = 7 * DAY_S
"""How long a desired state may be installed from; what runs goes on running after it."""
RENEW_BEFORE_S = VALID_S / 2
MAX_REVISION = 2**62
PUBLISH_EVERY_S = 2.0
UPKEEP_EVERY_S = 3600.0
RECEIPT_TIMEOUT_S = 5.0
MAX_NAMED = 5
"""Refused devices that an error names."""

_log = logging.getLogger(__name__)


class ReleaseFinder(Protocol):
    """The catalogue, as far as the director needs it."""

    def find(self, name: str, version: str | None, profile: str) -> Release | None:
        """Return the release, or None when there is none."""

    def releases(self) -> Sequence[Release]:
        """Return all releases."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What one device is told to run; ``before`` is what it was told until now, or empty."""

    device: str
    release: str
    digest: str
    revision: int
    before: str


class Director:
    """The one place where desired state is made.

    Args:
        store: Holds every desired state that was ever signed.
        catalogue: Where releases are found.
        fleet: Goes into every desired state.
        signer: Signs with the director's key.
        outbox: Where desired states go.
        on_change: Called with a device's id after its desired state changed.
    """

    def __init__(
        self,
        store: Store,
        catalogue: ReleaseFinder,
        fleet: str,
        signer: Signer,
        outbox: Outbox,
        *,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._fleet = fleet
        self._signer = signer
        self._outbox = outbox
        self._on_change = on_change
        self.wake = threading.Event()
        self._publish_all = threading.Event()
        self._publish_all.set()

    def deploy(
        self, devices: Sequence[str], name: str, version: str, *, actor: str, dry_run: bool = False
    ) -> list[Assignment]:
        """Make ``devices`` run ``name@version``, each in the release for its own profile.

        Either all of them are told, or none. With ``dry_run`` none is, and what would be is
        returned.

        Raises:
            NotFoundError: There is no such release, or a device is not known.
            RefusedError: There is no release of this version for the profile of a device.
            HomeError: The catalogue or a key cannot be read.
            TrustError: The catalogue was altered.
        """
        known = [r for r in self._catalogue.releases() if (r.name, r.version) == (name, version)]
        if not known:
            raise NotFoundError(
                f"there is no release {name}@{version}", hint="`aid-edge releases list` lists them."
            )
        by_profile = {r.profile: r for r in known}

        def choose(_: Transaction, facts: DeviceFacts) -> _Choice:
            release = by_profile.get(facts.profile)
            if release is None:
                raise RefusedError(
                    f"{facts.device}: {name}@{version} is for {', '.join(sorted(by_profile))}, "
                    f"not for {facts.profile or 'a device that never said its profile'}",
                    hint="Convert and publish the model for that profile.",
                )
            return _Choice(release.ref, release.counter, None)

        return self._assign("deploy", devices, choose, actor=actor, dry_run=dry_run)

    def rollback(
        self, devices: Sequence[str], *, actor: str, dry_run: bool = False
    ) -> list[Assignment]:
        """Make ``devices`` run the release that each was told to run before its present one.

        The older release is issued again, under a higher revision. Rolling back twice goes back
        two releases.

        Raises:
            NotFoundError: A device is not known.
            RefusedError: A device has no release to go back to.
        """

        def choose(transaction: Transaction, facts: DeviceFacts) -> _Choice:
            row = previous(transaction.desired(facts.device))
            if row is None:
                raise RefusedError(
                    f"{facts.device} has no release to go back to",
                    hint="Deploy the release that you want by its name and version.",
                )
            release = self._catalogue.find(row.name, row.version, facts.profile)
            if release is None or release.digest != row.digest:
                raise RefusedError(
                    f"{facts.device}: {row.name}@{row.version} is no longer in the catalogue"
                )
            return _Choice(release.ref, release.counter, row.restores or row.revision)

        return self._assign("rollback", devices, choose, actor=actor, dry_run=dry_run)

    def try_out(
        self,
        device: str,
        releases: Sequence[tuple[str, str]],
        *,
        runs: int,
        warmup: int,
        actor: str,
    ) -> list[TrialRow]:
        """Ask ``device`` to measure releases beside what it serves, which stays as it is.

        Args:
            device: Its id.
            releases: Name and version of each.
            runs: Measured runs of each.
            warmup: Runs before them.
            actor: Who asks.

        Raises:
            NotFoundError: The device or a release for its profile is not known.
            RefusedError: It has too many trials to do already.
        """
        asked: list[TrialRow] = []
        now = self._store.clock()
        with self._store.transaction() as transaction:
            facts = _known(transaction, device)
            waiting = transaction.pending_trials(device, now)
            if len(waiting) + len(releases) > MAX_TRIALS:
                raise RefusedError(
                    f"{device} has {len(waiting)} trials to do; at most {MAX_TRIALS} may wait",
                    hint="Wait until they are done.",
                )
            for name, version in releases:
                release = self._catalogue.find(name, version, facts.profile)
                if release is None:
                    raise NotFoundError(
                        f"there is no release {name}@{version} for {facts.profile or device}",
                        hint="`aid-edge releases list` lists them.",
                    )
                row = TrialRow(
                    id=new_id(), device=device, release=release.ref, counter=release.counter,
                    runs=runs, warmup=warmup, asked_unix_s=now, actor=actor,
                )  # fmt: skip
                transaction.add_trial(row)
                asked.append(row)
            self._issue(transaction, "trial", facts, _same(transaction, device), actor)
        names = ", ".join(f"{name}@{version}" for name, version in releases)
        self._audit(actor, "trial", [device], "ok", names)
        self.wake.set()
        self._on_change(device)
        return asked

    def withdraw(self, device: str, ids: Sequence[str], *, actor: str) -> None:
        """Ask ``device`` no more for these trials.

        Raises:
            NotFoundError: The device is not known.
        """
        with self._store.transaction() as transaction:
            facts = _known(transaction, device)
            transaction.withdraw_trials(device, tuple(ids))
            self._issue(transaction, "trial", facts, _same(transaction, device), actor)
        self._audit(actor, "trial", [device], "ok", f"withdrawn: {', '.join(ids)}"[:1000])
        self.wake.set()
        self._on_change(device)

    def renew(self) -> int:
        """Sign again what will soon be too old to install from; return for how many devices."""
        soon = self._store.clock() + VALID_S - RENEW_BEFORE_S
        with self._store.transaction() as transaction:
            due = [
                row
                for row in transaction.desired_in_force(unpublished_only=False)
                if row.not_after_unix_s < soon
            ]
            for row in due:
                facts = transaction.facts(row.device)
                if facts is not None:
                    self._issue(transaction, "renewal", facts, _again(row), "hub")
        self.wake.set()
        return len(due)

    def publish_pending(self) -> int:
        """Hand to the broker what it does not have yet; return how many desired states it took.

        After :meth:`broker_came` that is everything: a broker may have forgotten.
        """
        everything = self._publish_all.is_set()
        self._publish_all.clear()
        with self._store.transaction() as transaction:
            rows = transaction.desired_in_force(unpublished_only=not everything)
        sent = [
            (row, receipt)
            for row in rows
            if (receipt := self._outbox.publish(row.device, Channel.DESIRED, row.envelope))
        ]
        done = [row for row, receipt in sent if receipt.wait(RECEIPT_TIMEOUT_S)]
        if done:
            with self._store.transaction() as transaction:
                for row in done:
                    transaction.set_published(row.device, row.revision)
        if everything and len(done) < len(rows):
            self._publish_all.set()
        return len(done)

    def broker_came(self) -> None:
        """Say that there is a new connection; what is in force is published again."""
        self._publish_all.set()
        self.wake.set()

    def _assign(
        self,
        kind: str,
        devices: Sequence[str],
        choose: Callable[[Transaction, DeviceFacts], _Choice],
        *,
        actor: str,
        dry_run: bool,
    ) -> list[Assignment]:
        refused: list[AidError] = []
        made: list[Assignment] = []
        unique = list(dict.fromkeys(devices))
        try:
            with self._store.transaction() as transaction:
                for device in unique:
                    try:
                        facts = _known(transaction, device)
                        choice = choose(transaction, facts)
                    except (NotFoundError, RefusedError) as e:
                        refused.append(e)
                        continue
                    made.append(self._issue(transaction, kind, facts, choice, actor))
                if refused or dry_run:
                    raise _Undo  # noqa: TRY301 - leaves the transaction without a commit
        except _Undo:
            if refused:
                error = _joined(refused)
                self._audit(actor, kind, unique, "refused", str(error))
                raise error from refused[0]
            return made
        self._audit(actor, kind, unique, "ok", made[0].release if made else "")
        self.wake.set()
        for device in unique:
            self._on_change(device)
        return made

    def _issue(
        self,
        transaction: Transaction,
        kind: str,
        facts: DeviceFacts,
        choice: _Choice | None,
        actor: str,
    ) -> Assignment:
        now = self._store.clock()
        revision = facts.revision + 1
        if revision > MAX_REVISION:
            raise RefusedError(f"{facts.device} reports revision {facts.revision}: out of bounds")
        desired = Desired(
            fleet=self._fleet,
            device=facts.device,
            revision=revision,
            not_after_unix_s=now + VALID_S,
            slots=()
            if choice is None
            else (DesiredSlot(slot="active", release=choice.release, counter=choice.counter),),
            trials=tuple(wanted(t) for t in transaction.pending_trials(facts.device, now)),
        )
        named = choice or _NOTHING
        before = transaction.desired(facts.device)
        transaction.add_desired(
            DesiredRow(
                device=facts.device,
                revision=revision,
                kind=kind,
                name=named.release.name,
                version=named.release.version,
                digest=named.release.digest,
                counter=named.counter,
                restores=named.restores,
                not_after_unix_s=desired.not_after_unix_s,
                created_unix_s=now,
                actor=actor,
                envelope=sign_desired(desired, self._signer),
            )
        )
        return Assignment(
            device=facts.device,
            release=_named(named.release.name, named.release.version),
            digest=named.release.digest,
            revision=revision,
            before=_named(before[0].name, before[0].version) if before else "",
        )

    def _audit(
        self, actor: str, kind: str, devices: Sequence[str], outcome: str, detail: str
    ) -> None:
        with self._store.transaction() as transaction:
            transaction.audit(actor, kind, " ".join(devices[:1000]), outcome, detail)


class DirectorLoop:
    """Publishes what is pending and keeps signatures fresh, in a thread of its own.

    Args:
        director: Whose desired states.
        refresh_timestamp: Signs the catalogue's timestamp anew when it is due.
    """

    def __init__(
        self, director: Director, refresh_timestamp: Callable[[dt.datetime], object]
    ) -> None:
        self._director = director
        self._refresh_timestamp = refresh_timestamp
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="director")

    @property
    def is_alive(self) -> bool:
        """Whether it works; False after a bug ended the thread."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._director.wake.set()
        self._thread.join()

    def _run(self) -> None:
        upkeep_at_s = time.monotonic()
        while not self._stop.is_set():
            if time.monotonic() >= upkeep_at_s:
                _attempt("renewal of desired states", self._director.renew)
                _attempt("renewal of the catalogue's timestamp", self._refresh)
                upkeep_at_s = time.monotonic() + UPKEEP_EVERY_S
            self._director.wake.clear()
            _attempt("publication of desired states", self._director.publish_pending)
            self._director.wake.wait(PUBLISH_EVERY_S)

    def _refresh(self) -> object:
        return self._refresh_timestamp(dt.datetime.now(dt.UTC))


class _Choice(msgspec.Struct, frozen=True):
    release: ReleaseRef
    counter: int
    restores: int | None


_NOTHING = _Choice(ReleaseRef("", "", ""), 0, None)


def _same(transaction: Transaction, device: str) -> _Choice | None:
    """Return what ``device`` was told to run last, to be told again beside something new."""
    history = transaction.desired(device)
    return _again(history[0]) if history else None


def _again(row: DesiredRow) -> _Choice | None:
    if not row.name:
        return None
    release = ReleaseRef(row.name, row.version, row.digest)
    return _Choice(release, row.counter, row.restores or row.revision)


def _named(name: str, version: str) -> str:
    return f"{name}@{version}" if name else ""


class _Undo(Exception):  # noqa: N818 - not an error
    """Leaves a transaction without a commit."""


def previous(history: Sequence[DesiredRow]) -> DesiredRow | None:
    """Return what a rollback goes back to, of a device's desired states, newest first.

    A rollback or renewal stands for the state that it issued again, so a second rollback goes
    back further instead of forth.
    """
    if not history:
        return None
    current = history[0]
    origin = current.restores or current.revision
    older = (r for r in history if r.revision < origin and r.digest)
    return next((r for r in older if r.digest != current.digest), None)


def _known(transaction: Transaction, device: str) -> DeviceFacts:
    facts = transaction.facts(device)
    if facts is None:
        raise NotFoundError(
            f"there is no device {device!r}", hint="`aid-edge devices list` lists them."
        )
    return facts


def _joined(refused: Sequence[AidError]) -> AidError:
    named = "; ".join(str(e) for e in refused[:MAX_NAMED])
    more = f"; and {len(refused) - MAX_NAMED} more" if len(refused) > MAX_NAMED else ""
    return type(refused[0])(f"{named}{more}", cause="Nothing was changed.", hint=refused[0].hint)


def _attempt(what: str, work: Callable[[], object]) -> None:
    try:
        work()
    except AidError as e:
        # Tried again with the next round; the operator must see it.
        _log.error("%s: %s", what, e)
