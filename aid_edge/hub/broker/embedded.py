"""rumqttd through the ``iotcore`` package: a broker where none is installed, on loopback only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aid_edge.catalogue.files import write_atomic
from aid_edge.errors import BrokerError, MissingDependencyError
from aid_edge.hub.broker.address import LOOPBACK
from aid_edge.hub.broker.running import Child, RunningBroker
from device_agent.contract.messages import MAX_REPLY_BYTES

LACKS = (
    "no TLS and no access rules: any program on this machine can speak as any device",
    "retained messages are in memory only, and are published again after a restart",
    "reachable from this machine only",
)
"""What the embedded broker cannot do; said when it starts."""
MAX_PAYLOAD_BYTES = MAX_REPLY_BYTES + 64 * 1024
SEGMENT_BYTES = 16 * 2**20
SEGMENTS = 4
"""rumqttd keeps this much of every topic's log in memory."""

_CONFIGURATION = """\
id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = {segment}
max_segment_count = {segments}
[v5.1]
name = "v5"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {payload}
max_inflight_count = 200
dynamic_filters = true
"""


@contextmanager
def running_embedded(folder: Path, port: int) -> Iterator[RunningBroker]:
    """Run rumqttd for as long as the ``with`` block lasts.

    Raises:
        MissingDependencyError: ``iotcore`` is not installed.
        BrokerError: It does not start.
    """
    try:
        from iotcore import Broker  # noqa: PLC0415 - not on every platform
    except ImportError as e:
        raise MissingDependencyError("the embedded broker", "iotcore", "hub") from e
    config = folder / "rumqttd.toml"
    text = _CONFIGURATION.format(
        segment=SEGMENT_BYTES,
        segments=SEGMENTS,
        host=LOOPBACK,
        port=port,
        payload=MAX_PAYLOAD_BYTES,
    )
    try:
        write_atomic(config, text.encode())
    except OSError as e:
        raise BrokerError(f"{config}: {e.strerror}") from e

    def start() -> Child:
        return _Process(Broker(config_path=str(config)))

    with RunningBroker("the embedded broker", LOOPBACK, port, start) as broker:
        yield broker


class _Process:
    """One run of rumqttd, in a child process that ends when we do."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        try:
            broker.start()
        except (OSError, RuntimeError) as e:
            raise BrokerError(f"the embedded broker did not start: {e}") from e

    def poll(self) -> int | None:
        # The package tells whether its child runs, not with what it ended.
        return None if self._broker.is_running else -1

    def stop(self) -> None:
        self._broker.stop()

    def complaint(self) -> str:
        return ""
