"""A whole fleet on one machine: home, hub, flashed devices with their agents, as real processes.

The demo, the end-to-end tests and the benchmarks stand on this. Everything goes through the
``aid-edge`` command line and what the bundles install, as an operator would do it::

    with LocalFleet(Path("build/fleet")) as fleet:
        fleet.init()
        fleet.start_hub()
        device = fleet.flash("camera-01", profile="generic-x86_64")
        fleet.start_agent(device)
        fleet.aid_edge("deploy", "digits@1.0.0", "--to", "camera-01", "--wait", "60")
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np

HUB_START_S = 60.0
AGENT_START_S = 60.0
STOP_S = 15.0
POLL_S = 0.1


class FleetError(RuntimeError):
    """A command of the fleet failed; carries its exit code and what it printed."""

    def __init__(self, command: str, code: int, output: str) -> None:
        super().__init__(f"{command} ended with {code}:\n{output}")
        self.command, self.code, self.output = command, code, output


@dataclass
class Device:
    """One flashed and installed device.

    Attributes:
        home: The agent's home folder; ``run/api.json`` there says where its API listens.
    """

    name: str
    bundle: Path
    prefix: Path
    agent: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        """The agent's home folder."""
        return self.prefix / "home"

    @property
    def command(self) -> Path:
        """The ``aid-agent`` that the bundle installed."""
        return self.prefix / "venv" / "bin" / "aid-agent"

    def api(self) -> dict[str, Any]:
        """Where the local inference API listens: ``port``, ``socket``, ``pid``."""
        found: dict[str, Any] = json.loads((self.home / "run" / "api.json").read_text())
        return found

    @property
    def url(self) -> str:
        """Address of the local inference API."""
        return f"http://127.0.0.1:{self.api()['port']}"


