"""Our seam to the broker: publish, subscribe, lifetime by ``with``.

The agent speaks only to :class:`Transport`. :mod:`device_agent.mqtt` is the real one; tests have
one in memory.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True)
class Publication:
    """A message on its way out.

    Attributes:
        qos: 0 or 1; nothing in the contract uses 2.
        expiry_s: After this many seconds a broker need not deliver it any more.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None


@dataclass(frozen=True)
class Subscription:
    """A topic to hear, with the highest quality of service that is wanted."""

    topic: str
    qos: int = 1


@dataclass(frozen=True)
class Received:
    """A message that came in. The payload is as the other side sent it: nothing is checked."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Loss:
    """Why there is no connection, and how long until the next attempt.

    Attributes:
        reason: For people.
        was_connected: False when the attempt itself failed.
        is_taken_over: Another client connected with this one's identity (reason code 0x8E).
        retry_in_s: Seconds until the next attempt.
    """

    reason: str
    was_connected: bool
    is_taken_over: bool
    retry_in_s: float


class Listener(Protocol):
    """What a transport tells its owner. All calls come from one thread, one after another."""

    def will(self, connection: int) -> Publication:
        """Return what the broker publishes when connection number ``connection`` dies."""

    def connected(self, connection: int) -> None:
        """Connection number ``connection`` stands, and all subscriptions are in force."""

    def disconnected(self, loss: Loss) -> None:
        """The connection went away, or an attempt failed."""

    def received(self, message: Received) -> None:
        """A message came in."""


class Transport(Protocol):
    """A connection that is kept up: made on entering, made again whenever it is lost."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def listen(self, listener: Listener, subscriptions: Sequence[Subscription]) -> None:
        """Say who listens, to what; before entering."""

    @property
    def is_connected(self) -> bool:
        """Whether a message could be published now."""

    def publish(self, publication: Publication, *, wait_s: float = 0.0) -> None:
        """Hand a message to the broker; what becomes of it only an application ack can say.

        Args:
            publication: The message.
            wait_s: How long to wait, in seconds, for the broker to have it.

        Raises:
            TransportError: There is no connection, or it did not take the message.
        """


class Backoff:
    """Waiting times between attempts: exponential with full jitter (contract §3.5).

    Full jitter is from M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015:
    uniform between zero and the bound, so that a fleet does not come back all at once.
    """

    def __init__(
        self, *, cap_s: float, base_s: float = 1.0, floor: float = 0.0, rng: random.Random
    ) -> None:
        """Begin with the shortest wait.

        Args:
            cap_s: Longest wait in seconds.
            base_s: Upper bound of the first wait in seconds.
            floor: Share of the bound that is always waited, 0..1.
            rng: Source of the jitter.
        """
        self._cap_s, self._base_s, self._floor, self._rng = cap_s, base_s, floor, rng
        self._attempts = 0

    def next_s(self) -> float:
        """Return how long to wait now, in seconds; the bound of the next wait is twice as far."""
        # 2**30 s is over any cap; the exponent is bounded so that it stays a small number.
        bound_s = min(self._cap_s, self._base_s * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        return bound_s * (self._floor + (1 - self._floor) * self._rng.random())

    def reset(self) -> None:
        """Begin again with the shortest wait."""
        self._attempts = 0
