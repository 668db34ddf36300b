from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from aid_edge.errors import UsageError
from aid_edge.pipeline.figures import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Figure
from aid_edge.pipeline.figures import pareto as draw_pareto
from aid_edge.pipeline.findings import ProfileFinding, Report
from aid_edge.pipeline.report import read_report, render
from aid_edge.pipeline.request import ConvertResult, rows

AXE = Path(__file__).resolve().parents[2] / "support" / "axe.min.js"
CHROMIUM = Path("/usr/bin/chromium")


def pareto(profile: ProfileFinding, limit_s: float | None) -> Figure | None:
    return draw_pareto(profile, list(enumerate(profile.candidates, 1)), limit_s)


def test_page_says_verdict_figures_and_doubts(report: Report) -> None:
    page = render(report).decode()
    assert "Chosen: <strong>onnx_runtime/static-int8</strong>" in page
    assert "Gate missed: no candidate passes" in page
    assert "cosine-low" in page
    assert "undecided" in page
    assert "uncalibrated" in page
    assert "not known" not in page.split('id="raspberry-pi-4"')[0]


def test_page_needs_nothing_from_outside(report: Report) -> None:
    page = render(report).decode()
    assert not re.findall(r"<script|<link|@import|<iframe", page)
    assert re.findall(r'(?:src|href)="(?!#|data:)', page) == []
    assert "url(" not in page


def test_what_users_named_is_escaped(report: Report) -> None:
    page = render(report).decode()
    assert "<b>7</b>" not in page
    assert "Tiny &lt;net&gt;" in page
    assert "weigh this &amp; that" in page


def test_the_same_findings_give_the_same_bytes(report: Report) -> None:
    again = msgspec.json.decode(msgspec.json.encode(report), type=Report)
    assert again == report
    assert render(again) == render(report)


def test_page_is_small(report: Report) -> None:
    assert len(render(report)) < 60_000


def test_estimates_and_measurements_never_share_a_table(report: Report) -> None:
    page = render(report).decode()
    measured, estimated = page.split('id="raspberry-pi-4"')
    assert "measured here" in measured
    assert "estimate" not in measured
    assert "estimate, uncalibrated" in estimated
    assert "measured here" not in estimated


def test_points_lie_inside_the_figure_and_labels_apart(report: Report) -> None:
    figure = pareto(report.profiles[0], 0.05)
    assert figure is not None
    assert len(figure.points) == 2
    for point in figure.points:
        assert LEFT <= point.x <= WIDTH - RIGHT
        assert TOP <= point.y <= HEIGHT
        assert point.high <= point.y <= point.low
    one, two = figure.points
    assert abs(one.label_x - two.label_x) > 12 or abs(one.label_y - two.label_y) > 12
    assert one.radius > two.radius, "area is file size"
    assert one.x > two.x, "slower is further right"
    assert len(figure.x_ticks) >= 2
    assert len(figure.y_ticks) >= 2


def test_labels_of_equal_points_do_not_collide(report: Report) -> None:
    profile = report.profiles[0]
    same = tuple(msgspec.structs.replace(profile.candidates[0], id=f"r{i}/x") for i in range(4))
    figure = pareto(msgspec.structs.replace(profile, candidates=same), None)
    assert figure is not None
    places = [(p.label_x, p.label_y) for p in figure.points]
    assert len(set(places)) == 4


def test_a_profile_without_figures_has_no_picture(report: Report) -> None:
    profile = report.profiles[0]
    bare = tuple(msgspec.structs.replace(c, measurements=()) for c in profile.candidates)
    assert pareto(msgspec.structs.replace(profile, candidates=bare), None) is None


def test_rows_mark_estimates_and_the_chosen(report: Report) -> None:
    lines = rows(report)
    assert [line[0] for line in lines] == ["", "*", "", ""]
    assert lines[1][4] == "10 ms"
    assert lines[2][4] == "~20 ms"


def test_reading_back(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report))
    assert read_report(tmp_path) == report


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "is not a conversion report"),
        (b"{}", "missing required field"),
        (b"\xff\xfe", "is not a conversion report"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_report(tmp_path)
    assert "aid-edge convert" in caught.value.hint


def test_a_report_of_another_schema_is_refused(report: Report, tmp_path: Path) -> None:
    other = msgspec.structs.replace(report, schema="aid-edge/report/v9")
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(other))
    with pytest.raises(UsageError, match="report/v9"):
        read_report(tmp_path)


def test_a_notebook_shows_the_report_in_a_frame(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_bytes(render(report))
    shown = ConvertResult(report, tmp_path, {})._repr_html_()
    assert shown.startswith("<iframe")
    assert shown.count('"') == 6, "quotes of the page are escaped"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_page_has_no_accessibility_violation(
    report: Report, tmp_path: Path, scheme: str, width: int
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the dev extra: playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    (tmp_path / "report.html").write_bytes(render(report))
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run(document)")
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        browser.close()
    assert [v["id"] for v in found["violations"]] == []
    assert overflow <= 0
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
