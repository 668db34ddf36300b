from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from aid_edge.catalogue.draft import read_draft, write_draft
from aid_edge.cli.main import run
from aid_edge.home import Home
from device_agent.contract.manifest import Measurement
from tests.support.releases import OTHER_PROFILE, PROFILE, make_draft, make_home, publish


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = make_home(tmp_path / "home")
    publish(home, [make_draft(tmp_path / "1"), make_draft(tmp_path / "1", profile=OTHER_PROFILE)])
    publish(home, [make_draft(tmp_path / "2", version="2.0.0", seed=1)])
    return home


def releases(home: Home, *words: str, code: int = 0) -> None:
    assert run(["releases", *words, "--home", str(home.path)]) == code


def test_list_names_every_release(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    releases(home, "list")
    text = capsys.readouterr().out
    assert text.count("digits@1.0.0") == 2
    assert text.count("digits@2.0.0") == 1
    releases(home, "list", "--profile", OTHER_PROFILE, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "aid-edge/releases/v1"
    assert [r["profile"] for r in found["releases"]] == [OTHER_PROFILE]


def test_an_empty_catalogue_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    releases(make_home(tmp_path / "new"), "list")
    assert capsys.readouterr().out == "No releases.\n"


def test_show_without_a_version_shows_the_newest_of_each_profile(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    releases(home, "show", "digits", "--json")
    found = json.loads(capsys.readouterr().out)["releases"]
    assert [(r["version"], r["profile"]) for r in found] == [
        ("2.0.0", PROFILE),
        ("1.0.0", OTHER_PROFILE),
    ]
    assert found[0]["manifest"]["golden"] == {
        "vectors": 1, "min_cosine": 0.99, "min_agreement": 1.0
    }  # fmt: skip


def test_show_is_readable(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    releases(home, "show", "digits@2.0.0")
    text = capsys.readouterr().out
    for part in ("digits@2.0.0", "sha256:", "x FP32[1, 4]", "model", "256 MiB"):
        assert part in text


def test_show_gives_figures_with_their_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_draft(tmp_path / "1")
    figures = (
        Measurement("top1", 0.9, "share", "host", "Wilson", 50, 0.78, 0.96),
        Measurement("artifact_bytes", 10, "B", "host", "size of the file", 1),
    )
    write_draft(folder, msgspec.structs.replace(read_draft(folder), measurements=figures))
    home = make_home(tmp_path / "home")
    publish(home, [folder])
    releases(home, "show", "digits")
    text = capsys.readouterr().out
    assert "top1: 0.9 share [0.78, 0.96] (host, Wilson, n=50)" in text
    assert "artifact_bytes: 10 B (host" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["letters"], "digits"),
        (["digits@9.9"], "digits@1.0.0"),
        (["digits@2.0.0", "--profile", OTHER_PROFILE], "digits@1.0.0"),
    ],
)
def test_an_unknown_release_is_a_usage_error_that_says_what_there_is(
    home: Home, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    releases(home, "show", *words, code=2)
    assert said in capsys.readouterr().err
