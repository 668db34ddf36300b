from __future__ import annotations

import datetime as dt
import os
import shutil
import threading
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata, Targets

from aid_edge.catalogue import metadata as tuf
from aid_edge.catalogue.draft import draft_file, read_draft, write_draft
from aid_edge.catalogue.files import Disk
from aid_edge.catalogue.keys import KeyRole, create_keys, load_signer
from aid_edge.catalogue.repository import Repository, Signers
from aid_edge.catalogue.store import Catalogue
from aid_edge.errors import HomeError, PublishError
from aid_edge.home import Home
from device_agent.contract.errors import DigestMismatchError, SignatureError, TrustError
from device_agent.contract.names import digest_of
from device_agent.contract.tensors import Tensor, encode_frame
from device_agent.contract.trust import SIGNED_AT_FIELD
from tests.support.releases import NOW, OTHER_PROFILE, PROFILE, make_draft, make_home, publish


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home")


def versions(home: Home) -> tuple[int, int, int]:
    chain = tuf.read_chain(home.metadata)
    return (
        chain.targets.signed.version,
        chain.snapshot.signed.version,
        chain.timestamp.signed.version,
    )


class DyingDisk(Disk):
    """Ends the process, as a kill or a power cut does, instead of the n-th write."""

    def __init__(self, n: int, *, how: str) -> None:
        self._left, self._how = n, how

    def write(self, path: Path, data: bytes) -> None:
        self._die(path)
        super().write(path, data)

    def copy(self, source: Path, path: Path) -> None:
        self._die(path)
        super().copy(source, path)

    def _die(self, path: Path) -> None:
        if self._left == 0:
            if self._how == "killed":
                os._exit(9)
            raise OSError(28, "No space left on device", str(path))
        self._left -= 1


def test_a_published_release_is_found(home: Home, tmp_path: Path) -> None:
    folder = make_draft(tmp_path / "out")
    (published,) = publish(home, [folder])
    release = Catalogue(home).find("digits", "1.0.0", PROFILE)
    assert release is not None
    assert (release.digest, release.counter) == (published.digest, 1)
    for blob in release.manifest.blobs:
        path = Catalogue(home).blob(blob.digest)
        assert path is not None
        assert digest_of(path.read_bytes()) == blob.digest


def test_targets_name_digest_length_and_counter(home: Home, tmp_path: Path) -> None:
    """M-5.3-3."""
    (published,) = publish(home, [make_draft(tmp_path / "out")])
    targets = tuf.read_chain(home.metadata).targets.signed.targets
    (path, target), *rest = targets.items()
    assert rest == []
    assert path == f"releases/digits/{PROFILE}/1.0.0.json"
    assert target.custom == {"counter": 1}
    assert f"sha256:{target.hashes['sha256']}" == published.digest
    image = Catalogue(home).blob(published.digest)
    assert image is not None
    assert image.stat().st_size == target.length


def test_the_counter_grows_by_name_and_profile(home: Home, tmp_path: Path) -> None:
    """M-5.2-3."""
    one = publish(
        home,
        [
            make_draft(tmp_path / "1"),
            make_draft(tmp_path / "1", name="letters", profile=OTHER_PROFILE),
        ],
    )
    two = publish(home, [make_draft(tmp_path / "2", version="2.0.0")])
    three = publish(home, [make_draft(tmp_path / "3", version="0.1.0")])
    assert [p.counter for p in (*one, *two, *three)] == [1, 1, 2, 3]
    newest = Catalogue(home).find("digits", None, PROFILE)
    assert newest is not None
    assert newest.version == "0.1.0"  # the newest published, whatever it is called


def test_the_same_release_again_changes_nothing(home: Home, tmp_path: Path) -> None:
    """M-5.2-3."""
    (first,) = publish(home, [make_draft(tmp_path / "1")])
    publish(home, [make_draft(tmp_path / "2", version="2.0.0", seed=1)])
    before = {p: p.read_bytes() for p in home.catalogue.rglob("*") if p.is_file()}
    (again,) = publish(home, [make_draft(tmp_path / "3")])
    assert (again.digest, again.counter, again.fresh) == (first.digest, 1, False)
    assert {p: p.read_bytes() for p in home.catalogue.rglob("*") if p.is_file()} == before


