"""A broker's process: started, watched, started again when it dies, and ended with the hub."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol, Self

from aid_edge.errors import BrokerError
from aid_edge.hub.broker.address import is_listening

START_S = 15.0
POLL_S = 0.05
WATCH_S = 0.2
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 30.0
STABLE_S = 60.0

_log = logging.getLogger(__name__)


class Child(Protocol):
    """One run of the broker."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def stop(self) -> None:
        """End it, and return when it is gone."""

    def complaint(self) -> str:
        """Return what it said last, for people."""


class RunningBroker:
    """Keeps a child of ``start`` running for as long as the ``with`` block lasts."""

    def __init__(self, what: str, host: str, port: int, start: Callable[[], Child]) -> None:
        self._what = what
        self._host = host
        self._port = port
        self._start = start
        self._child: Child | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="broker")
        self.restarts = 0

    def __enter__(self) -> Self:
        if is_listening(self._host, self._port):
            raise BrokerError(
                f"the broker cannot listen on {self._host}:{self._port}: something else does",
                hint="Name another one with --broker-port; devices must be flashed anew for it.",
            )
        self._child = self._started()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._child is not None:
            self._child.stop()

    def _started(self) -> Child:
        child = self._start()
        deadline = time.monotonic() + START_S
        while not is_listening(self._host, self._port):
            code = child.poll()
            if code is not None or time.monotonic() > deadline or self._stop.is_set():
                child.stop()
                raise BrokerError(
                    f"{self._what} did not start"
                    + (f": it ended with {code}" if code is not None else ""),
                    cause=child.complaint(),
                )
            time.sleep(POLL_S)
        return child

    def _watch(self) -> None:
        backoff_s, since_s = BACKOFF_MIN_S, time.monotonic()
        while not self._stop.wait(WATCH_S):
            if self._child is not None and self._child.poll() is None:
                if time.monotonic() - since_s > STABLE_S:
                    backoff_s = BACKOFF_MIN_S
                continue
            if self._child is not None:
                _log.error("%s ended with %s; starting it again", self._what, self._child.poll())
                self._child.stop()
                self._child = None
            if self._stop.wait(backoff_s):
                return
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            try:
                self._child = self._started()
            except BrokerError as e:
                _log.error("%s: %s", e, e.cause)
                continue
            self.restarts += 1
            since_s = time.monotonic()
