from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from aid_edge.catalogue.keys import KeyRole, is_encrypted, load_signer
from aid_edge.cli.main import cli, run
from aid_edge.home import ENVIRONMENT, open_home


def test_init_makes_a_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "home"), "--fleet", "fleet-a", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "schema": "aid-edge/init/v1",
        "home": str(tmp_path / "home"),
        "fleet": "fleet-a",
        "encrypted": False,
    }
    assert "file permissions only" in err
    assert open_home(tmp_path / "home").fleet == "fleet-a"


def test_init_without_a_folder_makes_the_default_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "deep" / "home"))
    assert run(["init", "--fleet", "fleet-a"]) == 0
    assert open_home().path == tmp_path / "deep" / "home"


def test_init_takes_a_passphrase_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    words = ["init", str(tmp_path / "home"), "--fleet", "a", "--passphrase-file", str(secret)]
    assert run(words) == 0
    assert is_encrypted(tmp_path / "home" / "keys", KeyRole.PUBLISHER)


def test_init_asks_for_a_passphrase_twice(tmp_path: Path) -> None:
    words = ["init", str(tmp_path / "home"), "--fleet", "a", "--passphrase"]
    runner = CliRunner()
    result = runner.invoke(cli, words, input="correct horse\ncorrect mule\n")
    assert result.exit_code != 0
    assert not (tmp_path / "home").exists()
    result = runner.invoke(cli, words, input="correct horse\ncorrect horse\n")
    assert result.exit_code == 0
    assert "correct horse" not in result.output
    assert load_signer(tmp_path / "home" / "keys", KeyRole.ROOT, b"correct horse")


@pytest.mark.parametrize("content", [None, b"", b"\n", b"x" * 2000])
def test_a_passphrase_file_that_holds_none_is_refused(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    words = ["init", str(tmp_path / "home"), "--fleet", "a", "--passphrase-file", str(secret)]
    assert run(words) == 2
    assert "secret" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_a_second_init_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["init", str(tmp_path / "home"), "--fleet", "fleet-a"]
    assert run(words) == 0
    assert run(words) == 1
    assert "already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--fleet", "Fleet A"], [], ["--fleet", "a", "--host", "not a host"]]
)
def test_a_wrong_call_leaves_nothing(tmp_path: Path, words: list[str]) -> None:
    assert run(["init", str(tmp_path / "home"), *words]) == 2
    assert list(tmp_path.iterdir()) == []
