from __future__ import annotations

from pathlib import Path

import pytest

from aid_edge.catalogue.store import Catalogue
from aid_edge.errors import HomeError
from device_agent.contract.errors import DigestMismatchError, MalformedMessageError, TrustError
from tests.support.releases import OTHER_PROFILE, PROFILE, make_draft, make_home, publish


def test_releases_are_listed_and_found_by_name_version_and_profile(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    catalogue = Catalogue(home)
    assert catalogue.releases() == ()
    publish(home, [make_draft(tmp_path / "1"), make_draft(tmp_path / "1", profile=OTHER_PROFILE)])
    publish(home, [make_draft(tmp_path / "2", version="2.0.0", seed=1)])
    listed = [(r.name, r.version, r.profile, r.counter) for r in catalogue.releases()]
    assert listed == [
        ("digits", "1.0.0", PROFILE, 1),
        ("digits", "2.0.0", PROFILE, 2),
        ("digits", "1.0.0", OTHER_PROFILE, 1),
    ]
    found = catalogue.find("digits", None, PROFILE)
    assert found is not None
    assert (found.version, found.ref.digest) == ("2.0.0", found.digest)
    assert catalogue.find("digits", "2.0.0", OTHER_PROFILE) is None
    assert catalogue.find("letters", None, PROFILE) is None


@pytest.mark.parametrize(
    "name",
    [
        *("../aid-edge.toml", "../../keys/root.pem", "1.root.pem", "root.json", "0.root.json"),
        *(".lock", "", "99.root.json", "1.snapshot.json/", "timestamp.json\n"),
    ],
)
def test_only_metadata_that_exists_is_given_out(tmp_path: Path, name: str) -> None:
    assert Catalogue(make_home(tmp_path / "home")).metadata(name) is None


def test_metadata_is_given_out_as_it_is_stored(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    for name in ("1.root.json", "1.targets.json", "1.snapshot.json", "timestamp.json"):
        assert Catalogue(home).metadata(name) == (home.metadata / name).read_bytes()


def test_a_blob_is_given_out_by_digest_only(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    (published,) = publish(home, [make_draft(tmp_path / "1")])
    assert Catalogue(home).blob(published.digest) is not None
    assert Catalogue(home).blob("sha256:" + "f" * 64) is None
    with pytest.raises(MalformedMessageError):
        Catalogue(home).blob("sha256:../../../keys/root.pem")


def test_altered_metadata_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    publish(home, [make_draft(tmp_path / "1")])
    path = home.metadata / "2.targets.json"
    path.write_bytes(path.read_bytes().replace(b"digits", b"d1gits"))
    with pytest.raises(TrustError):
        Catalogue(home).releases()


def test_an_altered_manifest_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    (published,) = publish(home, [make_draft(tmp_path / "1")])
    path = Catalogue(home).blob(published.digest)
    assert path is not None
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DigestMismatchError):
        Catalogue(home).releases()
    path.unlink()
    with pytest.raises(HomeError):
        Catalogue(home).releases()