def test_other_bytes_under_a_published_version_are_refused(home: Home, tmp_path: Path) -> None:
    """M-5.2-3."""
    publish(home, [make_draft(tmp_path / "1")])
    before = versions(home)
    with pytest.raises(PublishError, match="published already") as caught:
        publish(home, [make_draft(tmp_path / "2", seed=1)])
    assert "--version" in caught.value.hint
    assert versions(home) == before


def test_one_bad_draft_keeps_all_out(home: Home, tmp_path: Path) -> None:
    good = make_draft(tmp_path / "good")
    bad = make_draft(tmp_path / "bad", profile=OTHER_PROFILE)
    (bad / "model.onnx").write_bytes(b"altered")
    with pytest.raises(DigestMismatchError):
        publish(home, [good, bad])
    assert Catalogue(home).releases() == ()


@pytest.mark.parametrize("missing", ["model.onnx", "golden.bin", "labels.txt"])
def test_a_missing_file_is_named(home: Home, tmp_path: Path, missing: str) -> None:
    folder = make_draft(tmp_path / "out")
    (folder / missing).unlink()
    with pytest.raises(PublishError, match=missing):
        publish(home, [folder])


@pytest.mark.parametrize(
    ("golden", "said"),
    [
        (b"not a frame", "frame"),
        (encode_frame([Tensor("0/in/x", "FP32", (1, 4), bytes(16))]), "0/out/y"),
        (encode_frame([Tensor("0/in/x", "INT8", (1, 4), bytes(4))]), "INT8"),
        (encode_frame([Tensor("0/in/x", "FP32", (1, 5), bytes(20))]), "1, 5"),
    ],
)
def test_golden_vectors_that_do_not_fit_are_refused(
    home: Home, tmp_path: Path, golden: bytes, said: str
) -> None:
    folder = make_draft(tmp_path / "out")
    (folder / "golden.bin").write_bytes(golden)
    draft = read_draft(folder)
    files = tuple(draft_file(folder, f.role, f.name) for f in draft.files)
    write_draft(folder, msgspec.structs.replace(draft, files=files))
    with pytest.raises(PublishError, match=said):
        publish(home, [folder])


def test_a_full_disk_says_truly_whether_the_release_is_published(
    home: Home, tmp_path: Path
) -> None:
    folder = make_draft(tmp_path / "1")
    said = []
    for lasts in range(20):
        copy = Home(tmp_path / f"copy-{lasts}", home.fleet)
        shutil.copytree(home.path, copy.path)
        try:
            publish(copy, [folder], disk=DyingDisk(lasts, how="disk full"))
        except PublishError as e:
            said.append(e.hint.startswith("The releases are published"))
            assert said[-1] == bool(Catalogue(copy).releases())
        else:
            break
    assert said.count(True) == 1
    assert said.count(False) > 3


@pytest.mark.parametrize("how", ["killed", "disk full"])
def test_whatever_write_is_the_last_the_catalogue_is_valid(
    home: Home, tmp_path: Path, how: str
) -> None:
    publish(home, [make_draft(tmp_path / "1")])
    new = make_draft(tmp_path / "2", version="2.0.0", seed=1)
    seen = []
    ended = False
    while not ended:
        copy = Home(tmp_path / f"copy-{len(seen)}", home.fleet)
        shutil.copytree(home.path, copy.path)
        ended = _publish_dying(copy, new, DyingDisk(len(seen), how=how), how)
        releases = Catalogue(copy).releases()
        assert all(Catalogue(copy).blob(b.digest) for r in releases for b in r.manifest.blobs)
        seen.append([r.version for r in releases])
        publish(copy, [new])  # and the next one comes through
        assert [r.version for r in Catalogue(copy).releases()] == ["1.0.0", "2.0.0"]
    # Before each of: model (labels and golden are there), config, image, targets, snapshot,
    # timestamp; then before the index, and not at all.
    assert seen == [["1.0.0"]] * 6 + [["1.0.0", "2.0.0"]] * 2


def _publish_dying(home: Home, folder: Path, disk: Disk, how: str) -> bool:
    """Publish in a process of its own; return whether it came to the end."""
    if how != "killed":
        try:
            publish(home, [folder], disk=disk)
        except PublishError as e:
            return "No space left" not in str(e)
        return True
    pid = os.fork()
    if pid == 0:
        try:
            publish(home, [folder], disk=disk)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 0


