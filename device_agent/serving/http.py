"""Connections of the local API: loopback TCP and a Unix socket, each with bounds on everything."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from device_agent.errors import ServingError
from device_agent.serving.api import refusal
from device_agent.serving.http1 import (
    HEAD_END,
    MAX_HEAD_BYTES,
    Head,
    Response,
    is_local,
    parse_head,
)
from device_agent.serving.refusals import (
    BusyError,
    ForbiddenHostError,
    HeaderTooLargeError,
    RefusalError,
)

LOOPBACK = "127.0.0.1"
SOCKET_MODE = 0o660
MAX_SOCKET_PATH_BYTES = 107
_KEPT_BODY_BYTES = 4 * 2**20
"""A connection keeps memory for a body of up to this size, so that the next one costs none."""

_REFUSE_S = 0.1
"""How long a connection that there is no room for may hold up the next one."""

_log = logging.getLogger(__name__)
Answer = Callable[[Head, memoryview, float], Response]


@dataclass(frozen=True)
class Bounds:
    """What one connection, and all of them, may take.

    Attributes:
        max_body_bytes: Largest body of one request.
        max_all_bodies_bytes: Of all requests that are being read or answered.
        max_connections: Open at the same time.
        idle_s: How long a connection may stay open between requests.
        head_s: How long a head may take to arrive.
        body_s: How long a body may take to arrive.
        write_s: How long a client may take to read its answer.
    """

    max_body_bytes: int = 64 * 2**20
    max_all_bodies_bytes: int = 128 * 2**20
    max_connections: int = 64
    idle_s: float = 75.0
    head_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0


class HttpServer:
    """Serves ``answer`` on loopback TCP and on a Unix socket until it is closed.

    Args:
        answer: Called from a thread per connection.
        port: Loopback TCP port; 0 takes a free one.
        socket_path: Where the Unix socket is made; one that nobody listens on is replaced.
        bounds: What connections may take.

    Raises:
        ServingError: Port or socket cannot be had.
    """

    def __init__(
        self, answer: Answer, *, port: int, socket_path: Path, bounds: Bounds | None = None
    ) -> None:
        self._answer = answer
        self._bounds = bounds or Bounds()
        # One request that is allowed at all must find room when it is alone.
        self._max_all_bodies_bytes = max(
            self._bounds.max_all_bodies_bytes, self._bounds.max_body_bytes
        )
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._bodies_bytes = 0
        self._socket_path = socket_path
        with contextlib.ExitStack() as opened:
            self._tcp = opened.enter_context(_listen_tcp(port))
            self._unix = opened.enter_context(_listen_unix(socket_path))
            self._wake, self._waker = socket.socketpair()
            opened.pop_all()
        self.port = int(self._tcp.getsockname()[1])
        self._thread = threading.Thread(target=self._accept_all, name="api", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Accept no more, end all connections and wait for their threads; may be called twice."""
        with contextlib.suppress(OSError):
            self._waker.send(b"x")
        self._thread.join()
        self._waker.close()
        with self._lock:
            open_ones = dict(self._connections)
        for connection in open_ones.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in open_ones:
            thread.join()

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as ready, self._tcp, self._unix, self._wake:
            for listener in (self._tcp, self._unix, self._wake):
                ready.register(listener, selectors.EVENT_READ)
            while True:
                events = [key.fileobj for key, _ in ready.select()]
                if self._wake in events:
                    break
                for listener in (self._tcp, self._unix):
                    if listener in events:
                        self._accept(listener)
        self._socket_path.unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as e:
            # Out of descriptors, or the client is gone again: others are still served.
            _log.warning("a connection cannot be accepted: %s", e)
            time.sleep(0.05)
            return
        if listener is self._tcp:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = threading.Thread(
            target=self._serve,
            args=(connection, listener is self._tcp),
            name="api-connection",
            daemon=True,
        )
        with self._lock:
            has_room = len(self._connections) < self._bounds.max_connections
            if has_room:
                self._connections[thread] = connection
        if has_room:
            thread.start()
            return
        busy = refusal(BusyError(f"{self._bounds.max_connections} connections are open already"))
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_REFUSE_S)
            connection.sendall(busy.head(is_persistent=False) + b"".join(busy.parts))
            connection.shutdown(socket.SHUT_WR)
            # Closing over an unread request would reset the connection, and lose the answer.
            connection.recv(MAX_HEAD_BYTES)

    def _serve(self, end: socket.socket, is_tcp: bool) -> None:
        try:
            with end:
                _Connection(end, self._bounds, self._answer, self._reserve, is_tcp).serve()
        except (OSError, EOFError):
            # The client went away or was too slow; there is nobody to tell.
            pass
        finally:
            with self._lock:
                self._connections.pop(threading.current_thread(), None)

    def _reserve(self, count_bytes: int) -> None:
        """Account for a body; a negative count gives it back."""
        with self._lock:
            if count_bytes > 0 and (self._bodies_bytes + count_bytes > self._max_all_bodies_bytes):
                raise BusyError(
                    "too many bytes of requests are in work", hint="Ask again later.",
                    is_closing=True,
                )  # fmt: skip
            self._bodies_bytes += count_bytes


