"""Finalists and probes measured on a device by its agent, beside what it serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aid_edge.profiles import load_profile
from examples.local_fleet import FleetError, LocalFleet
from tests.end_to_end.conftest import PROFILE, active_manifest, client_of

pytestmark = pytest.mark.slow


def test_finalists_are_measured_on_the_device(
    fleet: LocalFleet, digits: Path, tmp_path: Path
) -> None:
    fleet.aid_edge("deploy", "digits@1.0.0", "--to", "one", "--wait", "90")
    fleet.aid_edge(
        *("convert", "examples/digits.py:digits_net", "--weights", digits / "weights.safetensors"),
        *("--model-card", digits / "model.toml", "--calibration", digits / "calibration.npz"),
        *("--evaluate", digits / "evaluation.npz", "--profile", PROFILE),
        *("--runtime", "onnx_runtime", "--out", tmp_path / "out", "--measure-on", "one"),
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (profile,) = report["profiles"]
    measured = {
        c["id"]: {m["what"]: m for m in c["measurements"] if m["where"] == "device"}
        for c in profile["candidates"]
    }
    figures = measured[profile["chosen"]]
    assert figures["latency_p50"]["n"] == 200
    assert "on device one, onnx_runtime" in figures["latency_p50"]["how"]
    assert figures["peak_rss"]["value"] > 2**20
    # The release that serves is as it was, and what was tried is gone from the disk.
    assert active_manifest(fleet.devices["one"])["version"] == "1.0.0"
    with client_of(fleet.devices["one"]) as client:
        client.get("/v2/models/digits").raise_for_status()
    releases = fleet.devices["one"].home / "releases"
    assert not [p for p in releases.glob("*/manifest.json") if b'"trial"' in p.read_bytes()]


def test_a_profile_is_calibrated_with_its_error(fleet: LocalFleet, tmp_path: Path) -> None:
    out = tmp_path / f"{PROFILE}.toml"
    found = fleet.ask("profiles", "calibrate", "two", "--out", out)
    profile, _ = load_profile(out)
    assert profile.cost is not None
    assert profile.cost.points == len(found["points"]) == 8
    assert profile.cost.latency_factor == pytest.approx(found["cost"]["latency_factor"], rel=1e-3)
    # It is the very same machine, however busy.
    assert 0.2 < profile.cost.latency_factor < 5
    assert set(profile.cost.tools) == {"onnx_runtime"}
    with pytest.raises(FleetError, match="is there already"):
        fleet.aid_edge("profiles", "calibrate", "two", "--out", out)


def test_what_cannot_be_measured_is_said_before_any_work(
    fleet: LocalFleet, digits: Path, tmp_path: Path
) -> None:
    words = (
        *("convert", "examples/digits.py:digits_net", "--weights", digits / "weights.safetensors"),
        *("--model-card", digits / "model.toml", "--calibration", digits / "calibration.npz"),
        *("--evaluate", digits / "evaluation.npz", "--out", tmp_path / "out"),
    )
    with pytest.raises(FleetError, match="no device 'nine'"):
        fleet.aid_edge(*words, "--profile", PROFILE, "--measure-on", "nine")
    with pytest.raises(FleetError, match="nothing is converted for that"):
        fleet.aid_edge(*words, "--profile", "raspberry-pi-4", "--measure-on", "one")
    assert not (tmp_path / "out").exists()