@dataclass
class LocalFleet:
    """Home, hub and devices below ``folder``; ends every process it started."""

    folder: Path
    echo: Callable[[str], None] | None = None
    devices: dict[str, Device] = field(default_factory=dict)
    _hub: subprocess.Popen[bytes] | None = None
    _has_served: bool = False

    @property
    def home(self) -> Path:
        """The operator's home folder."""
        return self.folder / "home"

    def __post_init__(self) -> None:
        # Agents run in folders of their own, where a relative path would mean another place.
        self.folder = self.folder.resolve()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for device in self.devices.values():
            self.stop_agent(device)
        self.stop_hub()

    def aid_edge(self, *words: str | Path, timeout_s: float = 1800, check: bool = True) -> str:
        """Run ``aid-edge`` with ``words`` and return its stdout.

        Raises:
            FleetError: It ended with another code than 0, and ``check`` is set.
        """
        arguments = [str(w) for w in words]
        self._show("aid-edge", *arguments)
        done = subprocess.run(
            [sys.executable, "-m", "aid_edge.cli", *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=None if self.echo else subprocess.PIPE,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise FleetError(
                f"aid-edge {words[0]}", done.returncode, done.stdout + (done.stderr or "")
            )
        return done.stdout

    def ask(self, *words: str | Path, timeout_s: float = 1800) -> dict[str, Any]:
        """Run ``aid-edge`` with ``--json`` and return what it says."""
        answer: dict[str, Any] = json.loads(self.aid_edge(*words, "--json", timeout_s=timeout_s))
        return answer

    def environment(self) -> Mapping[str, str]:
        """Environment of the commands: this fleet's home."""
        return {**os.environ, "AID_EDGE_HOME": str(self.home)}

    def init(self) -> None:
        """Make the home with keys and an empty catalogue."""
        self.aid_edge("init", self.home, "--fleet", "demo")

    def start_hub(self, *, broker: str = "auto", port: int = 0) -> str:
        """Start the hub and return the address of its API and web view."""
        state = self.home / "hub" / "hub.json"
        state.unlink(missing_ok=True)
        words = ["hub", "serve", "--port", str(port), "--broker", broker]
        if not self._has_served:
            # Any free port; later starts take the same one again, which the devices know.
            words += ["--broker-port", "0"]
            self._has_served = True
        self._show("aid-edge", *words, "&")
        with (self.folder / "hub.log").open("ab") as log:
            self._hub = subprocess.Popen(
                [sys.executable, "-m", "aid_edge.cli", *words],
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait(state.exists, HUB_START_S, self._hub, self.folder / "hub.log")
        return self.hub_url

    @property
    def hub_url(self) -> str:
        """Address of the hub's API and web view."""
        found: str = json.loads((self.home / "hub" / "hub.json").read_text())["url"]
        return found

    @property
    def token(self) -> str:
        """The administrator's API token."""
        return (self.home / "hub" / "api-token").read_text().strip()

    def stop_hub(self) -> None:
        """End the hub and its broker."""
        if self._hub is not None:
            _end(self._hub)
            self._hub = None

    def flash(
        self, name: str, *, profile: str, install: bool = True, options: tuple[str, ...] = ()
    ) -> Device:
        """Make a bundle for one device and install it without a network."""
        bundle = self.folder / "bundles" / name
        self.aid_edge(
            "flash",
            "--profile",
            profile,
            "--device",
            name,
            "--to",
            bundle,
            "--serving-port",
            "0",
            *options,
        )
        device = Device(name, bundle, self.folder / "devices" / name)
        self.devices[name] = device
        if install:
            self.install(device)
        return device

    def install(self, device: Device) -> None:
        """Run the bundle's ``install.sh`` with every package index out of reach."""
        self._show("sh", f"{device.bundle}/install.sh", "--prefix", device.prefix)
        nowhere = "http://127.0.0.1:9"
        environment = {
            **os.environ,
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
        }
        for name in (
            "PIP_FIND_LINKS",
            "PIP_INDEX_URL",
            "PIP_EXTRA_INDEX_URL",
            "VIRTUAL_ENV",
            "PYTHONPATH",
        ):
            environment.pop(name, None)
        done = subprocess.run(
            ["sh", str(device.bundle / "install.sh"), "--prefix", str(device.prefix)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise FleetError("install.sh", done.returncode, done.stdout + done.stderr)

    def start_agent(self, device: Device) -> None:
        """Start the agent that the bundle installed, from its own environment."""
        (device.home / "run" / "api.json").unlink(missing_ok=True)
        self._show(device.command, "run", "--home", device.home, "&")
        log_path = device.prefix / "agent.log"
        environment = {
            k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}
        }
        with log_path.open("ab") as log:
            device.agent = subprocess.Popen(
                [str(device.command), "run", "--home", str(device.home)],
                env=environment,
                cwd=device.prefix,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait((device.home / "run" / "api.json").exists, AGENT_START_S, device.agent, log_path)

    def stop_agent(self, device: Device, *, kill: bool = False) -> None:
        """End one agent; with ``kill`` as a power cut would."""
        if device.agent is not None:
            _end(device.agent, signal.SIGKILL if kill else signal.SIGTERM)
            device.agent = None

    def hub_get(self, path: str) -> Any:
        """Return what the hub's API answers at ``path``."""
        answer = httpx.get(
            f"{self.hub_url}{path}", headers={"Authorization": f"Bearer {self.token}"}, timeout=30
        )
        answer.raise_for_status()
        return answer.json()

    def wait_for(self, what: str, condition: Callable[[], bool], timeout_s: float) -> None:
        """Return once ``condition`` holds.

        Raises:
            FleetError: It does not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise FleetError(f"waiting for {what}", 1, f"not within {timeout_s:g} s")
            time.sleep(POLL_S)

    def _show(self, *words: str | Path) -> None:
        if self.echo:
            self.echo(f"$ {' '.join(map(str, words))}".replace(f"{Path.cwd()}{os.sep}", ""))

    @staticmethod
    def _wait(
        ready: Callable[[], bool], timeout_s: float, process: subprocess.Popen[bytes], log: Path
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                _end(process)
                raise FleetError("start", process.returncode or 1, log.read_text()[-4000:])
            time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Answer:
    """What the local inference API answered.

    Attributes:
        outputs: Output name to array.
        parameters: What the agent adds: latency, top label, probability.
        seconds: Round trip as the client saw it.
    """

    inference_id: str
    outputs: dict[str, np.ndarray[Any, Any]]
    parameters: dict[str, Any]
    seconds: float


_DTYPES = {
    "FP32": "<f4",
    "FP16": "<f2",
    "INT8": "i1",
    "UINT8": "u1",
    "INT32": "<i4",
    "INT64": "<i8",
}


def infer(
    client: httpx.Client,
    model: str,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    *,
    parameters: Mapping[str, Any] | None = None,
) -> Answer:
    """Ask a device's local API for one prediction, tensors in binary.

    Open Inference Protocol v2 with its binary tensor data extension.

    Args:
        client: Client whose base address is the API's.
        model: Name of the served model.
        inputs: Input name to float32 array, in the shape that the model takes.
        parameters: Such as ``{"deadline_ms": 50}``.

    Raises:
        httpx.HTTPStatusError: The agent refused or failed; the body says why.
    """
    arrays = {name: np.ascontiguousarray(array, dtype="<f4") for name, array in inputs.items()}
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in arrays.items()
            ],
            "parameters": {"binary_data_output": True, **(parameters or {})},
        }
    ).encode()
    started = time.perf_counter()
    reply = client.post(
        f"/v2/models/{model}/infer",
        content=header + b"".join(a.tobytes() for a in arrays.values()),
        headers={
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        },
    )
    seconds = time.perf_counter() - started
    reply.raise_for_status()
    length = int(reply.headers["Inference-Header-Content-Length"])
    answer = json.loads(reply.content[:length])
    outputs = {}
    offset = length
    for output in answer["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data = np.frombuffer(reply.content[offset : offset + size], _DTYPES[output["datatype"]])
        outputs[output["name"]] = data.reshape(output["shape"])
        offset += size
    return Answer(answer["id"], outputs, answer.get("parameters", {}), seconds)
