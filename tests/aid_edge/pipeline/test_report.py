from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aid_edge.errors import UsageError
from aid_edge.pipeline.compare import compare
from aid_edge.pipeline.figures import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Figure
from aid_edge.pipeline.figures import pareto as draw_pareto
from aid_edge.pipeline.findings import Candidate, ProfileFinding, Report
from aid_edge.pipeline.report import MAX_PAGE_BYTES, read_report, render, render_comparison
from aid_edge.pipeline.request import ConvertResult, rows
from tests.support.full_report import full_report

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


def test_a_notebook_shows_verdict_and_candidates(report: Report, tmp_path: Path) -> None:
    shown = ConvertResult(report, tmp_path / "<out>", {})._repr_html_()
    assert len(shown) < 10_000
    assert not re.findall(r"<script|<style|<iframe|<html", shown)
    assert "take static-int8 in onnx_runtime: 0.25x the size of float" in shown
    assert "Do no harm: better than float here" in shown
    assert "<i>~20 ms</i>" in shown, "an estimate is marked"
    assert "Tiny &lt;net&gt;" in shown
    assert "&lt;out&gt;/report.html" in shown


def test_every_section_has_its_place() -> None:
    page = render(full_report(candidates=7, profiles=3)).decode()
    for words in (
        "All profiles", "What to do next", "Cost against quality", "Why not cheaper",
        "24 recipes, 2 rounds", "Gates and reasons", "Layers that quantization hurts most",
        "Tried:", "Pruning and recovery", "Epoch 15 was kept", "Real-life conditions",
        "sensor noise", "Who pays: recall by class", "Confusion shift", "Answers that changed",
        "Why it flipped", "Time and memory of each step", "Operators and where they run",
        "macro F1", "Vela 4.4", "Provenance",
    ):  # fmt: skip
        assert words in page, words
    assert "run the same command again" in page, "the second search ran out of time"
    assert "No candidate may be released for Stm32h7: " in page


def test_figures_of_a_device_have_columns_of_their_own() -> None:
    page = render(full_report(candidates=3, profiles=1)).decode()
    assert "The device, measured there" in page
    row = next(line for line in page.split("<tr")[1:] if "bias corrected" in line)
    host, device = row.split('class="num device"', 1)
    assert "0.763 ms" in host
    assert "3.05 ms" not in host
    assert "3.05 ms" in device
    assert "The device, measured there" not in render(full_report(profiles=2)).decode().split(
        'id="raspberry-pi-4"'
    )[1]  # fmt: skip


def test_what_was_not_executed_is_said_plainly() -> None:
    report = full_report(candidates=14, profiles=1)
    assert "Converted, not executed: litert/float16." in render(report).decode()
    profile = report.profiles[0]
    alone = msgspec.structs.replace(profile, chosen="litert/float16")
    page = render(msgspec.structs.replace(report, profiles=(alone,))).decode()
    assert "This host cannot run litert artifacts" in page
    assert "Run it on a device before you publish" in page
    assert "its answers were not compared" in page


@pytest.mark.parametrize("marked", [{"random": True}, {"spec": "random"}])
def test_random_calibration_is_marked(marked: dict[str, Any]) -> None:
    report = full_report(candidates=3, profiles=1)
    assert "random data" not in render(report).decode()
    calibration, *others = report.data
    data = (msgspec.structs.replace(calibration, **marked), *others)
    page = render(msgspec.structs.replace(report, data=data)).decode()
    assert "Calibrated on random data." in page
    assert "random, not real" in page
    assert "Calibrate on real inputs before anyone relies on this" in page


@pytest.mark.parametrize(
    ("candidates", "profiles", "noise"),
    [(200, 1, ""), (14, 13, ""), (60, 30, "ä<&" * 300)],
)
def test_page_is_bounded_whatever_was_found(candidates: int, profiles: int, noise: str) -> None:
    report = full_report(candidates=candidates, profiles=profiles, noise=noise)
    page = render(report)
    assert len(page) <= MAX_PAGE_BYTES
    text = page.decode()
    assert text.rstrip().endswith("</html>")
    shown = text.count('class="verdict ')
    left = profiles - shown
    assert (f"{left} profiles are shown in this table only" in text) is (left > 0)
    assert "more candidates are not shown" in text
    assert "onnx_runtime/static-int8+bias" in text, "the chosen one is always shown"


def test_pictures_from_elsewhere_are_left_out() -> None:
    report = full_report(candidates=3, profiles=1)
    bad = (
        "https://example.org/x.png", "data:text/html;base64,AAAA", 'data:image/png;base64,A" x=',
        "data:image/png;base64," + "A" * 9000,
    )  # fmt: skip
    profile = report.profiles[0]
    flip = profile.candidates[2].flips[0]
    flips = tuple(msgspec.structs.replace(flip, thumbnail=uri) for uri in bad)
    chosen = msgspec.structs.replace(profile.candidates[2], flips=flips, explanations=())
    profile = msgspec.structs.replace(profile, candidates=(chosen,))
    page = render(msgspec.structs.replace(report, profiles=(profile,))).decode()
    assert page.count("Shirt → Coat") == 4
    assert "<img" not in page


def test_a_metric_stands_in_for_accuracy_in_the_figure() -> None:
    profile = full_report(candidates=7, profiles=1).profiles[0]

    def with_error(candidate: Candidate) -> Candidate:
        error = msgspec.structs.replace(
            candidate.metrics[0], name="WER", higher_is_better=False, unit="", source=4.0,
            candidate=4.0 + candidate.metrics[0].drop * 100,
            drop=candidate.metrics[0].drop * 100, drop_low=-0.1, drop_high=0.4,
        )  # fmt: skip
        return msgspec.structs.replace(candidate, accuracy=None, metrics=(error,))

    worse = tuple(with_error(c) for c in profile.candidates)
    figure = pareto(msgspec.structs.replace(profile, candidates=worse), None)
    assert figure is not None
    assert figure.y_title == "WER (lower is better)"
    by_number = {p.number: p for p in figure.points}
    assert by_number[7].y > by_number[1].y, "more errors stand lower"
    assert all("%" not in t.text for t in figure.y_ticks)


def test_without_latency_size_stands_in_its_place() -> None:
    profile = full_report(candidates=7, profiles=3).profiles[2]
    figure = pareto(profile, 0.1)
    assert figure is not None
    assert figure.x_title.startswith("size of the file")
    assert figure.area == "peak memory"
    assert figure.limit_x is None


@pytest.mark.browser
def test_page_has_no_accessibility_violation(report: Report, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the dev extra: playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    full = full_report(candidates=8, profiles=2)
    pages = {"small": render(report), "full": render(full)}
    pages["compared"] = render_comparison(compare(full, report, force=True), "a", "b")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for name, content in pages.items():
            (tmp_path / f"{name}.html").write_bytes(content)
            for scheme, width in (("light", 1200), ("dark", 360)):
                page = browser.new_page(
                    color_scheme=scheme, viewport={"width": width, "height": 800}
                )
                asked: list[str] = []
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.goto((tmp_path / f"{name}.html").as_uri())
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                page.evaluate(AXE.read_text())
                found = page.evaluate("axe.run(document)")
                overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                page.close()
                assert [v["id"] for v in found["violations"]] == [], (name, scheme)
                assert overflow <= 0, (name, width)
                assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        browser.close()
