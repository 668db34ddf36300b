"""``aid-edge report``: the summary of a conversion, or what differs between two."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from aid_edge.cli.output import Output, emit, json_option, table
from aid_edge.errors import HostError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from aid_edge.pipeline.compare import Comparison

SCHEMA = "aid-edge/report-summary/v1"
COMPARE_NAME = "compare.html"
_place = click.Path(path_type=Path)


@click.command()
@click.argument("folder", type=_place, required=False)
@click.option("--open", "open_", is_flag=True, help="Open the HTML page in a browser.")
@click.option(
    "--compare",
    "pair",
    type=_place,
    nargs=2,
    metavar="A B",
    help="Say what differs between two conversions, as a table and a page.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Where --compare writes its page. [default: {COMPARE_NAME}]",
)
@click.option("--force", is_flag=True, help="Compare even reports of different models.")
@json_option
@click.pass_obj
def command(
    output: Output,
    *,
    folder: Path | None,
    open_: bool,
    pair: tuple[Path, Path] | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Summarize the conversion in FOLDER, which `aid-edge convert --out` made.

    FOLDER may also be its report.json; so may A and B of --compare.
    """
    if (folder is None) == (pair is None):
        raise UsageError(
            "name either one FOLDER or two with --compare",
            hint="For example `aid-edge report out`, or `aid-edge report --compare old new`.",
        )
    if pair is None and (out is not None or force):
        raise UsageError("--out and --force belong to --compare")
    if pair is not None:
        page = out or Path(COMPARE_NAME)
        _compare(output, pair, page, force=force, as_json=as_json)
    elif folder is not None:
        page = _summarize(folder, as_json=as_json)
    if open_:
        if not page.is_file():
            raise HostError(
                f"{page}: is not there, only the report for programs",
                hint="Make it again with `aid-edge convert --out`; what was done is in the cache.",
            )
        show(output, page)


def show(output: Output, page: Path) -> None:
    """Open ``page`` in a browser, or say where it is."""
    try:
        opened = webbrowser.open(page.resolve().as_uri())
    except (webbrowser.Error, OSError):
        opened = False
    if not opened:
        output.note(f"no browser could be opened; the report is {page}")


def _summarize(folder: Path, *, as_json: bool) -> Path:
    try:
        from aid_edge.pipeline.report import read_report  # noqa: PLC0415
        from aid_edge.pipeline.request import HEADINGS, HTML_NAME, rows  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise MissingDependencyError("reading a report", e.name or "?", "convert") from e
    report = read_report(folder)
    page = (folder.parent if folder.suffix == ".json" else folder) / HTML_NAME
    source = report.source
    lines = [
        f"{source.title} {source.version} ({source.framework}, {source.parameters:,} parameters)",
        "",
        table(HEADINGS, rows(report)),
        "",
    ]
    for profile in report.profiles:
        lines += [f"{profile.id}: {profile.verdict}", *(f"  - {n}" for n in profile.notes)]
    lines += ["", f"report: {page}"]
    result = {"html": str(page), "report": msgspec.to_builtins(report)}
    emit(SCHEMA, result, "\n".join(lines), as_json=as_json)
    return page


def _compare(
    output: Output, pair: tuple[Path, Path], page: Path, *, force: bool, as_json: bool
) -> None:
    try:
        from aid_edge.pipeline import compare  # noqa: PLC0415
        from aid_edge.pipeline.report import read_report, render_comparison  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise MissingDependencyError("reading a report", e.name or "?", "convert") from e
    found = compare.compare(read_report(pair[0]), read_report(pair[1]), force=force)
    try:
        page.write_bytes(render_comparison(found, str(pair[0]), str(pair[1])))
    except OSError as e:
        raise HostError(
            f"{page}: cannot be written: {e.strerror}", hint="Name another file with --out."
        ) from e
    result = {"html": str(page), "comparison": msgspec.to_builtins(found)}
    emit(compare.SCHEMA, result, _as_text(found, page), as_json=as_json)
    output.detail(f"A: {pair[0]}; B: {pair[1]}")


def _as_text(found: Comparison, page: Path) -> str:
    lines = [f"A: {found.title_a}", f"B: {found.title_b}"]
    lines += [f"  - {line}" for line in found.caveats]
    for profile in found.profiles:
        same = profile.chosen_a == profile.chosen_b
        choice = (
            profile.chosen_a if same else f"{profile.chosen_a or '-'} -> {profile.chosen_b or '-'}"
        )
        lines += [
            "",
            f"{profile.id}: {'the same choice' if same else 'another choice'}: {choice}",
            "",
        ]
        rows = [
            (c.id, f.what, f.shown_a, f.shown_b, f.change)
            for c in profile.candidates
            if c.is_in_both
            for f in c.figures
            if f.a != f.b
        ]
        rows += [
            (c.id, "outcome", c.outcome_a or "-", c.outcome_b or "-", "")
            for c in profile.candidates
            if c.outcome_a != c.outcome_b
        ]
        lines.append(
            table(("CANDIDATE", "FIGURE", "A", "B", "B AGAINST A"), rows)
            if rows
            else "no figure differs"
        )
    if found.facts:
        facts = [(d.what, _cut(d.a), _cut(d.b)) for d in found.facts]
        lines += ["", table(("WHAT DIFFERS", "A", "B"), facts)]
    return "\n".join([*lines, "", f"page: {page}"])


def _cut(text: str, limit: int = 60) -> str:
    return (text if len(text) <= limit else f"{text[: limit - 1]}…") or "-"
