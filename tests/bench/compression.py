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
        runtimes = dict.fromkeys(c.runtime for c in profile.candidates)
        for runtime in runtimes:
            mine = [c for c in profile.candidates if c.runtime == runtime]
            floats = [c for c in mine if not c.compressed]
            for small in (c for c in mine if c.compressed):
                for big in floats:
                    title = f"{report.source.name}, {profile.id}, {runtime}, {small.recipe_key}"
                    _compare(bench, title, small, big)


def _compare(bench: Bench, title: str, small: Candidate, big: Candidate) -> None:
    for figure in small.measurements:
        other = big.figure(figure.what)
        if other is None or not other.value:
            continue
        bench.add(
            Figure(
                f"{title}: {figure.what} ({figure.where})",
                figure.value,
                other.value,
                figure.unit,
                "float",
                n=figure.n,
            )
        )
    if small.accuracy is not None:
        found = small.accuracy
        bench.add(
            Figure(
                f"{title}: top-1",
                found.candidate,
                found.source,
                "share",
                f"source; drop {found.drop:+.3f} [{found.drop_low:+.3f}, {found.drop_high:+.3f}], "
                f"detectable {found.detectable_drop:.3f}",
                n=found.n,
            )
        )
    if small.fidelity is not None and big.fidelity is not None:
        for what in ("agreement", "cosine", "sqnr_db"):
            ours, theirs = getattr(small.fidelity, what), getattr(big.fidelity, what)
            if ours is not None:
                bench.add(Figure(f"{title}: {what}", ours, theirs, "", "float", n=small.fidelity.n))
