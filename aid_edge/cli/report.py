"""``aid-edge report``: the summary of a conversion."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click
import msgspec

from aid_edge.cli.output import Output, emit, json_option, table
from aid_edge.errors import MissingDependencyError

SCHEMA = "aid-edge/report-summary/v1"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--open", "open_", is_flag=True, help="Open the HTML report in a browser.")
@json_option
@click.pass_obj
def command(output: Output, folder: Path, open_: bool, as_json: bool) -> None:
    """Summarize the conversion in FOLDER, which `aid-edge convert --out` made."""
    try:
        from aid_edge.pipeline.report import read_report  # noqa: PLC0415
        from aid_edge.pipeline.request import HEADINGS, HTML_NAME, rows  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise MissingDependencyError("reading a report", e.name or "?", "convert") from e
    report = read_report(folder)
    page = folder / HTML_NAME
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
    if open_ and not webbrowser.open(page.resolve().as_uri()):
        output.note(f"no browser could be opened; the report is {page}")
