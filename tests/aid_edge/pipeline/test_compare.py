from __future__ import annotations

import re

import msgspec
import pytest

from aid_edge.errors import UsageError
from aid_edge.pipeline.compare import Comparison, compare
from aid_edge.pipeline.findings import Candidate, Report
from aid_edge.pipeline.report import MAX_PAGE_BYTES, render_comparison
from tests.support.full_report import full_report


@pytest.fixture
def before() -> Report:
    return full_report(candidates=7, profiles=1)


def changed(report: Report, **changes: object) -> Report:
    return msgspec.structs.replace(report, **changes)


def with_candidates(report: Report, candidates: tuple[Candidate, ...], chosen: str) -> Report:
    profile = msgspec.structs.replace(report.profiles[0], candidates=candidates, chosen=chosen)
    return changed(report, profiles=(profile,))


def faster(candidate: Candidate) -> Candidate:
    return msgspec.structs.replace(
        candidate,
        measurements=tuple(
            msgspec.structs.replace(m, value=m.value / 2) if m.what.startswith("latency") else m
            for m in candidate.measurements
        ),
    )


def figure(found: Comparison, candidate: int, what: str) -> tuple[str, str, str]:
    line = next(f for f in found.profiles[0].candidates[candidate].figures if f.what == what)
    return line.shown_a, line.shown_b, line.change


def test_a_report_does_not_differ_from_itself(before: Report) -> None:
    found = compare(before, before)
    assert found.facts == ()
    assert found.caveats == ()
    assert found.profiles[0].chosen_a == found.profiles[0].chosen_b
    assert {f.change for c in found.profiles[0].candidates for f in c.figures} <= {
        "1.00x", "+0.00 points", "+0", "-",
    }  # fmt: skip


def test_figures_candidates_and_choices_that_differ(before: Report) -> None:
    old = before.profiles[0].candidates
    new = msgspec.structs.replace(old[1], id="onnx_runtime/new")
    after = with_candidates(before, (*map(faster, old[:3]), new), new.id)
    found = compare(before, after)
    profile = found.profiles[0]
    assert (profile.chosen_a, profile.chosen_b) == (old[2].id, new.id)
    assert figure(found, 0, "p50") == ("1.2 ms", "0.6 ms", "0.50x")
    assert figure(found, 0, "p50 on the device")[2] == "0.50x"
    assert figure(found, 0, "top-1") == ("91.2 %", "91.2 %", "+0.00 points")
    only = {c.id: (c.outcome_a, c.outcome_b) for c in profile.candidates if not c.is_in_both}
    assert only["onnx_runtime/new"] == ("", "outranked")
    assert only["onnx_runtime/weight-only-int4"] == ("accuracy-dropped", "")


def test_times_of_different_machines_get_no_ratio(before: Report) -> None:
    elsewhere = msgspec.structs.replace(before.provenance, host="Another", tools={"onnx": "1.21"})
    found = compare(before, changed(before, provenance=elsewhere))
    assert any("different machines" in c for c in found.caveats)
    assert figure(found, 0, "p50")[2] == ""
    assert figure(found, 0, "file")[2] == "1.00x"
    assert ("onnx", "1.20.0", "1.21") in [(d.what, d.a, d.b) for d in found.facts]


def test_shares_of_different_data_get_no_difference(before: Report) -> None:
    other = tuple(
        msgspec.structs.replace(d, digest="sha256:" + "0" * 64) if d.role == "evaluation" else d
        for d in before.data
    )
    found = compare(before, changed(before, data=other))
    assert any("different data" in c for c in found.caveats)
    assert figure(found, 0, "top-1")[2] == ""


def test_other_models_are_refused_unless_forced(before: Report) -> None:
    other = changed(before, source=msgspec.structs.replace(before.source, name="shoes"))
    with pytest.raises(UsageError, match=r"different models: fashion .* and shoes") as caught:
        compare(before, other)
    assert "--force" in caught.value.hint
    assert compare(before, other, force=True).title_b == "Clothes, ResNet-8 2.1.0"


def test_a_retrained_model_is_compared_and_said(before: Report) -> None:
    source = msgspec.structs.replace(before.source, digest="sha256:" + "1" * 64, version="2.2.0")
    found = compare(before, changed(before, source=source))
    assert any("own source" in c for c in found.caveats)
    assert {d.what for d in found.facts} == {"version", "source digest"}


def test_a_profile_of_one_report_only(before: Report) -> None:
    found = compare(before, full_report(candidates=7, profiles=2))
    assert [(bool(p.chosen_a), bool(p.chosen_b)) for p in found.profiles] == [
        (True, True), (False, True),
    ]  # fmt: skip


def test_the_page_is_whole_escaped_and_bounded(before: Report) -> None:
    noisy = full_report(candidates=60, profiles=6, noise="<b>&" * 100)
    found = compare(before, noisy, force=True)
    page = render_comparison(found, "old", "new")
    assert len(page) < MAX_PAGE_BYTES
    text = page.decode()
    assert "<b>" not in text
    assert not re.findall(r"<script|<link|@import|url\(", text)
