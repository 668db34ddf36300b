"""How verbs speak."""

from __future__ import annotations

import json

import pytest

from aid_edge.cli.output import Output, emit, harmless, report_error, table
from device_agent.contract.errors import AidError


def test_result_is_text_or_json_with_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    emit("aid-edge/x/v1", {"n": 1}, "one", as_json=False)
    assert capsys.readouterr().out == "one\n"
    emit("aid-edge/x/v1", {"n": 1}, "one", as_json=True)
    text = capsys.readouterr().out
    assert json.loads(text) == {"schema": "aid-edge/x/v1", "n": 1}
    assert text.index("schema") < text.index('"n"')


def test_notes_go_to_stderr_and_can_be_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    Output().note("working")
    Output(quiet=True).note("silent")
    Output().detail("hidden")
    Output(verbose=True).detail("shown")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split() == ["working", "shown"]


def test_no_progress_bars_where_nobody_looks() -> None:
    assert Output().progress is False
    assert Output(quiet=True).progress is False


def test_error_without_cause_and_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report_error(AidError("no"), as_json=False)
    assert capsys.readouterr().err == "error [failed]: no\n"


def test_colour_is_left_out_where_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a terminal: no escape sequences."""
    report_error(AidError("no"), as_json=False)
    assert "\x1b" not in capsys.readouterr().err


def test_no_color_is_heard_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    report_error(AidError("no"), as_json=False)
    assert "\x1b[31m" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    report_error(AidError("no"), as_json=False)
    assert "\x1b" not in capsys.readouterr().err


def test_table_is_aligned() -> None:
    rows = [("a", 1), ("longer", 22)]
    assert table(("NAME", "N"), rows).splitlines() == ["NAME    N", "a       1", "longer  22"]


def test_table_without_rows_has_headings() -> None:
    assert table(("NAME", "N"), []) == "NAME  N"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\x9bc\x00", r"a\rb\x9bc\x00"),
        ("\u202elive", r"\u202elive"),
        ("Zürich 東京 😀 µs\n", "Zürich 東京 😀 µs\n"),
    ],
)
def test_what_devices_wrote_does_not_drive_the_terminal(
    capsys: pytest.CaptureFixture[str], text: str, shown: str
) -> None:
    emit("aid-edge/x/v1", {}, text, as_json=False)
    assert capsys.readouterr().out == shown + "\n"
    report_error(AidError("no", cause=text), as_json=False)
    assert shown in capsys.readouterr().err


def test_a_cell_and_a_line_stay_on_their_line() -> None:
    assert len(table(["A"], [["one\ntwo"]]).splitlines()) == 2
    assert harmless("one\ntwo", is_line=True) == r"one\ntwo"
