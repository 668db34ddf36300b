"""Our seam to the broker for what the hub sends: tests put their own in its place."""

from __future__ import annotations

from typing import Protocol

from device_agent.contract.topics import Channel


class Receipt(Protocol):
    """A message on its way."""

    def wait(self, timeout_s: float) -> bool:
        """Return whether it went out, or was acknowledged where it must be, within the time."""


class Outbox(Protocol):
    """What sends messages to devices."""

    def publish(self, device: str, channel: Channel, payload: bytes) -> Receipt | None:
        """Send ``payload`` to ``device``; None, and nothing is sent, while there is no broker."""
