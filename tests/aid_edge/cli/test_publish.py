from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aid_edge.cli.main import run
from aid_edge.home import Home
from tests.support.releases import OTHER_PROFILE, PROFILE, make_draft, make_home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home")


def publish(home: Home, *words: object, code: int = 0) -> None:
    assert run(["publish", *map(str, words), "--home", str(home.path), "--json"]) == code


def test_all_releases_of_a_conversion_are_published(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_draft(tmp_path / "out")
    make_draft(tmp_path / "out", profile=OTHER_PROFILE)
    publish(home, tmp_path / "out")
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "aid-edge/publish/v1"
    found = [(r["name"], r["version"], r["profile"], r["counter"]) for r in result["releases"]]
    assert found == [("digits", "1.0.0", PROFILE, 1), ("digits", "1.0.0", OTHER_PROFILE, 1)]
    assert all(r["digest"].startswith("sha256:") and r["size"] > 0 for r in result["releases"])
    assert run(["releases", "list", "--home", str(home.path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["releases"]
    assert {r["size"] for r in listed} == {r["size"] for r in result["releases"]}


def test_an_altered_file_and_a_lost_key_say_what_to_do(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_draft(tmp_path / "out")
    (folder / "labels.txt").write_text("other\n")
    publish(home, folder, code=4)
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], "convert again" in error["hint"]) == ("digest-mismatch", True)
    (folder / "labels.txt").write_text("zero\none\n")
    (home.keys / "publisher.pem").unlink()
    publish(home, folder, code=1)
    error = json.loads(capsys.readouterr().err)["error"]
    assert "publisher.pem" in error["message"]
    assert "copy of the keys" in error["hint"]


def test_one_profile_or_one_release_folder_can_be_named(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_draft(tmp_path / "out")
    make_draft(tmp_path / "out", profile=OTHER_PROFILE)
    publish(home, folder)
    publish(home, tmp_path / "out", "--profile", OTHER_PROFILE)
    lines = capsys.readouterr().out
    assert lines.count('"fresh": true') == 2


def test_the_same_again_is_no_error_and_says_so(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_draft(tmp_path / "out")
    publish(home, tmp_path / "out")
    publish(home, tmp_path / "out")
    out, err = capsys.readouterr()
    assert '"fresh": false' in out
    assert "published already" in err


def error(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().err)["error"]
    return found


@pytest.mark.parametrize("words", [[], ["--profile", "jetson"]])
def test_a_folder_without_the_release_is_a_usage_error(
    home: Home, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    if words:
        make_draft(tmp_path / "out")
    publish(home, tmp_path / "out", *words, code=2)
    assert error(capsys)["hint"]


def test_other_bytes_under_one_version_fail(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(home, make_draft(tmp_path / "1"))
    capsys.readouterr()
    publish(home, make_draft(tmp_path / "2", seed=1), code=1)
    assert error(capsys)["code"] == "publish"


def test_an_altered_model_is_a_matter_of_trust(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_draft(tmp_path / "1")
    (folder / "model.onnx").write_bytes(b"other")
    publish(home, folder, code=4)
    assert error(capsys)["code"] == "digest-mismatch"


def test_a_passphrase_is_needed_and_must_be_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path / "home", passphrase=b"correct horse")
    folder = make_draft(tmp_path / "1")
    publish(home, folder, code=4)
    assert error(capsys)["code"] == "passphrase"
    secret = tmp_path / "secret"
    secret.write_text("battery staple")
    publish(home, folder, "--passphrase-file", secret, code=4)
    assert "wrong" in error(capsys)["message"]
    secret.write_text("correct horse\n")
    publish(home, folder, "--passphrase-file", secret)


def test_without_a_home_the_hint_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_draft(tmp_path / "1")
    assert run(["publish", str(folder), "--home", str(tmp_path / "none"), "--json"]) == 1
    assert "aid-edge init" in error(capsys)["hint"]
