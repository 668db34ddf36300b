"""The whole way of a model, on one machine: ``make demo``.

Converts EfficientNet-Lite0 with its ImageNet weights and a small digits network, publishes them
signed, starts the hub, flashes two devices from offline bundles, deploys, predicts real photos,
says "wrong" once, deploys a second release and rolls it back. Every step is a command that you can
type yourself; the demo prints it. Results go to ``build/demo/summary.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from aid_edge.evaluate.preprocess import prepare
from device_agent.contract.manifest import Manifest, decode_manifest
from examples.local_fleet import Device, FleetError, LocalFleet, infer

BUILD = Path("build/demo")
DATA = Path("build/examples")
CACHE = Path("build/cache")
DEVICES = ("camera-01", "camera-02")
HOST_PROFILE = "generic-x86_64"
PROFILES = (HOST_PROFILE, "raspberry-pi-4")
FIRST, SECOND = "1.0.0", "1.1.0"
PORT = 8800
SETTLE_S = 60.0


@dataclass(frozen=True)
class Prediction:
    """One photo that a device was asked about."""

    device: str
    photo: str
    label: str
    probability: float
    latency_ms: float
    inference_id: str


def _heading(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def _say(text: str) -> None:
    print(text, flush=True)


def _run(*words: str) -> None:
    _say(f"$ python {' '.join(words)}")
    subprocess.run([sys.executable, *words], check=True)


def fetch_and_train() -> None:
    """Bring the real weights and photos, and train the digits network."""
    _heading("1. Real weights and photos")
    _run("-m", "examples.fetch", "--to", str(DATA), "efficientnet-lite0")
    if (DATA / "digits" / "evaluation.npz").exists():
        _say(f"{DATA / 'digits'}: trained before")
    else:
        _run("-m", "examples.digits", "--to", str(DATA / "digits"))


def convert(fleet: LocalFleet) -> None:
    """Compress both models; the report says what was lost, and how sure that is."""
    _heading("2. Convert: float and int8, ONNX Runtime and LiteRT, two device kinds")
    photos = DATA / "efficientnet-lite0"
    profiles = [word for profile in PROFILES for word in ("--profile", profile)]
    efficientnet = [
        "examples/efficientnet_lite0.py:efficientnet_lite0",
        *("--weights", photos / "weights.pth", "--model-card", photos / "model.toml"),
        *("--calibration", photos / "calibration", "--evaluate", photos / "evaluation"),
        *("--fidelity", photos / "fidelity", "--cache", CACHE),
    ]
    fleet.aid_edge("convert", *efficientnet, *profiles, "--out", BUILD / "efficientnet-lite0")
    fleet.aid_edge(
        *("convert", "examples/digits.py:digits_net"),
        *("--weights", DATA / "digits" / "weights.safetensors"),
        *("--model-card", DATA / "digits" / "model.toml"),
        *("--calibration", DATA / "digits" / "calibration.npz"),
        *("--evaluate", DATA / "digits" / "evaluation.npz"),
        *(*profiles, "--cache", CACHE, "--out", BUILD / "digits"),
    )
    # The next version of the same model: the other runtime, so that the fleet has something to
    # move to and back from.
    fleet.aid_edge(
        *("convert", *efficientnet, "--profile", HOST_PROFILE, "--runtime", _other_runtime()),
        *("--version", SECOND, "--out", BUILD / "efficientnet-lite0-next"),
    )
    _say(f"report: {(BUILD / 'efficientnet-lite0' / 'report.html').resolve()}")


def _release_draft(folder: Path) -> dict[str, Any]:
    draft: dict[str, Any] = json.loads(
        (folder / HOST_PROFILE / "release" / "release.json").read_text()
    )
    return draft


def _other_runtime() -> str:
    chosen = _release_draft(BUILD / "efficientnet-lite0")["runtime"]["name"]
    return "litert" if chosen == "onnx_runtime" else "onnx_runtime"


def publish(fleet: LocalFleet) -> None:
    """Make the keys and put the signed releases into the catalogue."""
    _heading("3. Publish, signed")
    fleet.init()
    for name in ("efficientnet-lite0", "digits", "efficientnet-lite0-next"):
        _say(fleet.aid_edge("publish", BUILD / name))


def start(fleet: LocalFleet, port: int) -> None:
    """Start the hub, and flash, install and start two devices."""
    _heading("4. Hub and two flashed devices")
    _say(f"fleet view: {fleet.start_hub(port=port)}")
    devices = [fleet.flash(name, profile=HOST_PROFILE, install=False) for name in DEVICES]
    installs = [threading.Thread(target=_install_and_start, args=(fleet, d)) for d in devices]
    for install in installs:
        install.start()
    for install in installs:
        install.join()
    missing = [d.name for d in devices if d.agent is None]
    if missing:
        raise FleetError("install", 1, f"{', '.join(missing)} did not start")


def _install_and_start(fleet: LocalFleet, device: Device) -> None:
    fleet.install(device)
    fleet.start_agent(device)


def deploy(fleet: LocalFleet, version: str) -> None:
    """Deploy one version to both devices and wait until they prove and serve it."""
    _say(
        fleet.aid_edge(
            "deploy", f"efficientnet-lite0@{version}", "--to", *_to(DEVICES), "--wait", "120"
        )
    )


def _to(names: tuple[str, ...]) -> list[str]:
    return [names[0], *(word for name in names[1:] for word in ("--to", name))]


def predict(fleet: LocalFleet, name: str) -> list[Prediction]:
    """Send labelled photos to one device's local API."""
    device = fleet.devices[name]
    manifest = _installed_manifest(device)
    photos = sorted((DATA / "efficientnet-lite0" / "evaluation").rglob("*.*"))
    predictions = []
    with httpx.Client(base_url=device.url, timeout=30) as client:
        for photo in photos:
            with Image.open(photo) as image:
                tensor = prepare(image, manifest.preprocess, manifest.inputs[0])[None]
            answer = infer(client, manifest.name, {manifest.inputs[0].name: tensor})
            prediction = Prediction(
                name,
                photo.name,
                str(answer.parameters["label"]),
                float(answer.parameters["probability"]),
                answer.seconds * 1e3,
                answer.inference_id,
            )
            predictions.append(prediction)
            _say(
                f"  {name}  {photo.name:28s} {prediction.label:32.32s} "
                f"{prediction.probability:6.1%} {prediction.latency_ms:7.1f} ms"
            )
    return predictions


