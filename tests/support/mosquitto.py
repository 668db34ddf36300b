"""A real Mosquitto on a free loopback port, ended by ``with``."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

START_S = 10.0


def program() -> str:
    """Return where Mosquitto is, or skip the test."""
    found = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.skip("Mosquitto is not installed")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Mosquitto:
    """One broker; ``extra`` lines go into its configuration."""

    folder: Path
    extra: tuple[str, ...] = ("allow_anonymous true",)
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it, again on the same port after :meth:`stop`."""
        command = program()
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "set_tcp_nodelay true", *self.extra]
        config.write_text("\n".join(lines) + "\n")
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([command, "-c", str(config)], stdout=log, stderr=log)
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
            except OSError:
                time.sleep(0.02)
            else:
                return self
        raise AssertionError((self.folder / "mosquitto.log").read_text())

    def pause(self) -> None:
        """Let it neither read nor write, as a network that is gone."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it at once, as a machine that lost power."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
