"""``aid-edge hub``: run the hub, and say how it is."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from aid_edge.cli.output import Output, emit, home_option, json_option
from aid_edge.home import open_home
from aid_edge.hub.client import HubClient, hub_option

PORT = click.IntRange(0, 65535)


@click.group(name="hub")
def command() -> None:
    """Run the hub: broker, ingest, API and web view."""


@command.command()
@home_option
@click.option(
    "--broker",
    default="auto",
    show_default=True,
    metavar="auto|mosquitto|embedded|URL",
    help="auto takes Mosquitto where it is installed; URL is mqtts://host:port of your own broker.",
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address of API and web view.")
@click.option("--port", type=PORT, default=8800, show_default=True, help="0 takes any free one.")
@click.option(
    "--broker-bind", default="127.0.0.1", show_default=True, help="Address of the broker."
)
@click.option(
    "--broker-port",
    type=PORT,
    default=None,
    help="0 takes any free one.  [default: that of the last time, else 8883]",
)
@click.option(
    "--advertise", default="", help="Name that devices reach the broker by.  [default: its address]"
)
@click.pass_obj
def serve(
    output: Output,
    *,
    home: Path | None,
    broker: str,
    bind: str,
    port: int,
    broker_bind: str,
    broker_port: int | None,
    advertise: str,
) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    # The hub's libraries are for this verb only.
    from aid_edge.hub.broker.choice import BrokerOptions  # noqa: PLC0415
    from aid_edge.hub.serve import HubOptions  # noqa: PLC0415
    from aid_edge.hub.serve import serve as serve_hub  # noqa: PLC0415

    level = logging.DEBUG if output.verbose else logging.INFO
    logging.basicConfig(
        level=logging.ERROR if output.quiet else level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    options = HubOptions(BrokerOptions(broker, broker_bind, broker_port, advertise), bind, port)
    serve_hub(open_home(home), options, say=click.echo)


@command.command()
@home_option
@hub_option
@json_option
def status(*, home: Path | None, hub: str | None, as_json: bool) -> None:
    """Say whether the hub runs, and what is wrong with it."""
    with HubClient.open(home, hub) as client:
        health = client.health()
        devices = ", ".join(f"{n} {s}" for s, n in health["devices"].items() if n)
        lines = [
            f"{health['status']}: fleet {health['fleet']} at {client.url}",
            f"broker: {health['broker']}",
            *(f"problem: {problem}" for problem in health["problems"]),
            f"devices: {devices or 'none'}",
        ]
        text = "\n".join(lines)
        emit("aid-edge/hub-status/v1", {"url": client.url, **health}, text, as_json=as_json)
