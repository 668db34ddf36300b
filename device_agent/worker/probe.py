"""A short-lived child that confines itself like a worker and then tries what must not work.

Run by :func:`device_agent.worker.limits.protections` with the port of a listening TCP socket and
a file outside of the scratch folder; prints the protections that held as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from device_agent.contract.manifest import Limits
from device_agent.worker import sandbox

MEMORY_BYTES = 64 * 2**20


def _write(outside: Path) -> None:
    outside.with_name("written").write_bytes(b"x")


def _read(outside: Path) -> None:
    outside.read_bytes()


def _connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 1).close()


def _datagram() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def _execute() -> None:
    os.execv("/bin/true", ["true"])  # noqa: S606 - the attempt is the point


def _signal_parent() -> None:
    os.kill(os.getppid(), 0)


def _allocate() -> None:
    bytearray(sandbox.DATA_SLACK_BYTES + 16 * MEMORY_BYTES)


def _fill_disk() -> None:
    with Path("filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * sandbox.FILE_MAX_BYTES)


def _is_refused(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except (OSError, MemoryError):
        return True
    return False


def main(arguments: list[str]) -> None:
    """Confine this process, try everything, print what was refused."""
    port, outside, scratch = int(arguments[0]), Path(arguments[1]), Path(arguments[2])
    os.chdir(scratch)
    # On disk full a write ends in an error, not in the process' end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sandbox.confine(scratch, scratch, Limits(memory_bytes=MEMORY_BYTES, threads=1, deadline_s=1))
    attempts: dict[str, Callable[[], None]] = {
        "memory-limit": _allocate,
        "file-size-limit": _fill_disk,
        "no-writes-outside": lambda: _write(outside),
        "no-reads-outside": lambda: _read(outside),
        "no-tcp": lambda: _connect(port),
        "no-sockets": _datagram,
        "no-signals": _signal_parent,
        "no-new-processes": _fork,
    }
    held = [name for name, attempt in attempts.items() if _is_refused(attempt)]
    # Last: where it is not refused, this process is another program from here on.
    sys.stdout.write(json.dumps(held))
    sys.stdout.flush()
    if _is_refused(_execute):
        sys.stdout.write("\n" + json.dumps(["no-new-programs"]))


if __name__ == "__main__":
    main(sys.argv[1:])
