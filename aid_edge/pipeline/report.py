"""The report of a conversion: one self-contained HTML page, and reading its JSON twin."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2
import msgspec

from aid_edge.errors import UsageError
from aid_edge.pipeline import figures
from aid_edge.pipeline.figures import pareto
from aid_edge.pipeline.findings import SCHEMA, Candidate, ProfileFinding, Report
from aid_edge.pipeline.request import JSON_NAME
from aid_edge.pipeline.text import milliseconds, percent, points, ratio, size

MAX_REPORT_BYTES = 16 * 2**20
_MARKS = {"pass": "✓", "fail": "✗", "undecided": "?", "not-measured": "-"}


def render(report: Report) -> bytes:
    """Return the HTML page: no script, no style or picture from outside."""
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            figures={p.id: pareto(p, _latency_limit(p)) for p in report.profiles},
            box=figures,
            baselines={p.id: _baselines(p) for p in report.profiles},
        )
    )
    return page.encode()


def read_report(folder: Path) -> Report:
    """Return the report of the conversion in ``folder``.

    Raises:
        UsageError: There is none, or it is not one of this program.
    """
    path = folder / JSON_NAME
    hint = "Name a folder that `aid-edge convert --out` made."
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise UsageError(f"{path}: is larger than {MAX_REPORT_BYTES} bytes", hint=hint)
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror}", hint=hint) from e
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: is not a conversion report: {e}", hint=hint) from e
    if report.schema != SCHEMA:
        raise UsageError(f"{path}: schema: is {report.schema!r}; allowed: {SCHEMA}", hint=hint)
    return report


def _latency_limit(found: ProfileFinding) -> float | None:
    if found.latency == "uncalibrated":
        return None
    gates = [g for c in found.candidates for g in c.gates if g.gate == "latency-p95"]
    return gates[0].limit if gates else None


def _baselines(found: ProfileFinding) -> dict[str, Candidate]:
    """Return the float candidate of each runtime: what its other candidates are compared with."""
    return {c.runtime: c for c in found.candidates if not c.compressed and c.digest}


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aid_edge.pipeline"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": size,
        "ms": milliseconds,
        "percent": percent,
        "points": points,
        "mark": _MARKS.__getitem__,
        "round1": lambda v: f"{v:.1f}",
    }
    environment.globals |= {"ratio": ratio}
    return environment
