"""int8 against float, for both runtimes: size, latency, top-1, fidelity. Read from a report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from aid_edge.pipeline.findings import Candidate, Report
from tests.bench.figures import Bench, Figure


def compression(bench: Bench, report_file: Path) -> None:
    """Compare the candidates of the report at ``report_file`` runtime by runtime."""
    report = msgspec.json.decode(report_file.read_bytes(), type=Report)
    for profile in report.profiles:
        for small in (c for c in profile.candidates if c.compressed):
            big = next(
                (c for c in profile.candidates if c.runtime == small.runtime and not c.compressed),
                None,
            )
            if big is not None:
                print(f"\n{report.source.name} for {profile.id}: {small.id} against {big.id}")
                _compare(bench, f"{small.id}:", small, big)


def _compare(bench: Bench, title: str, small: Candidate, big: Candidate) -> None:
    for figure in small.measurements:
        other = big.figure(figure.what)
        if other is None or not other.value:
            continue
        against = "float" if figure.where == "host" else f"float ({figure.where})"
        if figure.what == "top1" and (found := small.accuracy) is not None:
            against += (
                f"; drop from the source {found.drop:+.3f} "
                f"[{found.drop_low:+.3f}, {found.drop_high:+.3f}], "
                f"detectable {found.detectable_drop:.3f}"
            )
        bench.add(
            Figure(
                f"{title} {figure.what}",
                figure.value,
                other.value,
                figure.unit,
                against,
                n=figure.n,
            )
        )