class _Connection:
    """One client's connection, served by one thread."""

    def __init__(
        self,
        end: socket.socket,
        bounds: Bounds,
        answer: Answer,
        reserve: Callable[[int], None],
        is_tcp: bool,
    ) -> None:
        self._end = end
        self._bounds = bounds
        self._answer = answer
        self._reserve = reserve
        self._is_tcp = is_tcp
        self._received = bytearray()
        self._kept = bytearray()

    def serve(self) -> None:
        """Answer requests until one side closes.

        Raises:
            OSError: The client went away or was too slow.
            EOFError: It went away in the middle of a request.
        """
        is_persistent = True
        while is_persistent:
            try:
                raw = self._read_head()
                if raw is None:
                    return
                arrived_s = time.monotonic()
                head = parse_head(raw)
                response = self._respond(head, arrived_s)
                is_persistent = head.is_persistent and not response.is_closing
            except RefusalError as e:
                response, is_persistent = refusal(e), False
            self._send(response, is_persistent=is_persistent)
        self._end.shutdown(socket.SHUT_WR)
        self._linger()

    def _respond(self, head: Head, arrived_s: float) -> Response:
        if self._is_tcp and not is_local(head):
            raise ForbiddenHostError(
                "the request was not meant for this machine by a program on it", is_closing=True
            )
        length = head.body_bytes(self._bounds.max_body_bytes)
        self._reserve(length)
        try:
            body = self._read_body(head, length)
            return self._answer(head, body, arrived_s)
        finally:
            self._reserve(-length)

    def _read_head(self) -> bytes | None:
        """Return the next head; None when the client closed, or asked nothing for long."""
        until_s = time.monotonic() + self._bounds.idle_s
        searched = 0
        while True:
            end = self._received.find(HEAD_END, searched)
            if end >= 0:
                break
            if len(self._received) > MAX_HEAD_BYTES:
                raise HeaderTooLargeError(f"the head has over {MAX_HEAD_BYTES} bytes")
            searched = max(0, len(self._received) - len(HEAD_END) + 1)
            is_first = not self._received
            try:
                chunk = self._receive(until_s)
            except TimeoutError:
                if is_first:
                    return None
                raise
            if not chunk:
                return None
            if is_first:
                until_s = time.monotonic() + self._bounds.head_s
            self._received += chunk
        if end > MAX_HEAD_BYTES:
            raise HeaderTooLargeError(f"the head has over {MAX_HEAD_BYTES} bytes")
        raw = bytes(self._received[:end])
        del self._received[: end + len(HEAD_END)]
        return raw

    def _read_body(self, head: Head, length: int) -> memoryview:
        if not length:
            return memoryview(b"")
        if length > _KEPT_BODY_BYTES:
            memory = bytearray(length)
        else:
            if len(self._kept) < length:
                self._kept = bytearray(length)
            memory = self._kept
        body = memoryview(memory)[:length]
        early = min(length, len(self._received))
        body[:early] = self._received[:early]
        del self._received[:early]
        if head.wants_continue and early < length:
            self._end.settimeout(self._bounds.write_s)
            self._end.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        rest = body[early:]
        until_s = time.monotonic() + self._bounds.body_s
        while len(rest):
            self._end.settimeout(_left_s(until_s))
            count = self._end.recv_into(rest)
            if not count:
                raise EOFError("the client closed within a body")
            rest = rest[count:]
        return body.toreadonly()

    def _receive(self, until_s: float) -> bytes:
        self._end.settimeout(_left_s(until_s))
        return self._end.recv(MAX_HEAD_BYTES)

    def _send(self, response: Response, *, is_persistent: bool) -> None:
        head = response.head(is_persistent=is_persistent)
        views = [memoryview(p).cast("B") for p in (head, *response.parts) if len(p)]
        until_s = time.monotonic() + self._bounds.write_s
        while views:
            self._end.settimeout(_left_s(until_s))
            sent = self._end.sendmsg(views)
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def _linger(self) -> None:
        """Read what the client still sends, for a moment: closing at once would lose the answer."""
        until_s = time.monotonic() + 1.0
        for _ in range(64):
            if not self._receive(until_s):
                return


def _left_s(until_s: float) -> float:
    left = until_s - time.monotonic()
    if left <= 0:
        raise TimeoutError("the client is too slow")
    return left


def _listen_tcp(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port), backlog=64)
    except OSError as e:
        raise ServingError(
            f"the local API cannot listen on {LOOPBACK}:{port}: {e.strerror}",
            hint="Set serving.port in the agent's configuration; 0 takes a free one.",
        ) from e


def _listen_unix(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ServingError(
            f"{path}: the path of a Unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes",
            hint="Set serving.socket in the agent's configuration to a shorter one.",
        )
    if _is_listened_on(path):
        raise ServingError(f"{path}: another agent listens here already")
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
        listener.listen(64)
    except OSError as e:
        listener.close()
        raise ServingError(f"the local API cannot listen on {path}: {e.strerror}") from e
    return listener


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
