"""Who may ask the hub for what: one administrator's token, and limits on guessing it."""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from aid_edge.hub.errors import RefusedError, TooManyFailuresError, UnauthorizedError
from aid_edge.hub.mqtt import is_loopback

MAX_FAILURES = 10
"""Wrong tokens from one address within ``FORGET_S`` before it has to wait."""
FORGET_S = 60.0
MAX_ADDRESSES = 10_000
ADMINISTRATOR = "administrator"


@dataclass
class _Failures:
    count: int
    since_s: float


class Guard:
    """Checks tokens and host names.

    Args:
        token: The administrator's.
        host: Address that the hub listens on. Bound to loopback, reading needs no token, and only
            the names of this machine are answered: a page of another site in the browser must not
            read the fleet under a name that it makes point here.
        clock: Monotonic seconds.
    """

    def __init__(
        self, token: str, host: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._token = token.encode()
        self.is_local = is_loopback(host)
        self._clock = clock
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._lock = threading.Lock()

    def check_host(self, connection: HTTPConnection) -> None:
        """Refuse names that are not this machine's, while bound to loopback.

        Raises:
            RefusedError: The Host header names another machine.
        """
        name = connection.url.hostname or ""
        if self.is_local and not is_loopback(name):
            raise RefusedError(
                f"this hub is not {name!r}",
                hint="It listens on this machine only; use http://127.0.0.1.",
            )

    def check_read(self, connection: HTTPConnection) -> None:
        """Let a reader pass: anybody on this machine, or who has the token.

        Raises:
            UnauthorizedError: No token, or a wrong one.
            TooManyFailuresError: Too many wrong ones came from this address.
        """
        if not self.is_local or "authorization" in connection.headers:
            self.check_write(connection)

    def check_write(self, connection: HTTPConnection) -> None:
        """Let somebody pass who changes something: who has the token.

        Raises:
            UnauthorizedError: No token, or a wrong one.
            TooManyFailuresError: Too many wrong ones came from this address.
        """
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthorizedError("a token is needed", cause="no Authorization: Bearer header")
        self.check_token(token.strip(), connection.client.host if connection.client else "")

    def check_token(self, token: str, address: str) -> None:
        """Let ``token`` from ``address`` pass if it is the administrator's.

        Raises:
            UnauthorizedError: It is not.
            TooManyFailuresError: Too many wrong ones came from this address.
        """
        now = self._clock()
        with self._lock:
            failures = self._failures.get(address)
            if failures is not None and now - failures.since_s > FORGET_S:
                del self._failures[address]
                failures = None
            if failures is not None and failures.count >= MAX_FAILURES:
                raise TooManyFailuresError(f"too many wrong tokens from {address}")
        if hmac.compare_digest(token.encode(), self._token):
            return
        with self._lock:
            failures = self._failures.setdefault(address, _Failures(0, now))
            failures.count += 1
            if len(self._failures) > MAX_ADDRESSES:
                self._failures.popitem(last=False)
        raise UnauthorizedError("the token is wrong")
