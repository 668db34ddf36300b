"""``aid-edge deploy``: make devices run a release."""

from __future__ import annotations

from pathlib import Path

import click

from aid_edge.cli.output import Output, home_option, json_option
from aid_edge.cli.targets import check_targets, finish, target_options
from aid_edge.errors import UsageError
from aid_edge.hub.client import HubClient, hub_option


@click.command()
@click.argument("release", metavar="NAME@VERSION")
@target_options
@hub_option
@home_option
@json_option
@click.pass_obj
def command(
    output: Output,
    *,
    release: str,
    devices: tuple[str, ...],
    everybody: bool,
    wait_s: float | None,
    dry_run: bool,
    hub: str | None,
    home: Path | None,
    as_json: bool,
) -> int:
    """Make devices run NAME@VERSION, each in the release for its own hardware profile."""
    check_targets(devices, everybody=everybody)
    name, at, version = release.partition("@")
    if not (name and at and version):
        raise UsageError(f"{release!r} is not NAME@VERSION", hint="Such as digits@1.0.0.")
    with HubClient.open(home, hub) as client:
        deployed = client.deploy("deploy", devices, release=(name, version), dry_run=dry_run)
        return finish(output, client, deployed, wait_s=wait_s, as_json=as_json)
