"""The report of a conversion: one self-contained HTML page, and reading its JSON twin."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup, escape

from aid_edge.errors import UsageError
from aid_edge.pipeline import charts, figures
from aid_edge.pipeline.compare import Comparison
from aid_edge.pipeline.findings import SCHEMA, Report
from aid_edge.pipeline.page import LEVELS, MEMORY, Detail, at, view
from aid_edge.pipeline.request import JSON_NAME
from aid_edge.pipeline.text import (
    duration,
    milliseconds,
    number,
    percent,
    points,
    ratio,
    size,
    with_unit,
)

MAX_REPORT_BYTES = 64 * 2**20
"""Of a ``report.json`` that is read."""

MAX_PAGE_BYTES = 300_000
"""Of the HTML page: less is shown where more was found."""

MAX_PICTURE_CHARS = 8000
_MARKS = {"pass": "✓", "fail": "✗", "undecided": "?", "not-measured": "-"}
_PICTURE = re.compile(r"data:image/(?:png|jpeg|svg\+xml);base64,[A-Za-z0-9+/=]+")
_TICKED = re.compile(r"`([^`]+)`")


def render(report: Report) -> bytes:
    """Return the HTML page: no script, no style or picture from outside, under 300 kB."""
    page = b""
    for detail in LEVELS:
        page = _render(report, detail)
        if len(page) <= MAX_PAGE_BYTES:
            break
    return page


def summary(report: Report) -> str:
    """Return the verdicts and candidates as an HTML fragment, for notebooks.

    Its styles are inline or under one class of its own, so that they mix with no page's.
    """
    detail = LEVELS[-2]
    views = [view(report, p, detail) for p in report.profiles[: detail.profiles]]
    template = _environment().get_template("summary.html.j2")
    return template.render(report=report, views=views, detail=detail, at=at, memory=MEMORY)


def render_comparison(found: Comparison, name_a: str, name_b: str) -> bytes:
    """Return the HTML page of a comparison, under the same bound and rules as a report.

    Args:
        found: What differs.
        name_a: Where report A is from.
        name_b: Where report B is from.
    """
    page = b""
    for detail in LEVELS:
        page = (
            _environment()
            .get_template("compare.html.j2")
            .render(
                found=found, name_a=name_a, name_b=name_b, detail=detail, limit=detail.candidates
            )
            .encode()
        )
        if len(page) <= MAX_PAGE_BYTES:
            break
    return page


def read_report(place: Path) -> Report:
    """Return the report in ``place``: the folder of a conversion, or its ``report.json``.

    Raises:
        UsageError: There is none, or it is not one of this program.
    """
    path = place if place.suffix == ".json" else place / JSON_NAME
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


def _render(report: Report, detail: Detail) -> bytes:
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            detail=detail,
            views=[view(report, p, detail) for p in report.profiles[: detail.profiles]],
            random=any(
                d.role == "calibration" and (d.random or d.spec == "random") for d in report.data
            ),
            box=figures,
            chart=charts,
            at=at,
            memory=MEMORY,
        )
        .encode()
    )


@jinja2.pass_context
def _short(context: jinja2.runtime.Context, value: object) -> str:
    """Return text from outside, bounded: a layer may have a name of a thousand characters."""
    limit: int = context["detail"].text
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _ticked(text: str) -> Markup:
    """Return text with what stands in backticks as code."""
    return Markup(_TICKED.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 -- escaped


def _picture(uri: str) -> str:
    """Return a picture that is one, small, and inside the page; else nothing."""
    return uri if len(uri) <= MAX_PICTURE_CHARS and _PICTURE.fullmatch(uri) else ""


def _maybe_size(value: float | None) -> str:
    return "-" if value is None else size(value)


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
        "maybe_size": _maybe_size,
        "ms": milliseconds,
        "percent": percent,
        "points": points,
        "duration": duration,
        "figure": number,
        "measured": with_unit,
        "mark": _MARKS.__getitem__,
        "round1": lambda v: f"{v:.1f}",
        "short": _short,
        "ticked": _ticked,
        "picture": _picture,
    }
    environment.globals |= {"ratio": ratio}
    return environment
