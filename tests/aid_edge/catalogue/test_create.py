from __future__ import annotations

import stat
from pathlib import Path

import pytest

from aid_edge.catalogue.create import create_home
from aid_edge.catalogue.keys import (
    PROTECTED,
    KeyRole,
    PassphraseError,
    is_encrypted,
    key_file,
    load_signer,
)
from aid_edge.catalogue.metadata import read_chain
from aid_edge.errors import HomeError, UsageError
from aid_edge.home import open_home
from aid_edge.identity import Authority, hub_files, read_api_token
from tests.support.releases import NOW, make_home


def test_a_new_home_opens_and_has_everything(tmp_path: Path) -> None:
    make_home(tmp_path / "home", "fleet-a")
    home = open_home(tmp_path / "home")
    assert home.fleet == "fleet-a"
    chain = read_chain(home.metadata)
    assert [m.signed.version for m in (chain.root, chain.targets, chain.snapshot)] == [1, 1, 1]
    assert chain.root.signed.consistent_snapshot is True
    Authority.open(home.keys, home.hub)
    assert len(read_api_token(home.hub)) >= 40
    assert not list(tmp_path.glob(".home*"))


def test_private_things_are_only_their_owners(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    files = hub_files(home.hub)
    assert stat.S_IMODE(home.keys.stat().st_mode) == 0o700
    for path in [*home.keys.iterdir(), files.key, files.token]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_every_role_has_a_key_of_its_own(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    ids = {load_signer(home.keys, role).public_key.keyid for role in KeyRole}
    assert len(ids) == len(KeyRole)


def test_a_passphrase_protects_the_offline_keys_only(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", passphrase=b"correct horse")
    for role in KeyRole:
        assert is_encrypted(home.keys, role) == (role in PROTECTED)
        assert load_signer(home.keys, role, b"correct horse").public_key.keyid
    for wrong in (b"battery staple", b"", None):
        with pytest.raises(PassphraseError) as caught:
            load_signer(home.keys, KeyRole.PUBLISHER, wrong)
        assert caught.value.exit_code == 4
    pem = key_file(home.keys, KeyRole.ROOT).read_bytes()
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    key_file(home.keys, KeyRole.DIRECTOR).chmod(0o640)
    with pytest.raises(HomeError, match="open to other users"):
        load_signer(home.keys, KeyRole.DIRECTOR)


@pytest.mark.parametrize("data", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_not_a_key_is_refused(tmp_path: Path, data: bytes) -> None:
    home = make_home(tmp_path / "home")
    key_file(home.keys, KeyRole.DIRECTOR).write_bytes(data)
    with pytest.raises(HomeError):
        load_signer(home.keys, KeyRole.DIRECTOR)


def test_an_existing_home_is_not_touched(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    before = {p: p.read_bytes() for p in home.path.rglob("*") if p.is_file()}
    with pytest.raises(HomeError, match="already"):
        make_home(tmp_path / "home")
    assert {p: p.read_bytes() for p in home.path.rglob("*") if p.is_file()} == before


def test_an_empty_folder_becomes_a_home_and_another_does_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert make_home(tmp_path / "empty").config_file.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(HomeError, match="not empty"):
        make_home(tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="not a folder"):
        make_home(tmp_path / "file")


@pytest.mark.parametrize(
    ("fleet", "hosts", "error"),
    [("Fleet A", (), UsageError), ("a", ("no host!",), UsageError)],
)
def test_a_failed_init_leaves_nothing(
    tmp_path: Path, fleet: str, hosts: tuple[str, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        create_home(tmp_path / "home", fleet, hosts=hosts, now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError):
        make_home(tmp_path / "file" / "home")