def test_a_publication_killed_before_its_index_is_indexed_by_the_next(
    home: Home, tmp_path: Path
) -> None:
    publish(home, [make_draft(tmp_path / "1")])
    index = home.catalogue / "index.json"
    before = index.read_bytes()
    new = make_draft(tmp_path / "2", version="2.0.0", seed=1)
    publish(home, [new])
    index.write_bytes(before)  # as if killed between timestamp and index
    publish(home, [new])
    assert index.read_bytes().count(b"sha256:") == 2


def test_publishers_at_one_time_take_turns(home: Home, tmp_path: Path) -> None:
    drafts = [make_draft(tmp_path / str(i), version=f"1.{i}.0", seed=i) for i in range(6)]
    threads = [threading.Thread(target=publish, args=(home, [d])) for d in drafts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.counter for r in Catalogue(home).releases()) == [1, 2, 3, 4, 5, 6]


def test_the_publisher_signs_nothing_on_top_of_altered_targets(home: Home, tmp_path: Path) -> None:
    publish(home, [make_draft(tmp_path / "1")])
    path = home.metadata / "2.targets.json"
    path.write_bytes(path.read_bytes().replace(b'"counter":1', b'"counter":9'))
    with pytest.raises(TrustError):
        publish(home, [make_draft(tmp_path / "2", version="2.0.0")])


def test_nor_on_top_of_a_whole_chain_of_another_publisher(home: Home, tmp_path: Path) -> None:
    """Whoever can write the catalogue can replace root and all below it, but not the key."""
    other = make_home(tmp_path / "other")
    publish(other, [make_draft(tmp_path / "1")])
    for path in other.metadata.iterdir():
        (home.metadata / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SignatureError, match="this publisher"):
        publish(home, [make_draft(tmp_path / "2", version="2.0.0")])


def test_a_key_that_root_does_not_know_publishes_nothing(home: Home, tmp_path: Path) -> None:
    create_keys(tmp_path / "keys", None)
    signers = Signers(
        load_signer(tmp_path / "keys", KeyRole.PUBLISHER),
        load_signer(home.keys, KeyRole.SNAPSHOT),
        load_signer(home.keys, KeyRole.TIMESTAMP),
    )
    with pytest.raises(SignatureError):
        Repository(home).publish([make_draft(tmp_path / "1")], signers, now=NOW)
    assert Catalogue(home).releases() == ()


def test_timestamp_and_snapshot_are_signed_anew_before_they_expire(home: Home) -> None:
    repository = Repository(home)
    assert versions(home) == (1, 1, 1)
    assert repository.refresh_timestamp(now=NOW + dt.timedelta(hours=11)) is False
    assert repository.refresh_timestamp(now=NOW + dt.timedelta(hours=13)) is True
    assert versions(home) == (1, 1, 2)
    later = NOW + dt.timedelta(days=6)
    assert repository.refresh_timestamp(now=later) is True
    assert versions(home) == (1, 2, 3)
    timestamp = tuf.read_chain(home.metadata).timestamp.signed
    assert timestamp.expires == later + dt.timedelta(days=1)
    assert timestamp.unrecognized_fields[SIGNED_AT_FIELD] == int(later.timestamp())


def test_the_hub_refreshes_without_the_offline_keys(home: Home) -> None:
    for role in (KeyRole.ROOT, KeyRole.PUBLISHER):
        (home.keys / f"{role}.pem").unlink()
    assert Repository(home).refresh_timestamp(now=NOW + dt.timedelta(days=30)) is True


def test_publishing_signs_aging_targets_anew(home: Home, tmp_path: Path) -> None:
    folder = make_draft(tmp_path / "1")
    publish(home, [folder])
    before = versions(home)
    publish(home, [folder], now=NOW + dt.timedelta(days=200))
    assert versions(home)[0] == before[0] + 1
    newest = home.metadata / f"{before[0] + 1}.targets.json"
    targets = Metadata[Targets].from_bytes(newest.read_bytes()).signed
    assert targets.expires > NOW + dt.timedelta(days=500)
    assert len(targets.targets) == 1


def test_a_catalogue_that_is_gone_is_said_so(home: Home, tmp_path: Path) -> None:
    (home.metadata / "timestamp.json").unlink()
    with pytest.raises(HomeError, match=r"timestamp\.json"):
        publish(home, [make_draft(tmp_path / "1")])
    with pytest.raises(HomeError):
        Catalogue(home).releases()
