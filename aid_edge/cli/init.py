"""``aid-edge init``: make a home."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

from aid_edge.catalogue.create import create_home
from aid_edge.cli.output import Output, emit, json_option
from aid_edge.cli.passphrase import passphrase_file_option, read_passphrase_file
from aid_edge.home import default_path


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--fleet", required=True, help="Name of the fleet; in topics and certificates.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="DNS name or address that devices reach the hub by; repeatable. localhost is included.",
)
@click.option(
    "--passphrase", "ask", is_flag=True, help="Ask for a passphrase for root's and publisher's key."
)
@passphrase_file_option
@json_option
@click.pass_obj
def command(
    output: Output,
    *,
    folder: Path | None,
    fleet: str,
    hosts: tuple[str, ...],
    ask: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make a home in FOLDER: keys, an empty signed catalogue, and the hub's certificates.

    FOLDER is $AID_EDGE_HOME or ~/.aid-edge when it is not given. An existing home is never touched.
    """
    passphrase = read_passphrase_file(passphrase_file)
    if ask and passphrase is None:
        passphrase = click.prompt(
            "Passphrase", hide_input=True, confirmation_prompt=True, err=True
        ).encode()
    path = (folder or default_path()).expanduser().absolute()
    home = create_home(path, fleet, hosts=hosts, passphrase=passphrase, now=dt.datetime.now(dt.UTC))
    if passphrase is None:
        output.note(
            f"The keys in {home.keys} are protected by file permissions only; "
            "--passphrase-file or --passphrase puts root's and the publisher's under a passphrase."
        )
    output.note(f"Keep a copy of {home.keys} offline: devices trust nothing else.")
    result = {"home": str(home.path), "fleet": home.fleet, "encrypted": passphrase is not None}
    emit("aid-edge/init/v1", result, f"Home of fleet {home.fleet}: {home.path}", as_json=as_json)
