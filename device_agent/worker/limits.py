"""What bounds a worker process from outside: environment, sandbox program, memory reading."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from device_agent.errors import SandboxError
from device_agent.worker import landlock

PROBE_TIMEOUT_S = 20.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "TZ")


def environment(scratch: Path, threads: int) -> dict[str, str]:
    """Return the whole environment of a worker; nothing of the supervisor's leaks into it."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        # ONNX Runtime else writes a device id and a usage database into the home folder.
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def wrapping(scratch: Path) -> list[str]:
    """Return the command words that put a worker into a sandbox program, or none.

    Landlock does the same from inside the worker and costs nothing, so bubblewrap stands in only
    where the kernel has no Landlock. The process id space stays shared: the supervisor reads the
    worker's memory by its process id.
    """
    bwrap = _usable_bubblewrap()
    if bwrap is None:
        return []
    return [bwrap, *_BUBBLEWRAP_OPTIONS, "--bind", str(scratch), str(scratch), "--"]


_BUBBLEWRAP_OPTIONS = (
    "--die-with-parent", "--unshare-net", "--unshare-ipc", "--unshare-uts",
    "--ro-bind", "/", "/", "--dev", "/dev",
)  # fmt: skip


@functools.cache
def _usable_bubblewrap() -> str | None:
    bwrap = shutil.which("bwrap")
    if bwrap is None or landlock.abi():
        return None
    try:
        done = subprocess.run(
            [bwrap, *_BUBBLEWRAP_OPTIONS, "--", "true"],
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bwrap if done.returncode == 0 else None


@functools.cache
def protections() -> tuple[str, ...]:
    """Return the protections that hold for a worker on this machine, each one tried for real.

    A child confines itself like a worker and attempts what must not work
    (:mod:`device_agent.worker.probe`). ``memory-watchdog`` is the supervisor's own.

    Raises:
        SandboxError: The child could not be run.
    """
    with (
        tempfile.TemporaryDirectory(prefix="aid-probe-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        scratch, outside = Path(folder, "scratch"), Path(folder, "outside")
        scratch.mkdir()
        outside.write_bytes(b"secret")
        words = [str(listener.getsockname()[1]), str(outside), str(scratch)]
        command = [sys.executable, "-I", "-B", "-m", "device_agent.worker.probe", *words]
        try:
            done = subprocess.run(
                [*wrapping(scratch), *command],
                capture_output=True,
                env=environment(scratch, 1),
                timeout=PROBE_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as e:
            raise SandboxError(f"the worker's protections cannot be tried: {e}") from e
    held = [name for line in done.stdout.splitlines() for name in json.loads(line)]
    return (*held, "memory-watchdog", *(["bubblewrap"] if _usable_bubblewrap() else []))


def rss_bytes(pid: int) -> int:
    """Return the resident set of process ``pid`` in bytes; 0 when there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
