from __future__ import annotations

import json
from pathlib import Path

import pytest

from aid_edge.cli.main import run
from aid_edge.home import Home
from aid_edge.hub.serve import RunningHub
from aid_edge.hub.store import register_device
from device_agent.contract.topics import Channel
from tests.support.running_hubs import obedient_device
from tests.support.simulated_device import event

Capture = pytest.CaptureFixture[str]


def test_list_shows_what_the_fleet_does(
    hub_home: Home, hub: RunningHub, tmp_path: Path, capsys: Capture
) -> None:
    register_device(hub_home, "new", "raspberry-pi-4", "")
    with obedient_device(hub_home, hub, "one", tmp_path / "ids"):
        assert run(["deploy", "digits@1.0.0", "--to", "one", "--wait", "20"]) == 0
        capsys.readouterr()
        assert run(["devices", "list", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["schema"] == "aid-edge/devices/v1"
        rows = {d["device"]: (d["status"], d["release"]) for d in found["devices"]}
        assert rows == {"new": ("never-seen", ""), "one": ("ok", "digits@1.0.0")}
        assert run(["devices", "list", "--status", "never-seen"]) == 0
        text = capsys.readouterr().out
        assert "new" in text
        assert "one" not in text
        assert run(["devices", "list", "--release", "digits@1.0.0"]) == 0
        assert "one" in capsys.readouterr().out


def test_show_has_everything_about_one(
    hub_home: Home, hub: RunningHub, tmp_path: Path, capsys: Capture
) -> None:
    with obedient_device(hub_home, hub, "one", tmp_path / "ids") as device:
        device.send(event(1, detail="hello there"), Channel.EVENT)
        device.ack()
        assert run(["devices", "show", "one"]) == 0
        assert "hello there" in capsys.readouterr().out
        assert run(["devices", "show", "one", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["schema"] == "aid-edge/device/v1"
        assert found["device"]["machine_id"] == "a" * 32


def test_unknown_device_is_named(hub_home: Home, hub: RunningHub, capsys: Capture) -> None:
    assert run(["devices", "show", "no/body"]) == 2
    assert run(["devices", "show", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
    assert run(["devices", "list", "--status", "asleep"]) == 2


def test_empty_fleet_says_so(hub_home: Home, hub: RunningHub, capsys: Capture) -> None:
    assert run(["devices", "list"]) == 0
    assert capsys.readouterr().out == "No devices.\n"
