"""How verbs speak: the result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from device_agent.contract.errors import AidError

_UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but the line break, and those that turn the direction of writing around."""


def harmless(text: str, *, is_line: bool = False) -> str:
    r"""Return ``text`` as a terminal may show it: with control characters as ``\x1b`` and the like.

    Much of what is shown was written on devices, by their models, and by the people before them.

    Args:
        text: Of any origin.
        is_line: A line break is escaped too.
    """
    shown = _UNSAFE.sub(lambda m: ascii(m[0])[1:-1], text)
    return shown.replace("\n", "\\n") if is_line else shown


@dataclass(frozen=True)
class Output:
    """What the user asked to hear. Verbs get it with ``@click.pass_obj``."""

    quiet: bool = False
    verbose: bool = False

    def note(self, text: str) -> None:
        """Say how the work goes, on stderr, unless ``--quiet``."""
        if not self.quiet:
            click.echo(harmless(text), err=True)

    def detail(self, text: str) -> None:
        """Say a detail, on stderr, only with ``--verbose``."""
        if self.verbose:
            click.echo(harmless(text), err=True)

    @property
    def progress(self) -> bool:
        """Whether to draw progress bars: stderr is a terminal and not ``--quiet``."""
        return not self.quiet and sys.stderr.isatty()


def color_choice() -> bool | None:
    """Return False where colors are not wanted (https://no-color.org), None to let Click decide."""
    return False if os.environ.get("NO_COLOR") else None


def emit(schema: str, result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print the result: ``text`` for people, or ``result`` as JSON with its ``schema``.

    Args:
        schema: Such as ``aid-edge/devices/v1``; the first field of the JSON.
        result: JSON-encodable.
        text: What a person reads; no trailing newline.
        as_json: Whether JSON was asked for.
    """
    document = {"schema": schema, **result}
    click.echo(json.dumps(document, indent=2, default=str) if as_json else harmless(text))


def report_error(error: AidError, *, as_json: bool, code: str = "") -> None:
    """Print an error on stderr: code, what happened, cause, hint."""
    code = code or error.code
    if as_json:
        body = {"code": code, "message": str(error), "cause": error.cause, "hint": error.hint}
        click.echo(json.dumps({"schema": "aid-edge/error/v1", "error": body}, indent=2), err=True)
        return
    heading = click.style("error", fg="red", bold=True)
    click.echo(f"{heading} [{code}]: {harmless(str(error))}", err=True, color=color_choice())
    if error.cause:
        click.echo(f"cause: {harmless(error.cause)}", err=True)
    if error.hint:
        click.echo(f"hint: {harmless(error.hint)}", err=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows under headings as aligned columns of plain text."""
    cells = [list(headings), *([harmless(str(c), is_line=True) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


json_option = click.option(
    "--json", "as_json", is_flag=True, help="The result as JSON, with a schema field."
)
home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Home folder. [default: $AID_EDGE_HOME or ~/.aid-edge]",
)
