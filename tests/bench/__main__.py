"""``make bench``: all figures in one run, side by side with what they must beat."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from device_agent.contract.manifest import decode_manifest
from examples import demo
from examples.local_fleet import LocalFleet
from tests.bench.compression import compression
from tests.bench.figures import Bench
from tests.bench.serving import serving
from tests.bench.supervisor import supervisor
from tests.bench.transfer import transfer

BUILD = Path("build/bench")


def main() -> None:
    """Run every benchmark and write ``build/bench/figures.json``."""
    bench = Bench()
    shutil.rmtree(BUILD / "fleet", ignore_errors=True)
    shutil.rmtree(demo.BUILD, ignore_errors=True)
    with LocalFleet(BUILD / "fleet", echo=print) as fleet:
        demo.fetch_and_train()
        demo.convert(fleet)
        print("\n== int8 against float")
        for name in ("efficientnet-lite0", "digits", "efficientnet-lite0-next"):
            compression(bench, demo.BUILD / name / "report.json")
        demo.publish(fleet)
        fleet.start_hub()
        device = fleet.flash("bench", profile=demo.HOST_PROFILE)
        print("\n== the local inference API")
        fleet.start_agent(device)
        for release in ("efficientnet-lite0@1.0.0", "efficientnet-lite0@1.1.0", "digits@1.0.0"):
            fleet.aid_edge("deploy", release, "--to", device.name, "--wait", "120")
            serving(bench, device)
        fleet.stop_agent(device)
        print("\n== transfer")
        manifests = [
            decode_manifest(path.read_bytes())
            for path in (device.home / "releases").glob("*/manifest.json")
        ]
        blobs = [blob for m in manifests if (blob := m.blob("model"))]
        transfer(bench, fleet, device, max(blobs, key=lambda b: b.size))
        print("\n== the supervisor")
        _with_broker(bench, fleet, device.name)
    bench.write(BUILD / "figures.json")
    print(f"\nfigures: {BUILD / 'figures.json'}")


def _with_broker(bench: Bench, fleet: LocalFleet, name: str) -> None:
    device = fleet.devices[name]
    shutil.rmtree(device.home / "slots", ignore_errors=True)
    (device.home / "state" / "deployment.json").unlink(missing_ok=True)
    (device.home / "slots").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = fleet.folder / "bench-mosquitto.conf"
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
    main()
