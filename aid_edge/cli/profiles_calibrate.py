"""``aid-edge profiles calibrate``: how a device compares with this host."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from aid_edge.catalogue.files import write_atomic
from aid_edge.catalogue.repository import load_signers
from aid_edge.cli.output import Output, emit, home_option, json_option, table
from aid_edge.cli.passphrase import passphrase_file_option, publisher_passphrase
from aid_edge.cli.progress import progress_bars
from aid_edge.errors import UsageError
from aid_edge.home import open_home
from aid_edge.hub import calibrate as work
from aid_edge.hub.client import HubClient, hub_option
from aid_edge.hub.on_device import TIMEOUT_S, Bench
from aid_edge.profiles import find_profile, load_profile


@click.command()
@click.argument("device")
@click.option("--profile", help="Profile to calibrate. [default: the device's own]")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it. [default: <profile id>.toml]",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=1), default=TIMEOUT_S, show_default=True,
    metavar="SECONDS", help="How long to wait for the device.",
)  # fmt: skip
@passphrase_file_option
@hub_option
@home_option
@json_option
@click.pass_obj
def command(output: Output, /, device: str, as_json: bool, **options: Any) -> None:
    """Compare DEVICE with this host by a pack of probes, and write its profile with a cost table.

    The probes are converted for the profile, published as releases called `trial`, and measured on
    the device beside what it serves. The profile that came with the program is left as it is; name
    the written file where a profile is asked for, and reports say "calibrated".
    """
    home = open_home(options["home"])
    signers = load_signers(home.keys, publisher_passphrase(home.keys, options["passphrase_file"]))
    with HubClient.open(options["home"], options["hub"]) as client:
        own = client.device(device).summary.profile
        path = find_profile(options["profile"] or own)
        profile, digest = load_profile(path)
        if profile.id != own:
            raise UsageError(f"{device} is a {own}, not a {profile.id}")
        out = options["out"] or Path(f"{profile.id}.toml")
        work.check_out(out, profile)
        bench = Bench(home, client, signers, device, timeout_s=options["timeout_s"])
        with progress_bars(output) as tell:
            found = work.calibrate(
                bench, profile, digest, lambda share, what: tell(device, share, what)
            )
    text = work.with_cost(path.read_text(), found.cost, str(out))
    write_atomic(out, text.encode())
    emit(
        "aid-edge/profiles-calibration/v1",
        {
            "file": str(out),
            "cost": msgspec.to_builtins(found.cost),
            "points": [asdict(p) for p in found.points],
            "failed": found.failed,
        },
        _calibrated(out, found),
        as_json=as_json,
    )


def _calibrated(out: Path, found: work.Calibration) -> str:
    rows = [
        (p.probe, f"{p.host_s * 1e3:.3f} ms", f"{p.device_s * 1e3:.3f} ms", f"{p.ratio:.2f}x")
        for p in found.points
    ]
    lines = [table(("PROBE", "HOST P50", "DEVICE P50", "RATIO"), rows), ""]
    lines += [f"not measured: {reason}" for reason in found.failed]
    cost = found.cost
    lines.append(
        f"device = {cost.latency_factor:.3g} x host, median error {cost.error:.0%}, "
        f"{cost.points} points"
    )
    return "\n".join([*lines, f"profile: {out}"])
