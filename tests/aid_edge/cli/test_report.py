from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import msgspec
import pytest

from aid_edge.cli.main import run
from aid_edge.pipeline.findings import ProfileFinding, Provenance, Report, SourceFinding
from device_agent.contract.errors import EXIT_FAILED, EXIT_USAGE

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    report = Report(
        source=SourceFinding(
            name="tiny", version="1.0.0", title="Tiny", spec="tiny.onnx", framework="onnx",
            task="other", parameters=1234, digest=DIGEST, inputs=(), outputs=(), operators={},
        ),
        data=(),
        profiles=(
            ProfileFinding(
                id="generic-x86_64", title="PC", digest=DIGEST, arch="x86_64", latency="host",
                threads=1, rank_by=("latency",), candidates=(), chosen=None,
                verdict="gate missed: there is no candidate", notes=("weigh this",),
            ),
        ),
        provenance=Provenance(command="", seed=0, host="here", tools={}),
    )  # fmt: skip
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report))
    return tmp_path


def test_summary_says_verdict_and_notes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "Tiny 1.0.0 (onnx, 1,234 parameters)" in text
    assert "generic-x86_64: gate missed: there is no candidate" in text
    assert "  - weigh this" in text
    assert str(folder / "report.html") in text


def test_summary_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "aid-edge/report-summary/v1"
    assert result["report"]["source"]["name"] == "tiny"


def test_a_folder_without_a_report_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(tmp_path)]) == EXIT_USAGE
    assert "report.json: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("opens", [True, False])
def test_open_shows_the_page_or_says_where_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opens: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: asked.append(url) or opens)
    assert run(["report", str(folder), "--open"]) == EXIT_FAILED
    assert "report.html: is not there" in capsys.readouterr().err
    assert asked == []
    (folder / "report.html").touch()
    assert run(["report", str(folder), "--open"]) == 0
    assert asked == [(folder / "report.html").as_uri()]
    assert ("no browser" in capsys.readouterr().err) is not opens


@pytest.fixture
def two(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    report = msgspec.json.decode((folder / "report.json").read_bytes(), type=Report)
    other = tmp_path / "other"
    other.mkdir()
    source = msgspec.structs.replace(report.source, version="2.0.0")
    later = msgspec.structs.replace(report, source=source)
    (other / "report.json").write_bytes(msgspec.json.encode(later))
    return folder, other


def test_two_reports_are_compared(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "compare.html"
    done = run(
        ["report", "--compare", str(two[0]), str(two[1] / "report.json"), "--out", str(page)]
    )
    assert done == 0
    text = capsys.readouterr().out
    assert "B: Tiny 2.0.0" in text
    assert "the same choice: none" in text
    assert "version" in text
    assert "<h1>Tiny 1.0.0" in page.read_text()


def test_a_comparison_as_json(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "c.html")]
    assert run(["report", "--compare", str(two[0]), str(two[1]), "--json", *out]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "aid-edge/report-comparison/v1"
    assert result["comparison"]["facts"] == [{"what": "version", "a": "1.0.0", "b": "2.0.0"}]


def test_different_models_need_force(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = two[1] / "report.json"
    path.write_bytes(path.read_bytes().replace(b'"name":"tiny"', b'"name":"huge"'))
    page = tmp_path / "c.html"
    asked = ["report", "--compare", str(two[0]), str(two[1]), "--out", str(page)]
    assert run(asked) == EXIT_USAGE
    assert "different models" in capsys.readouterr().err
    assert not page.exists()
    assert run([*asked, "--force"]) == 0
    assert page.exists()


@pytest.mark.parametrize(
    "arguments", [[], ["here", "--compare", "a", "b"], ["here", "--force"], ["here", "--out", "x"]]
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", *arguments]) == EXIT_USAGE
    assert "--compare" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_an_error(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "missing" / "c.html"
    assert run(["report", "--compare", str(two[0]), str(two[1]), "--out", str(page)]) == 1
    assert "cannot be written" in capsys.readouterr().err
