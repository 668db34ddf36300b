"""``aid-edge devices``: list and show the devices of the fleet."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click
import msgspec

from aid_edge.cli.output import emit, harmless, home_option, json_option, table
from aid_edge.hub.client import HubClient, hub_option
from aid_edge.hub.rows import STATUSES, DeviceDetail, DeviceSummary


@click.group()
def command() -> None:
    """List and show the devices of the fleet."""


@command.command("list")
@click.option("--status", multiple=True, type=click.Choice(STATUSES), help="Repeatable.")
@click.option("--release", default="", metavar="NAME@VERSION", help="Only devices that run it.")
@click.option("--text", default="", help="Only devices whose id or profile contains this.")
@hub_option
@home_option
@json_option
def list_(
    *,
    status: tuple[str, ...],
    release: str,
    text: str,
    hub: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """List devices by id; counts and latencies are of the last 24 hours."""
    with HubClient.open(home, hub) as client:
        found = list(client.devices(status=status, release=release, text=text))
    headings = (
        "DEVICE", "STATUS", "PROFILE", "RELEASE", "P50", "P95", "REQUESTS", "LATE", "ERRORS",
        "WRONG", "LAST SEEN",
    )  # fmt: skip
    emit(
        "aid-edge/devices/v1",
        {"devices": [msgspec.to_builtins(s) for s in found]},
        table(headings, map(_row, found)) if found else "No devices.",
        as_json=as_json,
    )


@command.command()
@click.argument("device")
@hub_option
@home_option
@json_option
def show(*, device: str, hub: str | None, home: Path | None, as_json: bool) -> None:
    """Show everything about one device."""
    with HubClient.open(home, hub) as client:
        detail = client.device(device)
    emit(
        "aid-edge/device/v1",
        {"device": msgspec.to_builtins(detail)},
        _page(detail),
        as_json=as_json,
    )


def _row(summary: DeviceSummary) -> tuple[object, ...]:
    return (
        summary.device,
        summary.status + (" CONFLICT" if summary.conflict else ""),
        summary.profile or "-",
        summary.release or "-",
        _ms(summary.p50_s),
        _ms(summary.p95_s),
        summary.requests,
        summary.deadline_misses,
        summary.errors,
        summary.wrong_reports,
        _when(summary.last_seen_unix_s),
    )


def _page(detail: DeviceDetail) -> str:
    summary = detail.summary
    facts = {
        "status": summary.status,
        "conflict": summary.conflict,
        "profile": summary.profile,
        "desired": f"{summary.desired or 'nothing'} (revision {summary.desired_revision})",
        "runs": f"{summary.release or 'nothing'} (revision {summary.revision})",
        "reason": summary.reason,
        "agent": detail.agent_version,
        "runtimes": ", ".join(f"{n} {v}" for n, v in detail.runtimes.items()),
        "protections": ", ".join(detail.protections),
        "last seen": _when(summary.last_seen_unix_s),
        "requests": f"{summary.requests} ({summary.deadline_misses} late, {summary.errors} failed)",
        "p50 / p95": f"{_ms(summary.p50_s)} / {_ms(summary.p95_s)}",
        "said wrong": str(summary.wrong_reports),
    }
    parts = [summary.device, *(_fact(name, text) for name, text in facts.items() if text)]
    if detail.classes:
        parts.append("classes")
        parts += [f"  {c.count:8d}  {c.label or c.index}" for c in detail.classes[:10]]
    if detail.events:
        parts.append("events")
        parts += [
            harmless(f"  {_when(e.at_unix_s)}  {' '.join(filter(None, words))}", is_line=True)
            for e in detail.events[:10]
            for words in [(e.kind, e.state, e.release, e.detail)]
        ]
    return "\n".join(parts)


def _fact(name: str, text: str) -> str:
    return f"  {name:12s} {harmless(text, is_line=True)}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _when(unix_s: float | None) -> str:
    if unix_s is None:
        return "never"
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
