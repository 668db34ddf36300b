"""The supervisor at rest: proportional set size, and time from start to birth on the broker."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from device_agent.contract.messages import Birth, decode
from examples.local_fleet import Device
from tests.bench.figures import Bench, Figure, median

STARTS = 7
REST_S = 3.0
START_TIMEOUT_S = 30.0


def supervisor(bench: Bench, device: Device, broker_port: int) -> None:
    """Start the installed agent again and again against a plain broker on loopback.

    Args:
        bench: Takes the figures.
        device: Installed; its configuration is pointed at the broker for the time being.
        broker_port: Of an anonymous MQTT 5 broker on 127.0.0.1.
    """
    config = device.home / "config.toml"
    whole = config.read_text()
    lines = [
        f'url = "mqtt://127.0.0.1:{broker_port}"' if line.startswith("url = ") else line
        for line in whole.splitlines()
    ]
    config.write_text("\n".join(lines) + "\n")
    births: list[float] = []
    sizes: list[float] = []
    try:
        for _ in range(STARTS):
            born_s, pss_bytes = _one_start(device, broker_port)
            births.append(born_s)
            sizes.append(pss_bytes / 2**20)
    finally:
        config.write_text(whole)
    bench.add(
        Figure(
            "agent: start to birth on the broker",
            median(births),
            _python_start_s(device),
            "s",
            "bare python -c pass of the same environment",
            "under 0.7 s",
            STARTS,
        )
    )
    bench.add(
        Figure(
            "agent: PSS of the supervisor at rest, no model",
            median(sizes),
            None,
            "MiB",
            "",
            "under 28 MB",
            STARTS,
        )
    )


def _one_start(device: Device, broker_port: int) -> tuple[float, int]:
    born = threading.Event()
    at_s = [0.0]
    pid = [0]

    def on_message(_client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        if not message.retain and isinstance(decode(message.payload), Birth):
            at_s[0] = time.perf_counter()
            born.set()

    listener = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    subscribed = threading.Event()
    listener.on_message = on_message
    listener.on_subscribe = lambda *_: subscribed.set()
    listener.on_connect = lambda client, *_: client.subscribe("aid/v1/+/+/conn", qos=1)
    listener.connect("127.0.0.1", broker_port)
    listener.loop_start()
    subscribed.wait(START_TIMEOUT_S)
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started_s = time.perf_counter()
    agent = subprocess.Popen(
        [str(device.command), "run", "--home", str(device.home)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pid[0] = agent.pid
    try:
        if not born.wait(START_TIMEOUT_S):
            raise TimeoutError("the agent did not announce itself")
        time.sleep(REST_S)
        pss_bytes = pss_of(agent.pid)
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)
        listener.disconnect()
        listener.loop_stop()
    return at_s[0] - started_s, pss_bytes


def pss_of(pid: int) -> int:
    """Return the proportional set size of a process in bytes (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no Pss in smaps_rollup of {pid}")


def _python_start_s(device: Device) -> float:
    python = device.command.with_name("python")
    samples = []
    for _ in range(STARTS):
        began_s = time.perf_counter()
        subprocess.run([str(python), "-c", "pass"], check=True)
        samples.append(time.perf_counter() - began_s)
    return median(samples)
