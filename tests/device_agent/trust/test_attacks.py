"""What a broker, a hub or a thief of some keys can try, each through the real child process.

The attacks are those that TUF (specification, section 1.5.2) and Uptane (standard, "Threats") name.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata, Root, Timestamp

from aid_edge.catalogue import metadata as tuf
from aid_edge.catalogue.keys import KeyRole, create_keys, load_signer
from device_agent.contract.desired import (
    PAYLOAD_TYPE,
    Envelope,
    Signature,
    decode_envelope,
    encode_envelope,
    pre_authentication_encoding,
)
from device_agent.contract.errors import (
    DigestMismatchError,
    ExpiredError,
    MalformedMessageError,
    MessageTooLargeError,
    RollbackError,
    SignatureError,
    TrustError,
    UnsupportedVersionError,
    UnverifiableError,
    WrongDeviceError,
)
from device_agent.contract.names import digest_of
from device_agent.contract.trust import SIGNED_AT_FIELD
from tests.support.releases import NOW, OTHER_PROFILE, ZERO, make_draft, publish
from tests.support.trust_world import World

DAY = dt.timedelta(days=1)


# --- the director's envelope ----------------------------------------------------------------


def test_a_desired_state_altered_after_signing_is_refused(world: World) -> None:
    """M-8.1-2, M-4.2-1."""
    envelope = decode_envelope(world.envelope())
    altered = envelope.payload.replace(b'"revision":7', b'"revision":8')
    assert altered != envelope.payload
    with pytest.raises(SignatureError):
        world.verify(encode_envelope(msgspec.structs.replace(envelope, payload=altered)))


def test_nothing_is_decoded_before_the_signature_is_verified(world: World) -> None:
    """M-4.2-1: bytes that would not even decode are a wrong signature first."""
    envelope = decode_envelope(world.envelope())
    with pytest.raises(SignatureError):
        world.verify(encode_envelope(msgspec.structs.replace(envelope, payload=b"{")))


def test_another_key_is_not_the_director(world: World, tmp_path: Path) -> None:
    """M-8.1-2: unknown key."""
    create_keys(tmp_path / "thief", None)
    thief = load_signer(tmp_path / "thief", KeyRole.DIRECTOR)
    with pytest.raises(UnverifiableError, match="not signed by the director"):
        world.verify(world.envelope(signer=thief))


def test_another_key_under_the_directors_key_id_is_a_wrong_signature(
    world: World, tmp_path: Path
) -> None:
    """M-8.1-2."""
    create_keys(tmp_path / "thief", None)
    thief = load_signer(tmp_path / "thief", KeyRole.DIRECTOR)
    envelope = decode_envelope(world.envelope(signer=thief))
    known = world.signer(KeyRole.DIRECTOR).public_key.keyid
    renamed = (Signature(known, envelope.signatures[0].sig),)
    with pytest.raises(SignatureError):
        world.verify(encode_envelope(msgspec.structs.replace(envelope, signatures=renamed)))


def test_an_envelope_without_signatures_is_refused(world: World) -> None:
    envelope = decode_envelope(world.envelope())
    with pytest.raises(UnverifiableError):
        world.verify(encode_envelope(msgspec.structs.replace(envelope, signatures=())))


def test_the_online_keys_are_not_the_director(world: World) -> None:
    for role in (KeyRole.TIMESTAMP, KeyRole.SNAPSHOT, KeyRole.PUBLISHER):
        with pytest.raises(UnverifiableError):
            world.verify(world.envelope(signer=world.signer(role)))


@pytest.mark.parametrize("other", [{"device": "camera-02"}, {"fleet": "fleet-b"}])
def test_a_desired_state_for_another_device_is_refused(
    world: World, other: dict[str, object]
) -> None:
    """M-4.2-2."""
    with pytest.raises(WrongDeviceError, match="camera-01"):
        world.verify(world.envelope(world.desired(**other)))


def test_a_replayed_lower_revision_is_refused(world: World) -> None:
    """M-4.2-3."""
    with pytest.raises(RollbackError) as caught:
        world.verify(last_revision=8)
    assert (caught.value.offered, caught.value.trusted) == (7, 8)


def test_the_same_revision_comes_again_after_a_reconnect(world: World) -> None:
    assert world.verify(last_revision=7).desired.revision == 7


def test_after_its_time_nothing_is_installed_from_it(world: World) -> None:
    """M-4.2-4."""
    late = world.envelope(world.desired(not_after_unix_s=NOW.timestamp() - 1))
    with pytest.raises(ExpiredError):
        world.verify(late)


@pytest.mark.parametrize(
    ("envelope", "error"),
    [
        (b"", MalformedMessageError),
        (b"not json", MalformedMessageError),
        (b"{" * 4000, MalformedMessageError),
        (b" " * 9000, MessageTooLargeError),
    ],
)
def test_what_is_not_an_envelope_is_refused(
    world: World, envelope: bytes, error: type[Exception]
) -> None:
    """M-4.2-7."""
    with pytest.raises(error):
        world.verify(envelope or b"\x00")


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b'{"type":"desired","v":2}', UnsupportedVersionError),
        (b'{"type":"desired","v":1}', MalformedMessageError),
        (b"[]", MalformedMessageError),
    ],
)
def test_a_signed_payload_that_is_no_desired_state_is_refused(
    world: World, payload: bytes, error: type[Exception]
) -> None:
    signed = world.signer(KeyRole.DIRECTOR).sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    signature = Signature(signed.keyid, bytes.fromhex(signed.signature))
    with pytest.raises(error):
        world.verify(encode_envelope(Envelope(payload, PAYLOAD_TYPE, (signature,))))


# --- a stolen director key: only what the publisher signed, for this profile -----------------


def test_a_release_that_the_publisher_did_not_sign_is_refused(world: World) -> None:
    """M-8.2-1."""
    with pytest.raises(UnverifiableError, match=r"signed no digits@9\.9"):
        world.verify(world.envelope(world.desired(world.slot(version="9.9", digest=ZERO))))


def test_other_bytes_under_a_signed_name_are_refused(world: World) -> None:
    """M-8.2-1."""
    with pytest.raises(DigestMismatchError) as caught:
        world.verify(world.envelope(world.desired(world.slot(digest=ZERO))))
    assert (caught.value.expected, caught.value.found) == (world.published.digest, ZERO)


def test_a_release_for_another_profile_is_refused(world: World, tmp_path: Path) -> None:
    (other,) = publish(world.home, [make_draft(tmp_path / "o", profile=OTHER_PROFILE, seed=3)])
    with pytest.raises(WrongDeviceError, match=OTHER_PROFILE):
        world.verify(world.envelope(world.desired(world.slot(other))))
    with pytest.raises(WrongDeviceError):
        world.verify(profile=OTHER_PROFILE)


def test_a_release_only_for_another_profile_is_refused(world: World, tmp_path: Path) -> None:
    draft = make_draft(tmp_path / "o", name="letters", profile=OTHER_PROFILE)
    (other,) = publish(world.home, [draft])
    with pytest.raises(WrongDeviceError, match=OTHER_PROFILE):
        world.verify(world.envelope(world.desired(world.slot(other))))


def test_a_counter_that_the_publisher_did_not_sign_is_refused(world: World) -> None:
    with pytest.raises(TrustError, match="counter"):
        world.verify(world.envelope(world.desired(world.slot(counter=2))))


# --- a broker or hub that alters, withholds or replays metadata ------------------------------


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_altered_metadata_is_refused(world: World, name: str) -> None:
    """M-8.2-2."""

    def altering(asked: str, max_bytes: int) -> bytes | None:
        data = world.fetch(asked, max_bytes)
        if asked == name and data is not None:
            return data.replace(b'"spec_version":"1.0.', b'"spec_version":"1.1.')
        return data

    error = SignatureError if name == "timestamp.json" else DigestMismatchError
    with pytest.raises(error) as caught:
        world.verify(fetch=altering)
    if isinstance(caught.value, DigestMismatchError):
        stored = (world.home.metadata / name).read_bytes()
        assert caught.value.expected == digest_of(stored)
        assert caught.value.found != caught.value.expected


@pytest.mark.parametrize("role", [KeyRole.SNAPSHOT, KeyRole.TIMESTAMP, KeyRole.DIRECTOR])
def test_online_keys_cannot_sign_targets(world: World, tmp_path: Path, role: KeyRole) -> None:
    """A hub that was taken over has these keys, and can install nothing of its own."""
    evil = make_draft(tmp_path / "evil", version="6.6.6", seed=66)
    targets = tuf.new_targets(world.chain().targets.signed, NOW)
    path = "releases/digits/generic-x86_64/6.6.6.json"
    image = (evil / "model.onnx").read_bytes()[:100]
    targets.targets[path] = tuf.new_target(path, image, 2)
    world.sign_up(tuf.sign_targets(targets, world.signer(role)))
    slot = world.slot(version="6.6.6", digest=digest_of(image), counter=2)
    with pytest.raises(SignatureError, match="targets"):
        world.verify(world.envelope(world.desired(slot)))


def test_an_older_timestamp_is_refused(world: World) -> None:
    """M-8.2-2: rollback."""
    old = (world.home.metadata / "timestamp.json").read_bytes()
    world.refresh(NOW + DAY)
    world.verify(now=NOW + DAY)
    (world.home.metadata / "timestamp.json").write_bytes(old)
    with pytest.raises(RollbackError) as caught:
        world.verify(now=NOW + DAY / 2)
    assert (caught.value.offered, caught.value.trusted) == (2, 3)


def test_older_targets_under_new_online_signatures_are_refused(
    world: World, tmp_path: Path
) -> None:
    """M-8.2-2: stolen online keys cannot bring a withdrawn state of targets back."""
    old = world.chain().targets
    publish(world.home, [make_draft(tmp_path / "2", version="2.0.0", seed=2)])
    world.verify()
    world.sign_up(old)
    with pytest.raises(RollbackError) as caught:
        world.verify()
    assert (caught.value.offered, caught.value.trusted) == (2, 3)
    assert "targets" in caught.value.what


def test_a_frozen_timestamp_expires(world: World) -> None:
    """M-8.2-2: freeze."""
    with pytest.raises(ExpiredError, match="timestamp"):
        world.verify(now=NOW + 2 * DAY)


def test_frozen_metadata_expires_for_a_device_that_has_it_already(world: World) -> None:
    world.verify()
    with pytest.raises(ExpiredError):
        world.verify(now=NOW + 2 * DAY)


def test_an_expired_root_is_refused(world: World) -> None:
    with pytest.raises(ExpiredError, match="root"):
        world.verify(world.envelope(world.desired(not_after_unix_s=1e11)), now=NOW + 11 * 365 * DAY)


def test_snapshot_and_targets_of_different_times_do_not_mix(world: World, tmp_path: Path) -> None:
    """Mix-and-match: snapshot 3 says targets 3; the broker sends targets 2 under that name."""
    old = (world.home.metadata / "2.targets.json").read_bytes()
    publish(world.home, [make_draft(tmp_path / "2", version="2.0.0", seed=2)])
    (world.home.metadata / "3.targets.json").write_bytes(old)
    with pytest.raises((DigestMismatchError, UnverifiableError)):
        world.verify()


@pytest.mark.parametrize(
    "name", ["timestamp.json", "2.snapshot.json", "2.targets.json", "2.root.json"]
)
def test_endless_data_is_cut_off(world: World, name: str) -> None:
    def endless(asked: str, max_bytes: int) -> bytes | None:
        return b" " * (max_bytes + 1) if asked == name else world.fetch(asked, max_bytes)

    with pytest.raises(UnverifiableError, match="at most"):
        world.verify(fetch=endless)


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_missing_metadata_is_said_so(world: World, name: str) -> None:
    """M-4.8-3, and the explicit "not found" of M-4.8-1."""
    with pytest.raises(UnverifiableError, match="not to be had"):
        world.verify(fetch=lambda asked, n: None if asked == name else world.fetch(asked, n))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\x00", b"[" * 5000, b'{"signed": {}}'])
@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_metadata_that_is_none_is_refused(world: World, name: str, data: bytes) -> None:
    with pytest.raises(TrustError):
        world.verify(fetch=lambda asked, n: data if asked == name else world.fetch(asked, n))


def test_a_root_of_somebody_else_is_refused(world: World, tmp_path: Path) -> None:
    thieves = create_keys(tmp_path / "thief", None)
    root = tuf.new_root(thieves, NOW)
    root.signed.version = 2
    root.sign(thieves[KeyRole.ROOT])
    world.put(root)
    with pytest.raises(SignatureError):
        world.verify()


def test_root_rotates_with_both_signatures(world: World, tmp_path: Path) -> None:
    rotate(world, tmp_path, KeyRole.TIMESTAMP)
    assert world.verify().releases[0].digest == world.published.digest
    assert (world.paths.metadata / "root_history" / "2.root.json").exists()


def rotate(world: World, tmp_path: Path, role: KeyRole) -> None:
    """Give ``role`` another key: what the owner does after a theft."""
    chain = world.chain()
    fresh = create_keys(tmp_path / "fresh", None)[role]
    root: Metadata[Root] = Metadata(chain.root.signed)
    root.signed.version = 2
    name = {KeyRole.TIMESTAMP: "timestamp", KeyRole.SNAPSHOT: "snapshot"}[role]
    root.signed.revoke_key(world.signer(role).public_key.keyid, name)
    root.signed.add_key(fresh.public_key, name)
    root.sign(world.signer(KeyRole.ROOT))
    world.put(root)
    file = world.home.keys / f"{role}.pem"
    file.write_bytes((tmp_path / "fresh" / f"{role}.pem").read_bytes())
    world.put(tuf.sign_timestamp(None, chain.snapshot, world.signer(KeyRole.TIMESTAMP), NOW))


def test_fast_forwarded_versions_are_forgotten_with_the_key(world: World, tmp_path: Path) -> None:
    """A stolen timestamp key signs version 2^31, so that no honest one is newer."""
    chain = world.chain()
    ahead = Timestamp(
        version=2**31, expires=NOW + DAY, snapshot_meta=chain.timestamp.signed.snapshot_meta
    )
    signed: Metadata[Timestamp] = Metadata(ahead)
    signed.sign(world.signer(KeyRole.TIMESTAMP))
    honest = (world.home.metadata / "timestamp.json").read_bytes()
    world.put(signed)
    world.verify()
    (world.home.metadata / "timestamp.json").write_bytes(honest)
    with pytest.raises(RollbackError):
        world.verify()
    rotate(world, tmp_path, KeyRole.TIMESTAMP)
    assert world.verify().releases


def test_a_fast_forwarded_clock_is_forgotten_with_the_key(world: World, tmp_path: Path) -> None:
    """A stolen timestamp key signs a time far ahead, so that all honest metadata is expired."""
    chain = world.chain()
    stolen = world.signer(KeyRole.TIMESTAMP)
    ahead = tuf.sign_timestamp(chain.timestamp.signed, chain.snapshot, stolen, NOW + 300 * DAY)
    world.put(ahead)
    assert world.verify().clock_floor_unix_s == (NOW + 300 * DAY).timestamp()
    world.put(tuf.sign_timestamp(ahead.signed, chain.snapshot, stolen, NOW))
    with pytest.raises(ExpiredError):
        world.verify()
    rotate(world, tmp_path, KeyRole.TIMESTAMP)
    assert world.verify().clock_floor_unix_s == NOW.timestamp()


# --- clocks ---------------------------------------------------------------------------------

EPOCH = dt.datetime(1970, 1, 1, 0, 1, tzinfo=dt.UTC)


def test_a_device_that_starts_in_1970_installs(world: World) -> None:
    verified = world.verify(now=EPOCH)
    assert verified.releases
    assert verified.clock_floor_unix_s == NOW.timestamp()


def test_a_device_in_1970_cannot_be_held_on_metadata_it_has_gone_beyond(world: World) -> None:
    """M-8.2-2: the newest signed time is the floor of its clock."""
    world.refresh(NOW + 5 * DAY)
    assert world.verify(now=EPOCH).clock_floor_unix_s == (NOW + 5 * DAY).timestamp()
    short = world.envelope(world.desired(not_after_unix_s=(NOW + 4 * DAY).timestamp()))
    with pytest.raises(ExpiredError):
        world.verify(short, now=EPOCH)


def test_metadata_that_shows_a_later_time_ends_an_old_desired_state(world: World) -> None:
    """M-4.2-4: known only once the metadata has come."""
    short = world.envelope(world.desired(not_after_unix_s=(NOW + DAY).timestamp()))
    world.refresh(NOW + 2 * DAY)
    with pytest.raises(ExpiredError):
        world.verify(short, now=EPOCH)


@pytest.mark.parametrize("now", [-1e300, 1e300])
def test_an_absurd_clock_is_no_crash(world: World, now: float) -> None:
    if now < 0:
        assert world.verify(now=now).releases
    else:
        with pytest.raises(ExpiredError):
            world.verify(now=now)


def test_the_signed_time_is_in_root_and_timestamp(world: World) -> None:
    chain = world.chain()
    for metadata in (chain.root, chain.timestamp):
        assert metadata.signed.unrecognized_fields[SIGNED_AT_FIELD] == int(NOW.timestamp())
