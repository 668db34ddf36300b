from __future__ import annotations

from collections.abc import Callable

import msgspec

from aid_edge.pipeline.findings import Candidate, PlacementFinding, ProfileFinding, Report
from aid_edge.pipeline.measure import Host
from aid_edge.pipeline.notes import notes
from aid_edge.pipeline.text import milliseconds, percent, points, ratio, size

HOST = Host("x86_64", "a PC")


def text(found: ProfileFinding, host: Host = HOST, **more: tuple[str, ...]) -> str:
    return "\n".join(notes(found, host, more.get("shared", ()), more.get("full_range", ())))


def test_undecided_accuracy_is_explained_with_its_figures(report: Report) -> None:
    said = text(report.profiles[0])
    assert "20 labelled samples cannot decide the accuracy gate" in said
    assert "rests on fidelity" in said
    assert "10 independent inputs (120 in all)" in said


def test_uncalibrated_latency_is_explained(report: Report) -> None:
    assert "Latency is not known for aarch64" in text(report.profiles[1])
    assert "Latency" not in text(report.profiles[0])


def test_int8_that_runs_in_float_is_told(
    report: Report, make_candidate: Callable[..., Candidate]
) -> None:
    slow = make_candidate(
        "onnx_runtime/static-int8", placement=PlacementFinding(integer=3, floating=7, operators={})
    )
    said = text(msgspec.structs.replace(report.profiles[0], candidates=(slow,)))
    assert "only 3 of 10 compute operators run in int8" in said


def test_overflow_is_told_only_where_this_host_overflows(report: Report) -> None:
    where = Host("x86_64", "an old PC", saturates=True)
    assert "x86 without VNNI" in text(report.profiles[1], where, full_range=("r/int8",))
    assert "VNNI" not in text(report.profiles[1], HOST, full_range=("r/int8",))


def test_photos_that_were_calibrated_on_are_told(report: Report) -> None:
    said = text(report.profiles[0], shared=("a", "b", "c", "d"))
    assert "4 originals (a, b, c, ...)" in said


def test_figures_are_written_with_their_unit() -> None:
    assert [size(v) for v in (12, 4_900, 4_900_000, 2.5e9)] == [
        "12 B",
        "4.9 kB",
        "4.9 MB",
        "2.5 GB",
    ]
    assert [milliseconds(v) for v in (0.00012, 0.0123, 0.25)] == ["0.12 ms", "12.3 ms", "250 ms"]
    assert [percent(v) for v in (1.0, 0.9999, 0.5)] == ["100.0 %", "99.9 %", "50.0 %"]
    assert [points(v) for v in (-0.0025, 0.161)] == ["-0.25", "16.1"]
    assert [ratio(27, 100), ratio(1, 0)] == ["0.27x", "-"]
