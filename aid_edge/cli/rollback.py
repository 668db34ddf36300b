"""``aid-edge rollback``: make devices run the release they ran before."""

from __future__ import annotations

from pathlib import Path

import click

from aid_edge.cli.output import Output, home_option, json_option
from aid_edge.cli.targets import check_targets, finish, target_options
from aid_edge.hub.client import HubClient, hub_option


@click.command()
@target_options
@hub_option
@home_option
@json_option
@click.pass_obj
def command(
    output: Output,
    *,
    devices: tuple[str, ...],
    everybody: bool,
    wait_s: float | None,
    dry_run: bool,
    hub: str | None,
    home: Path | None,
    as_json: bool,
) -> int:
    """Make devices run what they were told to run before; twice goes back two releases."""
    check_targets(devices, everybody=everybody)
    with HubClient.open(home, hub) as client:
        deployed = client.deploy("rollback", devices, dry_run=dry_run)
        return finish(output, client, deployed, wait_s=wait_s, as_json=as_json)
