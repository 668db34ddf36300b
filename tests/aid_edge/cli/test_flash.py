from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from aid_edge.cli.main import run
from aid_edge.home import ENVIRONMENT, open_home
from aid_edge.hub.store import register_device

BROKER = "mqtts://hub.test:8883"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    monkeypatch.setenv(ENVIRONMENT, str(path))
    assert run(["--quiet", "init", str(path), "--fleet", "test-fleet"]) == 0
    return path


def flash(to: Path, *words: str, hub: str = BROKER, profile: str = "generic-x86_64") -> int:
    named = ("--hub", hub) if hub else ()
    return run(["flash", "--profile", profile, "--device", "cam", "--to", str(to), *named, *words])


def error(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    out, err = capsys.readouterr()
    assert out == ""
    found: dict[str, str] = json.loads(err)["error"]
    return found


@pytest.mark.slow
def test_makes_a_bundle_for_the_running_hub(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"url": "http://127.0.0.1:8800", "broker_url": "mqtts://localhost:8883", "pid": 1}
    (home / "hub" / "hub.json").write_text(json.dumps(state))
    capsys.readouterr()
    words = ("--runtime", "litert", "--serving-port", "0", "--json")
    cache = ("--wheel-cache", str(tmp_path / "cache"))
    assert flash(tmp_path / "cam.tar.gz", *words, *cache, hub="") == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["schema"] == "aid-edge/flash/v1"
    assert answer["broker"] == "mqtts://localhost:8883"
    assert set(answer["runtimes"]) == {"litert"}
    assert "downloading wheels" in err
    with tarfile.open(tmp_path / "cam.tar.gz") as tar:
        assert "aid-edge-cam/install.sh" in tar.getnames()

    assert flash(tmp_path / "cam.tar.gz", *words, *cache, "--force", hub="") == 0
    again = json.loads(capsys.readouterr()[0])
    assert again["wheels_cached"]
    assert again["id"] != answer["id"]
    assert flash(tmp_path / "cam", *cache, "--runtime", "litert", "--force") == 0
    out, _ = capsys.readouterr()
    assert f"install  sh {tmp_path}/cam/install.sh" in out


def test_says_when_no_broker_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert flash(tmp_path / "cam", "--json", hub="") == 2
    found = error(capsys)
    assert "which broker" in found["message"]
    assert "aid-edge hub serve" in found["hint"]
    assert flash(tmp_path / "cam", "--json", hub="ftp://x") == 2
    assert "ftp://x" in error(capsys)["message"]


def test_a_broken_state_of_the_hub_is_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for text in ("{", "[]", '{"broker_url": 3}'):
        (home / "hub" / "hub.json").write_text(text)
        assert flash(tmp_path / "cam", "--json", hub="") == 1
        assert "hub.json" in error(capsys)["message"]


def test_refuses_a_second_device_of_one_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_device(open_home(), "cam", "generic-x86_64", "seed")
    capsys.readouterr()
    assert flash(tmp_path / "cam", "--json") == 1
    found = error(capsys)
    assert found["code"] == "flash"
    assert "in the fleet already" in found["message"]
    assert not (tmp_path / "cam").exists()


def test_an_unknown_profile_lists_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert flash(tmp_path / "cam", "--json", profile="toaster") != 0
    assert "raspberry-pi-4" in error(capsys)["hint"]


def test_without_a_home_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "nowhere"))
    capsys.readouterr()
    assert flash(tmp_path / "cam", "--json") == 1
    assert "aid-edge init" in error(capsys)["hint"]
