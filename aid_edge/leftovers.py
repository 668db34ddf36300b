"""Folders that are only needed while their process lives, and what killed processes left of them.

Their names say the machine and the process that made them: ``<kind><host>-<pid>-<random>``.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ABANDONED_S = 2 * 86400.0
"""A folder of another machine is taken for abandoned after this time."""


def make(parent: Path, kind: str) -> Path:
    """Return a new folder in ``parent`` that is known as this process's."""
    return Path(tempfile.mkdtemp(dir=parent, prefix=prefix(kind)))


def prefix(kind: str) -> str:
    """Return what names of this process's folders begin with."""
    return f"{kind}{socket.gethostname()}-{os.getpid()}-"


def clear(folders: Iterable[Path], kind: str) -> None:
    """Remove those of ``folders`` whose process is gone."""
    for folder in folders:
        if _is_abandoned(folder, kind):
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path, kind: str) -> bool:
    host, _, pid = folder.name.removeprefix(kind).rpartition("-")[0].rpartition("-")
    if host == socket.gethostname() and pid.isdecimal():
        return not _is_alive(int(pid))
    try:
        return time.time() - folder.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
