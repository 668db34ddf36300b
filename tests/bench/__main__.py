"""``make bench``: all figures in one run, side by side with what they must beat.

``python -m tests.bench [PART ...]`` runs some parts only; all take over an hour on two cores,
most of it in converting every example model and in making what the peers make of it.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from device_agent.contract.manifest import decode_manifest
from examples import demo
from examples.catalogue import EXAMPLES
from examples.local_fleet import LocalFleet
from tests.bench.calibration import calibration
from tests.bench.compression import compression
from tests.bench.fashion import fashion
from tests.bench.figures import Bench
from tests.bench.models import models
from tests.bench.serving import serving
from tests.bench.supervisor import supervisor
from tests.bench.transfer import transfer

BUILD = Path("build/bench")


def main(arguments: Sequence[str]) -> None:
    """Run the parts that are named, or all, and write ``build/bench/figures.json``."""
    parts: dict[str, Callable[[Bench], None]] = {
        "fleet": fleet, "calibration": calibration, "fashion": fashion, "models": every_model,
    }  # fmt: skip
    if unknown := [name for name in arguments if name not in parts]:
        sys.exit(f"no part is called {unknown[0]!r}; there are: {', '.join(parts)}")
    bench = Bench()
    for name in arguments or parts:
        print(f"\n==== {name}", flush=True)
        (BUILD / name).mkdir(parents=True, exist_ok=True)
        parts[name](bench)
        # What was measured is kept if a later part fails.
        bench.write(BUILD / "figures.json")
    print(f"\nfigures: {BUILD / 'figures.json'}")


def every_model(bench: Bench) -> None:
    """Compare all example models with what peers make of them."""
    models(bench, list(EXAMPLES))


def fleet(bench: Bench) -> None:
    """Compare what runs on and around a device with what does no more than it must."""
    shutil.rmtree(BUILD / "fleet", ignore_errors=True)
    shutil.rmtree(demo.BUILD, ignore_errors=True)
    with LocalFleet(BUILD / "fleet", echo=print) as local:
        demo.fetch_and_train()
        demo.convert(local)
        print("\n== int8 against float")
        for name in ("efficientnet-lite0", "digits", "efficientnet-lite0-next"):
            compression(bench, demo.BUILD / name / "report.json")
        demo.publish(local)
        local.start_hub()
        device = local.flash("bench", profile=demo.HOST_PROFILE)
        print("\n== the local inference API")
        local.start_agent(device)
        for release in ("efficientnet-lite0@1.0.0", "efficientnet-lite0@1.1.0", "digits@1.0.0"):
            local.aid_edge("deploy", release, "--to", device.name, "--wait", "120")
            serving(bench, device)
        local.stop_agent(device)
        print("\n== transfer")
        manifests = [
            decode_manifest(path.read_bytes())
            for path in (device.home / "releases").glob("*/manifest.json")
        ]
        blobs = [blob for m in manifests if (blob := m.blob("model"))]
        transfer(bench, local, device, max(blobs, key=lambda b: b.size))
        print("\n== the supervisor")
        _with_broker(bench, local, device.name)


def _with_broker(bench: Bench, local: LocalFleet, name: str) -> None:
    device = local.devices[name]
    shutil.rmtree(device.home / "slots", ignore_errors=True)
    (device.home / "state" / "deployment.json").unlink(missing_ok=True)
    (device.home / "slots").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = local.folder / "bench-mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
        "persistence false\nlog_dest none\n"
    )
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    broker = subprocess.Popen([program, "-c", str(config)])
    try:
        time.sleep(1)
        supervisor(bench, device, port)
    finally:
        broker.terminate()
        broker.wait(10)


if __name__ == "__main__":
    main(sys.argv[1:])
