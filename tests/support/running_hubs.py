"""A hub in this process and devices that do what they are told, for tests of verbs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from aid_edge.catalogue.files import write_atomic
from aid_edge.home import Home
from aid_edge.hub.broker.choice import BrokerOptions
from aid_edge.hub.serve import HubOptions, HubState, RunningHub, running_hub
from aid_edge.hub.store import register_device
from device_agent.contract.desired import decode_desired, decode_envelope
from device_agent.contract.messages import Reported
from device_agent.contract.topics import Channel
from tests.support.simulated_device import BOOT_ID, Identity, SimulatedDevice, issue


@contextmanager
def hub_of(home: Home) -> Iterator[RunningHub]:
    """Run a hub of ``home`` as ``aid-edge hub serve`` does, with ``hub.json``."""
    options = HubOptions(BrokerOptions("auto", port=0), port=0)
    state = home.hub / "hub.json"
    with running_hub(home, options) as hub:
        write_atomic(state, msgspec.json.encode(HubState(hub.url, hub.broker.url, 0)))
        try:
            yield hub
        finally:
            state.unlink()


@contextmanager
def obedient_device(
    home: Home, hub: RunningHub, device: str, folder: Path, *, failing: str = "", refusing: str = ""
) -> Iterator[SimulatedDevice]:
    """Run a device that reports every desired state as done.

    Args:
        home: Of the hub.
        hub: That tells it what to run.
        device: Its id.
        folder: For its certificate.
        failing: Version that it reports as failed.
        refusing: Version that it reports as refused.
    """
    register_device(home, device, "generic-x86_64", "")
    is_tls = hub.broker.url.startswith("mqtts")
    identity = issue(home, device, folder) if is_tls else Identity(device)
    stop = threading.Event()

    def obey() -> None:
        while not stop.is_set():
            try:
                envelope = connection.inbox[Channel.DESIRED].get(timeout=0.1)
            except queue.Empty:
                continue
            desired = decode_desired(decode_envelope(envelope).payload)
            version = desired.slots[0].release.version
            if version == refusing:
                refusal = Reported(
                    boot_id=BOOT_ID, revision=desired.revision, accepted=False, reason="expired"
                )
                connection.send(refusal, Channel.REPORTED)
            elif version == failing:
                connection.run_desired(desired, state="failed", reason="golden vectors differ")
            else:
                connection.run_desired(desired, state="fetching")
                connection.run_desired(desired)

    with SimulatedDevice(hub.broker.url, home.fleet, identity) as connection:
        connection.birth()
        thread = threading.Thread(target=obey)
        thread.start()
        try:
            yield connection
        finally:
            stop.set()
            thread.join()
