"""What ``deploy`` and ``rollback`` share: choosing devices, telling them, and waiting for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from aid_edge.cli.output import Output, emit
from aid_edge.errors import UsageError
from aid_edge.hub.client import Deployed, HubClient
from aid_edge.hub.progress import Progress
from device_agent.contract.errors import EXIT_SOME_DEVICES_FAILED

_F = TypeVar("_F", bound=Callable[..., Any])


def target_options(function: _F) -> _F:
    """Add ``--to``, ``--all``, ``--wait`` and ``--dry-run`` to a verb."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Only say what would be told to whom."),
        click.option(
            "--wait",
            "wait_s",
            type=click.FloatRange(min=0),
            default=None,
            metavar="SECONDS",
            help="Wait until the devices run it; exit 5 when some do not.",
        ),
        click.option("--all", "everybody", is_flag=True, help="All devices of the fleet."),
        click.option("--to", "devices", multiple=True, metavar="DEVICE", help="Repeatable."),
    ):
        function = option(function)
    return function


def check_targets(devices: Sequence[str], *, everybody: bool) -> None:
    """Refuse anything but one of ``--to`` and ``--all``.

    Raises:
        UsageError: Neither or both.
    """
    if bool(devices) == everybody:
        raise UsageError("say who: either --to DEVICE, repeatable, or --all")


def finish(
    output: Output, client: HubClient, deployed: Deployed, *, wait_s: float | None, as_json: bool
) -> int:
    """Say what was told to whom, wait for it if asked, and return the exit code."""
    targets = deployed.assignments
    verb = "would be told" if deployed.dry_run else "told"
    for target in targets:
        was = f" (was {target.before})" if target.before else ""
        output.note(f"{target.device}: {verb} {target.release}, revision {target.revision}{was}")
    last: dict[str, Progress] = {}
    if wait_s is not None and not deployed.dry_run:
        for progress in client.follow(targets, wait_s):
            last[progress.device] = progress
            output.note(f"{progress.device}: {progress.text}")
    waited = wait_s is not None and not deployed.dry_run
    failed = [t.device for t in targets if waited and not _is_done(last.get(t.device))]
    rows = [
        {
            "device": t.device,
            "release": t.release,
            "before": t.before,
            "revision": t.revision,
            "outcome": _outcome(last.get(t.device), waited=waited),
            "detail": p.text if (p := last.get(t.device)) else "",
        }
        for t in targets
    ]
    result = {"action": deployed.action, "dry_run": deployed.dry_run, "devices": rows}
    emit("aid-edge/deployment/v1", result, _text(deployed, rows, waited=waited), as_json=as_json)
    return EXIT_SOME_DEVICES_FAILED if failed else 0


def _is_done(progress: Progress | None) -> bool:
    return progress is not None and progress.outcome == "done"


def _outcome(progress: Progress | None, *, waited: bool) -> str:
    if not waited:
        return "told"
    outcome = progress.outcome if progress else "waiting"
    return "timed-out" if outcome == "waiting" else outcome


def _text(deployed: Deployed, rows: Sequence[dict[str, Any]], *, waited: bool) -> str:
    releases = ", ".join(sorted({row["release"] for row in rows}))
    if deployed.dry_run:
        return f"{len(rows)} devices would be told {releases}; nothing was changed."
    if not waited:
        return f"{len(rows)} devices told {releases}."
    bad = [row for row in rows if row["outcome"] != "done"]
    done = f"{len(rows) - len(bad)} of {len(rows)} devices run {releases}."
    return "\n".join(
        [done, *(f"{row['device']}: {row['outcome']}: {row['detail']}" for row in bad)]
    )
