"""Ports and addresses of the broker."""

from __future__ import annotations

import socket
from pathlib import Path

from aid_edge.errors import BrokerError

DEFAULT_PORT = 8883
LOOPBACK = "127.0.0.1"
_PORT_FILE = "port"


def choose_port(folder: Path, host: str, wanted: int | None) -> int:
    """Return the port for the broker to listen on at ``host``.

    Devices carry the address in their configuration, so it should stay: without a wish it is the
    port of the last time, else ``DEFAULT_PORT`` when that is free, else any free one. 0 wishes for
    any free one.

    Raises:
        BrokerError: The wished port is taken, or ``host`` is no address of this machine.
    """
    last = _read_port(folder / _PORT_FILE)
    if wanted is None and last is not None:
        return last  # if another program took it, the start fails and says so
    for port in (DEFAULT_PORT, 0) if wanted is None else (wanted,):
        try:
            return free_port(host, port)
        except OSError as e:
            if wanted is not None or port == 0:
                raise BrokerError(
                    f"the broker cannot listen on {host}:{port}: {e.strerror}",
                    hint="Name another one with --broker-port, or 0 for any free one.",
                ) from e
    raise AssertionError("unreachable: port 0 returns or raises")


def remember_port(folder: Path, port: int) -> None:
    """Keep ``port`` for the next start."""
    (folder / _PORT_FILE).write_text(f"{port}\n")


def free_port(host: str, port: int = 0) -> int:
    """Return ``port`` if it is free at ``host``, or any free one for 0.

    Raises:
        OSError: It is taken, or ``host`` is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        bound: int = probe.getsockname()[1]
        return bound


def is_listening(host: str, port: int) -> bool:
    """Return whether something accepts connections at ``host`` and ``port``."""
    target = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - compared only
    try:
        with socket.create_connection((target, port), timeout=1.0):
            return True
    except OSError:
        return False


def _read_port(path: Path) -> int | None:
    try:
        port = int(path.read_text())
    except (OSError, ValueError):
        return None
    return port if 0 < port < 2**16 else None
