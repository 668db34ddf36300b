"""What goes wrong in the field, with real processes: nothing is lost, and the model serves on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.local_fleet import Device, FleetError, LocalFleet, infer
from tests.end_to_end.conftest import PROFILE, active_manifest, client_of, device_row, publish

pytestmark = pytest.mark.slow

Samples = tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def fleet(
    converted: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalFleet]:
    with LocalFleet(tmp_path_factory.mktemp("faults")) as local:
        publish(local, converted)
        local.start_hub()
        local.start_agent(local.flash("one", profile=PROFILE))
        local.aid_edge("deploy", "digits@1.0.0", "--to", "one", "--wait", "90")
        yield local


def _predict(device: Device, samples: Samples, count: int) -> None:
    name, inputs, _ = samples
    with client_of(device) as client:
        for sample in inputs[:count]:
            infer(client, "digits", {name: sample})


def _broker_pid(fleet: LocalFleet) -> int:
    hub = json.loads((fleet.home / "hub" / "hub.json").read_text())["pid"]
    children = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(hub)], capture_output=True, text=True, check=True
    ).stdout
    return next(int(line.split()[0]) for line in children.splitlines() if "mosquitto" in line)


def test_nothing_is_lost_or_counted_twice_when_the_broker_dies(
    fleet: LocalFleet, samples: Samples
) -> None:
    device = fleet.devices["one"]
    before = device_row(fleet, "one")["requests"]
    _predict(device, samples, 10)
    os.kill(_broker_pid(fleet), signal.SIGKILL)
    _predict(device, samples, 10)
    fleet.wait_for("every request", lambda: device_row(fleet, "one")["requests"] == before + 20, 90)


def test_nothing_is_lost_or_counted_twice_when_the_hub_dies(
    fleet: LocalFleet, samples: Samples
) -> None:
    device = fleet.devices["one"]
    before = device_row(fleet, "one")["requests"]
    _predict(device, samples, 10)
    fleet.stop_hub()
    _predict(device, samples, 10)
    fleet.start_hub()
    fleet.wait_for(
        "every request", lambda: device_row(fleet, "one")["requests"] == before + 20, 120
    )


def test_killed_agent_serves_the_verified_release_again(
    fleet: LocalFleet, samples: Samples
) -> None:
    device = fleet.devices["one"]
    served = active_manifest(device)
    fleet.stop_agent(device, kill=True)
    fleet.start_agent(device)
    fleet.wait_for("the model", lambda: _ready(device), 60)
    _predict(device, samples, 1)
    assert active_manifest(device) == served


def _ready(device: Device) -> bool:
    with client_of(device) as client:
        return client.get("/v2/models/digits/ready").status_code == 200


def test_altered_release_is_refused_and_the_old_one_serves_on(
    fleet: LocalFleet, samples: Samples
) -> None:
    device = fleet.devices["one"]
    model = next(
        blob
        for release in fleet.ask("releases", "show", "digits@1.1.0")["releases"]
        if release["profile"] == PROFILE
        for blob in release["manifest"]["blobs"]
        if blob["role"] == "model"
    )
    path = fleet.home / "catalogue" / "blobs" / "sha256" / model["digest"].removeprefix("sha256:")
    intact = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    try:
        with pytest.raises(FleetError) as failed:
            fleet.aid_edge("deploy", "digits@1.1.0", "--to", "one", "--wait", "90")
        assert failed.value.code == 5
        assert active_manifest(device)["version"] == "1.0.0"
        _predict(device, samples, 1)
    finally:
        path.write_bytes(intact)
    fleet.aid_edge("deploy", "digits@1.0.0", "--to", "one", "--wait", "90")


def test_cloned_identity_is_told_apart_and_shown(fleet: LocalFleet) -> None:
    device = fleet.devices["one"]
    twin = Device("one", device.bundle, device.prefix.with_name("twin"))
    shutil.copytree(
        device.prefix, twin.prefix, symlinks=True, ignore=shutil.ignore_patterns("api.*", "*.lock")
    )
    # A copied card in another machine: all is the same but the machine.
    (twin.home / "state" / "machine_id").unlink()
    try:
        fleet.start_agent(twin)
        fleet.wait_for("the conflict", lambda: bool(device_row(fleet, "one")["conflict"]), 90)
    finally:
        fleet.stop_agent(twin)


def test_two_agents_in_one_home_are_refused(fleet: LocalFleet) -> None:
    device = fleet.devices["one"]
    done = subprocess.run(
        [str(device.command), "run", "--home", str(device.home)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "hint:" in done.stderr


def test_bundle_of_another_machine_is_refused(fleet: LocalFleet) -> None:
    device = fleet.flash("pi", profile="raspberry-pi-4", install=False)
    with pytest.raises(FleetError, match="aarch64"):
        fleet.install(device)


def test_embedded_broker_carries_a_fleet(
    converted: dict[str, Path], tmp_path: Path, samples: Samples
) -> None:
    pytest.importorskip("iotcore", reason="the embedded broker (iotcore) is not installed")
    with LocalFleet(tmp_path) as local:
        publish(local, converted)
        local.start_hub(broker="embedded")
        device = local.flash("one", profile=PROFILE)
        local.start_agent(device)
        local.aid_edge("deploy", "digits@1.0.0", "--to", "one", "--wait", "90")
        _predict(device, samples, 5)
        local.wait_for("telemetry", lambda: device_row(local, "one")["requests"] == 5, 60)


def test_agent_serves_without_any_broker(fleet: LocalFleet, samples: Samples) -> None:
    device = fleet.devices["one"]
    fleet.stop_agent(device)
    fleet.stop_hub()
    try:
        fleet.start_agent(device)
        fleet.wait_for("the model", lambda: _ready(device), 60)
        _predict(device, samples, 3)
        time.sleep(2)
        assert _ready(device)
    finally:
        fleet.start_hub()
