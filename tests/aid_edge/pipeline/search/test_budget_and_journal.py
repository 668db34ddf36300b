from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from aid_edge.errors import UsageError
from aid_edge.pipeline.search.budget import Budget, parse_duration
from aid_edge.pipeline.search.journal import FOLDER, Journal


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2m ", 120)]
)
def test_times_have_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["10", "0m", "-5m", "ten minutes", "", "5d", "1e9h", "200h", "nan"]
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time that a search can take") as caught:
        parse_duration(text)
    assert "10m" in caught.value.hint


def test_a_budget_ends() -> None:
    assert not Budget.starting_now(None).is_over
    assert not Budget.starting_now(1000).is_over
    assert Budget(time.monotonic() - 1).is_over


def test_a_search_that_was_cut_short_is_known_again(tmp_path: Path) -> None:
    first = Journal(tmp_path, "asked")
    first.note("made: one")
    assert not first.is_resumed
    second = Journal(tmp_path, "asked")
    assert second.is_resumed
    second.finish()
    assert Journal(tmp_path, "asked").is_resumed, "a repetition tells the same"
    assert not Journal(tmp_path, "something else").is_resumed


def test_a_finished_search_is_not_resumed(tmp_path: Path) -> None:
    Journal(tmp_path, "asked").finish()
    assert not Journal(tmp_path, "asked").is_resumed


def test_a_damaged_journal_is_begun_anew(tmp_path: Path) -> None:
    Journal(tmp_path, "asked").note("x")
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_bytes(b"\xff{")
    assert not Journal(tmp_path, "asked").is_resumed


def test_a_search_that_still_runs_elsewhere_is_not_resumed(tmp_path: Path) -> None:
    mine = Journal(tmp_path, "asked")
    parent = f" {os.getppid()}"
    mine.path.write_text(mine.path.read_text().replace(f" {os.getpid()}", parent))
    assert not Journal(tmp_path, "asked").is_resumed
