"""``aid-edge flash``: an offline bundle for one device."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from aid_edge.cli.output import Output, emit, home_option, json_option
from aid_edge.errors import MissingDependencyError
from aid_edge.home import open_home

if TYPE_CHECKING:
    from aid_edge.flash.make import Made


@click.command("flash")
@click.option("--profile", required=True, help="Hardware profile: an id, or a .toml file.")
@click.option("--device", required=True, metavar="ID", help="The device's name in the fleet.")
@click.option(
    "--to",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to: a folder, or a file that ends in .tar.gz.",
)
@click.option(
    "--hub",
    default="",
    metavar="ADDRESS",
    help="The hub's broker, as the device reaches it: mqtts://host:port. "
    "[default: that of this home's running hub]",
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help="Install only this runtime of the profile; may be repeated. [default: all of them]",
)
@click.option(
    "--serving-port",
    type=int,
    default=8470,
    show_default=True,
    help="Port of the local inference API; 0 takes a free one.",
)
@click.option(
    "--wheel-cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where downloaded wheels are kept. [default: ~/.cache/aid-edge/wheels]",
)
@click.option(
    "--force", is_flag=True, help="Replace a device of this name: it gets a new identity."
)
@home_option
@json_option
@click.pass_obj
def command(  # noqa: PLR0917 - Click passes options by name
    out: Output,
    profile: str,
    device: str,
    to: Path,
    hub: str,
    runtimes: tuple[str, ...],
    serving_port: int,
    wheel_cache: Path | None,
    force: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Make a device: an offline bundle with agent, runtimes and identity.

    The bundle installs on the device without a network: sh install.sh
    """
    try:
        from aid_edge.flash.hub import broker_of  # noqa: PLC0415 - not for --help
        from aid_edge.flash.make import Order, make_bundle  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise MissingDependencyError("flash", e.name or "a package", "flash") from e
    opened = open_home(home)
    order = Order(
        profile=profile,
        device=device,
        to=to.absolute(),
        broker=broker_of(opened, hub),
        runtimes=runtimes,
        serving_port=serving_port,
        wheel_cache=wheel_cache,
        force=force,
    )
    made = make_bundle(opened, order, now=dt.datetime.now(dt.UTC), note=out.note)
    emit("aid-edge/flash/v1", _result(made), _text(made), as_json=as_json)


def _result(made: Made) -> dict[str, object]:
    facts: dict[str, object] = msgspec.to_builtins(made.info)
    del facts["schema"]
    return {
        **facts,
        "path": str(made.path),
        "bytes": made.bytes,
        "wheels_cached": made.cached,
    }


def _text(made: Made) -> str:
    info = made.info
    runtimes = ", ".join(f"{name} {version}" for name, version in info.runtimes.items())
    install = (
        f"sh {made.path}/install.sh"
        if made.path.is_dir()
        else f"tar xzf {made.path.name} && sh aid-edge-{info.device}/install.sh"
    )
    return (
        f"{made.path}  ({made.bytes / 1e6:.0f} MB, {len(info.files)} files)\n"
        f"device   {info.device}, fleet {info.fleet}, profile {info.profile}\n"
        f"agent    {info.agent}, {runtimes}\n"
        f"for      linux {info.arch}, Python {info.python}, glibc {info.glibc} or newer\n"
        f"broker   {info.broker}\n"
        f"install  {install}"
    )
