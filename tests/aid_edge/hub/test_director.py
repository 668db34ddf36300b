from __future__ import annotations

from collections.abc import Callable

import pytest
from securesystemslib.signer import CryptoSigner

from aid_edge.catalogue.keys import KeyRole, load_signer
from aid_edge.catalogue.store import Catalogue
from aid_edge.home import Home
from aid_edge.hub.director import VALID_S, Director
from aid_edge.hub.errors import NotFoundError, RefusedError
from aid_edge.hub.queries import Queries
from aid_edge.hub.store import Store
from device_agent.contract.desired import (
    Desired,
    decode_desired,
    decode_envelope,
    pre_authentication_encoding,
)
from device_agent.contract.messages import Reported
from device_agent.contract.topics import Channel
from tests.aid_edge.hub.conftest import FLEET, Clock, ListOutbox
from tests.support.releases import OTHER_PROFILE

Release = Callable[..., str]
Registered = Callable[..., str]


@pytest.fixture
def signer(home: Home) -> CryptoSigner:
    return load_signer(home.keys, KeyRole.DIRECTOR)


@pytest.fixture
def director(store: Store, home: Home, signer: CryptoSigner, outbox: ListOutbox) -> Director:
    return Director(store, Catalogue(home), FLEET, signer, outbox)


def _told(director: Director, outbox: ListOutbox) -> Desired:
    director.publish_pending()
    return decode_desired(decode_envelope(outbox.on(Channel.DESIRED)[-1]).payload)


def test_desired_state_is_signed_by_the_director_for_that_device(  # noqa: PLR0917
    director: Director,
    outbox: ListOutbox,
    signer: CryptoSigner,
    release: Release,
    registered: Registered,
    clock: Clock,
) -> None:
    digest = release()
    registered("cam-1")
    (made,) = director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    assert (made.device, made.release, made.revision, made.before) == (
        "cam-1",
        "digits@1.0.0",
        1,
        "",
    )
    desired = _told(director, outbox)
    assert (desired.fleet, desired.device, desired.revision) == (FLEET, "cam-1", 1)
    assert [(s.slot, s.release.digest, s.counter) for s in desired.slots] == [("active", digest, 1)]
    assert desired.not_after_unix_s == clock.now + VALID_S
    envelope = decode_envelope(outbox.on(Channel.DESIRED)[-1])
    (signature,) = envelope.signatures
    assert signature.keyid == signer.public_key.keyid
    signed = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    from securesystemslib.signer import Signature

    signer.public_key.verify_signature(Signature(signature.keyid, signature.sig.hex()), signed)


def test_every_change_has_a_higher_revision(
    director: Director, outbox: ListOutbox, release: Release, registered: Registered
) -> None:
    """M-4.2-6: rolling back is a change, and so is the same release again."""
    first, second = release("1.0.0"), release("1.1.0")
    registered("cam-1")
    revisions, digests = [], []
    director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    for act in (
        lambda: director.deploy(["cam-1"], "digits", "1.1.0", actor="me"),
        lambda: director.deploy(["cam-1"], "digits", "1.1.0", actor="me"),
        lambda: director.rollback(["cam-1"], actor="me"),
    ):
        act()
        desired = _told(director, outbox)
        revisions.append(desired.revision)
        digests.append(desired.slots[0].release.digest)
    assert revisions == [2, 3, 4]
    assert digests == [second, second, first]


def test_revision_is_above_what_the_device_has_seen_already(
    director: Director, store: Store, release: Release, registered: Registered
) -> None:
    """M-4.2-6: even when the hub's database was lost and the device remembers."""
    release()
    registered("cam-1")
    with store.transaction() as transaction:
        transaction.reported("cam-1", Reported(boot_id="1" * 32, revision=41))
    (made,) = director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    assert made.revision == 42


def test_rolling_back_twice_goes_back_two_releases(
    director: Director, outbox: ListOutbox, release: Release, registered: Registered
) -> None:
    first, second, _ = release("1.0.0"), release("1.1.0"), release("1.2.0")
    registered("cam-1")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        director.deploy(["cam-1"], "digits", version, actor="me")
    director.rollback(["cam-1"], actor="me")
    assert _told(director, outbox).slots[0].release.digest == second
    director.rollback(["cam-1"], actor="me")
    assert _told(director, outbox).slots[0].release.digest == first
    with pytest.raises(RefusedError, match="cam-1 has no release to go back to"):
        director.rollback(["cam-1"], actor="me")


