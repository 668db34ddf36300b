"""Functions that the tests of ``aid_edge.isolate`` run in worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from aid_edge.errors import MissingDependencyError, UnsupportedModelError
from aid_edge.isolate import progress


def double(number: int) -> int:
    print("doubling")
    return 2 * number


def count_slowly(steps: int) -> str:
    for step in range(steps):
        progress(step / steps, f"step {step}")
    return "counted"


def refuse() -> None:
    raise UnsupportedModelError("cannot", ["Conv: no", "Gelu: no"], hint="retrain")


def miss_a_package() -> None:
    raise MissingDependencyError("this", "notorch", "convert")


def fail_with_a_foreign_error() -> None:
    print("a library says: about to fail")
    raise ValueError("nobody expects this")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def exit_early() -> None:
    print("giving up", flush=True)
    os._exit(7)


def hang() -> None:
    time.sleep(600)


def eat(size_bytes: int) -> int:
    blocks = []
    for _ in range(size_bytes // 2**20):
        blocks.append(b"x" * 2**20)
        time.sleep(0.001)
    return len(blocks)


def read_stdin() -> str:
    return sys.stdin.read()


def start_a_child_and_hang(pid_file: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


def return_something_unpicklable() -> object:
    return lambda: 0


def environment() -> dict[str, str]:
    return dict(os.environ)
