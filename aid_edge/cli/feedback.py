"""``aid-edge feedback``: what people said of predictions."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click
import msgspec

from aid_edge.cli.output import emit, home_option, json_option, table
from aid_edge.hub.client import HubClient, hub_option


@click.group()
def command() -> None:
    """List what people said of predictions."""


@command.command("list")
@click.option("--device", default="", help="Only of this device.")
@click.option(
    "--verdict",
    default="",
    type=click.Choice(["", "right", "wrong", "unclear"]),
    help="Only this verdict.",
)
@click.option(
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(1, 200),
    help="How many, newest first.",
)
@hub_option
@home_option
@json_option
def list_(
    *,
    device: str,
    verdict: str,
    limit: int,
    hub: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """List feedback, newest first."""
    with HubClient.open(home, hub) as client:
        page = client.feedback(device=device, verdict=verdict, limit=limit)
    rows = [
        (
            dt.datetime.fromtimestamp(f.received_unix_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
            f.device,
            f.release,
            f.verdict,
            f.predicted,
            "-" if f.confidence is None else f"{f.confidence:.0%}",
            f.label,
            f.comment,
        )
        for f in page.feedback
    ]
    headings = ("WHEN", "DEVICE", "RELEASE", "VERDICT", "PREDICTED", "P", "SAID", "COMMENT")
    emit(
        "aid-edge/feedback/v1",
        msgspec.to_builtins(page),
        table(headings, rows) if rows else "No feedback.",
        as_json=as_json,
    )