def test_each_device_gets_the_release_for_its_profile(
    director: Director, store: Store, release: Release, registered: Registered
) -> None:
    digests = {"pc": release(), "pi": release(profile=OTHER_PROFILE)}
    registered("pc")
    registered("pi", OTHER_PROFILE)
    made = director.deploy(["pc", "pi"], "digits", "1.0.0", actor="me")
    assert {m.device: m.digest for m in made} == digests


def test_nobody_is_told_when_one_device_is_refused(
    director: Director,
    outbox: ListOutbox,
    release: Release,
    registered: Registered,
    queries: Queries,
) -> None:
    release()
    registered("pc")
    registered("pi", OTHER_PROFILE)
    with pytest.raises(RefusedError, match=f"pi: digits@1.0.0 is for .*, not for {OTHER_PROFILE}"):
        director.deploy(["pc", "pi"], "digits", "1.0.0", actor="me")
    director.publish_pending()
    assert outbox.sent == []
    assert queries.updates("pc") == ()


@pytest.mark.parametrize(("name", "version"), [("digits", "9.9.9"), ("nothing", "1.0.0")])
def test_unknown_release_is_refused_by_name(
    director: Director, release: Release, registered: Registered, name: str, version: str
) -> None:
    release()
    registered("cam-1")
    with pytest.raises(NotFoundError, match=f"{name}@{version}"):
        director.deploy(["cam-1"], name, version, actor="me")


def test_unknown_device_is_refused_by_name(director: Director, release: Release) -> None:
    release()
    with pytest.raises(NotFoundError, match="nobody"):
        director.deploy(["nobody"], "digits", "1.0.0", actor="me")
    with pytest.raises(NotFoundError, match="nobody"):
        director.rollback(["nobody"], actor="me")


def test_dry_run_says_what_would_be_and_changes_nothing(
    director: Director,
    outbox: ListOutbox,
    release: Release,
    registered: Registered,
    queries: Queries,
) -> None:
    release()
    registered("cam-1")
    (made,) = director.deploy(["cam-1"], "digits", "1.0.0", actor="me", dry_run=True)
    assert (made.device, made.revision) == ("cam-1", 1)
    director.publish_pending()
    assert outbox.sent == []
    assert queries.updates("cam-1") == ()


def test_what_the_broker_did_not_take_is_published_again(
    director: Director, outbox: ListOutbox, release: Release, registered: Registered
) -> None:
    release()
    registered("cam-1")
    director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    outbox.is_up = False
    assert director.publish_pending() == 0
    outbox.is_up, outbox.takes = True, False
    assert director.publish_pending() == 0
    outbox.takes = True
    assert director.publish_pending() == 1
    assert director.publish_pending() == 0


def test_broker_that_came_back_is_told_everything_again(
    director: Director, outbox: ListOutbox, release: Release, registered: Registered
) -> None:
    """M-4.2-6: retained for as long as it is in force, though brokers forget."""
    release()
    for device in ("cam-1", "cam-2"):
        registered(device)
        director.deploy([device], "digits", "1.0.0", actor="me")
    director.publish_pending()
    director.broker_came()
    assert director.publish_pending() == 2
    assert len(outbox.on(Channel.DESIRED)) == 4


def test_desired_state_is_renewed_before_it_expires(
    director: Director,
    outbox: ListOutbox,
    release: Release,
    registered: Registered,
    clock: Clock,
) -> None:
    first, second = release("1.0.0"), release("1.1.0")
    registered("cam-1")
    director.deploy(["cam-1"], "digits", "1.0.0", actor="me")
    director.deploy(["cam-1"], "digits", "1.1.0", actor="me")
    assert director.renew() == 0
    clock.now += VALID_S * 0.6
    assert director.renew() == 1
    desired = _told(director, outbox)
    assert desired.revision == 3
    assert desired.slots[0].release.digest == second
    assert desired.not_after_unix_s == clock.now + VALID_S
    # A renewal is no step of its own to go back over.
    director.rollback(["cam-1"], actor="me")
    assert _told(director, outbox).slots[0].release.digest == first
