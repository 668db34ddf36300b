"""A fleet of real processes around the digits network, made once for all end-to-end tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from examples.local_fleet import Device, LocalFleet

PROFILE = "generic-x86_64"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained digits network with its data."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run(
        [sys.executable, "-m", "examples.digits", "--to", str(folder)], check=True, timeout=600
    )
    return folder


@pytest.fixture(scope="session")
def converted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions of the digits network, converted: for ONNX Runtime and for LiteRT."""
    folder = tmp_path_factory.mktemp("converted")
    with LocalFleet(folder) as workshop:
        for version, runtime in (("1.0.0", "onnx_runtime"), ("1.1.0", "litert")):
            workshop.aid_edge(
                *("convert", "examples/digits.py:digits_net"),
                *("--weights", digits / "weights.safetensors"),
                *("--model-card", digits / "model.toml"),
                *("--calibration", digits / "calibration.npz"),
                *("--evaluate", digits / "evaluation.npz"),
                *("--profile", PROFILE, "--profile", "raspberry-pi-4", "--runtime", runtime),
                *("--version", version, "--cache", folder / "cache", "--out", folder / version),
            )
    return {version: folder / version for version in ("1.0.0", "1.1.0")}


def publish(fleet: LocalFleet, converted: dict[str, Path]) -> None:
    """Make the fleet's home and publish both versions."""
    fleet.init()
    for folder in converted.values():
        fleet.aid_edge("publish", folder)


@pytest.fixture(scope="session")
def fleet(
    converted: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalFleet]:
    """Hub on a managed Mosquitto, and two installed devices whose agents run."""
    with LocalFleet(tmp_path_factory.mktemp("fleet")) as local:
        publish(local, converted)
        local.start_hub()
        for name in ("one", "two"):
            local.start_agent(local.flash(name, profile=PROFILE))
        yield local


@pytest.fixture(scope="session")
def samples(digits: Path) -> tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Name of the input, real digits [n, 1, 1, 8, 8], and their labels [n]."""
    with np.load(digits / "evaluation.npz", allow_pickle=False) as data:
        name = next(n for n in data.files if n != "labels")
        return name, data[name][:, None], data["labels"]


def client_of(device: Device) -> httpx.Client:
    """A client of the device's local API."""
    return httpx.Client(base_url=device.url, timeout=30)


def device_row(fleet: LocalFleet, name: str) -> dict[str, Any]:
    """What ``aid-edge devices list`` says of one device."""
    rows = fleet.ask("devices", "list")["devices"]
    return next(row for row in rows if row["device"] == name)


def active_manifest(device: Device) -> dict[str, Any]:
    """The manifest of what the device serves."""
    found: dict[str, Any] = json.loads(
        (device.home / "slots" / "active" / "manifest.json").read_text()
    )
    return found