def _installed_manifest(device: Device) -> Manifest:
    return decode_manifest((device.home / "slots" / "active" / "manifest.json").read_bytes())


def say_wrong(fleet: LocalFleet, prediction: Prediction) -> None:
    """Tell the device that one of its answers was wrong."""
    body = {"inference_id": prediction.inference_id, "verdict": "wrong", "label": "something else"}
    _say(f"$ curl -d '{json.dumps(body)}' {fleet.devices[prediction.device].url}/v1/feedback")
    httpx.post(
        f"{fleet.devices[prediction.device].url}/v1/feedback", json=body, timeout=10
    ).raise_for_status()


def arrived(fleet: LocalFleet, expected: int) -> bool:
    """Whether the hub knows of all predictions and of the feedback."""
    devices = fleet.ask("devices", "list")["devices"]
    counted = sum(d["requests"] for d in devices)
    return counted >= expected and len(fleet.ask("feedback", "list")["feedback"]) >= 1


def summarize(fleet: LocalFleet, predictions: list[Prediction], seconds: float) -> dict[str, Any]:
    """Return what ``summary.json`` holds: what the hub learned over MQTT."""
    devices = fleet.ask("devices", "list")["devices"]
    return {
        "devices": devices,
        "releases": fleet.ask("releases", "list")["releases"],
        "predictions": [asdict(p) for p in predictions],
        "feedback": fleet.ask("feedback", "list")["feedback"],
        "rolled_back": all(d["release"] == f"efficientnet-lite0@{FIRST}" for d in devices),
        "hub": fleet.hub_url,
        "seconds": round(seconds, 1),
    }


def run(fleet: LocalFleet, port: int) -> dict[str, Any]:
    """Go the whole way once and return the summary."""
    started = time.monotonic()
    fetch_and_train()
    convert(fleet)
    publish(fleet)
    start(fleet, port)
    _heading("5. Deploy: fetched over MQTT, verified, proven, then served")
    deploy(fleet, FIRST)
    _heading("6. Predict real photos through the devices' local API")
    predictions = [p for name in DEVICES for p in predict(fleet, name)]
    _heading("7. A person says: wrong")
    say_wrong(fleet, min(predictions, key=lambda p: p.probability))
    _heading("8. A second release, and back")
    deploy(fleet, SECOND)
    _say(fleet.aid_edge("rollback", "--to", *_to(DEVICES), "--wait", "120"))
    _heading("9. What the hub learned, all of it over MQTT")
    fleet.wait_for("telemetry and feedback", lambda: arrived(fleet, len(predictions)), SETTLE_S)
    _say(fleet.aid_edge("devices", "list"))
    _say(fleet.aid_edge("feedback", "list"))
    return summarize(fleet, predictions, time.monotonic() - started)


def main() -> None:
    """Run the demo; leave the fleet view open unless ``--no-wait``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--no-wait", action="store_true", help="end instead of leaving the view open"
    )
    parser.add_argument("--port", type=int, default=PORT, help="port of the fleet view; 0: any")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shutil.rmtree(BUILD, ignore_errors=True)
    with LocalFleet(BUILD, echo=_say) as fleet:
        summary = run(fleet, arguments.port)
        (BUILD / "summary.json").write_text(json.dumps(summary, indent=2))
        _say(f"\nsummary: {BUILD / 'summary.json'}   ({summary['seconds']} s)")
        _say(f"report:  {BUILD / 'efficientnet-lite0' / 'report.html'}")
        if not arguments.no_wait:
            _say(f"\nThe fleet view is open at {fleet.hub_url}   (Ctrl-C ends it)")
            try:
                signal.pause()
            except KeyboardInterrupt:
                _say("ending the fleet")


if __name__ == "__main__":
    main()
