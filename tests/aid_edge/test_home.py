from __future__ import annotations

from pathlib import Path

import pytest

from aid_edge.errors import HomeError
from aid_edge.home import ENVIRONMENT, default_path, open_home


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "aid-edge.toml").write_text(text)
    return folder


def test_a_home_has_its_places(tmp_path: Path) -> None:
    home = open_home(write(tmp_path / "home", 'schema = 1\nfleet = "fleet-a"\n'))
    assert home.fleet == "fleet-a"
    assert home.metadata == home.catalogue / "metadata"
    assert {p.parent for p in (home.keys, home.catalogue, home.hub, home.config_file)} == {
        home.path
    }


def test_the_environment_names_the_default_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(write(tmp_path / "home", 'schema = 1\nfleet = "a"\n')))
    assert default_path() == tmp_path / "home"
    assert open_home().fleet == "a"
    monkeypatch.delenv(ENVIRONMENT)
    assert default_path() == Path.home() / ".aid-edge"


def test_a_folder_that_is_no_home_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="not an AID Edge home") as caught:
        open_home(tmp_path)
    assert "aid-edge init" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "schema = 2\n", "schema = \n", "schema = '1'\nfleet = 'a'\n", "\x00"]
)
def test_a_broken_configuration_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(HomeError, match=r"aid-edge\.toml"):
        open_home(write(tmp_path / "home", text))


@pytest.mark.parametrize("fleet", ["", "A", "a/b", "+"])
def test_a_fleet_name_that_cannot_be_in_a_topic_is_refused(tmp_path: Path, fleet: str) -> None:
    with pytest.raises(HomeError, match=r"aid-edge\.toml: fleet"):
        open_home(write(tmp_path / "home", f"schema = 1\nfleet = '{fleet}'\n"))
