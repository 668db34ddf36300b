"""Runs tools in their environments: no shell, bounded memory, time and log."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aid_edge.errors import MissingDependencyError, StepCrashedError
from aid_edge.isolate import LOG_TAIL_BYTES, Limits
from aid_edge.toolenv.environments import ensure, environment

MAX_LOG_BYTES = 64 * 2**20
_INTERVAL_S = 0.1
_LAST_LINES = 3


@dataclass(frozen=True)
class ToolRun:
    """What a tool that ended well took and said.

    Attributes:
        seconds: Wall time.
        peak_rss_bytes: Of the process with its children, seen every tenth of a second.
        log: Tail of what it printed.
    """

    seconds: float
    peak_rss_bytes: int
    log: str


def script(name: str) -> str:
    """Return the path of our own script ``name``, which runs in a tool's environment.

    Such scripts stand alone: those environments have none of our packages.
    """
    return str(importlib.resources.files("aid_edge.toolenv") / "scripts" / f"{name}.py")


def run(
    name: str, arguments: Sequence[str], *, cwd: Path | None = None, limits: Limits | None = None
) -> ToolRun:
    """Run ``python ARGUMENTS`` in the environment of the tool ``name`` and wait for its end.

    Args:
        name: The tool; its environment is made if it is not there.
        arguments: Such as ``["-m", "onnx2tf", ...]`` or ``[script("micro"), ...]``.
        cwd: Folder to run in; an empty one that is removed afterwards without it.
        limits: Memory of the process with its children, and wall time.

    Raises:
        ToolMissingError: The environment could not be made.
        StepCrashedError: It failed, or ran out of memory, time or log.
    """
    python = ensure(name)
    bounds = limits or Limits()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="aid-edge-") as scratch,
        tempfile.TemporaryFile() as log,
    ):
        process = subprocess.Popen(
            [str(python), "-I", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            cwd=cwd or scratch, env=environment(),
        )  # fmt: skip
        try:
            reason, peak = _watch(process, log, bounds, started)
        finally:
            end(process)
        tail = _tail(log)
    if reason or process.returncode != 0:
        what = reason or _ended(process.returncode)
        raise StepCrashedError(
            f"the tool {name} {what}; its memory peaked at {peak // 2**20} MiB",
            cause=" | ".join(tail.splitlines()[-_LAST_LINES:]),
            hint="" if not reason else "Use a smaller model, or another runtime.",
        )
    return ToolRun(time.monotonic() - started, peak, tail)


def start(name: str, arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Return a running process of the tool ``name``, with pipes to its stdin and from its stdout.

    It stays in our process group, so that whoever ends us ends it too. Pass it to :func:`end`.

    Raises:
        ToolMissingError: The environment could not be made.
    """
    return subprocess.Popen(
        [str(ensure(name)), "-I", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=log, env=environment(),
    )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all it started, if it still runs, and collect it."""
    if process.poll() is None:
        for one in _family(process):
            with contextlib.suppress(_psutil().Error):
                one.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _watch(
    process: subprocess.Popen[bytes], log: IO[bytes], limits: Limits, started: float
) -> tuple[str, int]:
    """Wait for the end of ``process``; return why it must be killed, if so, and its peak memory."""
    peak = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_INTERVAL_S)
            return "", peak
        used = sum(_rss(one) for one in _family(process))
        peak = max(peak, used)
        if used > limits.memory_bytes:
            return f"needed more than its {limits.memory_bytes // 2**20} MiB of memory", peak
        if time.monotonic() - started > limits.time_s:
            return f"did not finish in its {limits.time_s:g} s", peak
        if os.fstat(log.fileno()).st_size > MAX_LOG_BYTES:
            return f"printed more than {MAX_LOG_BYTES // 2**20} MiB", peak


def _family(process: subprocess.Popen[bytes]) -> Iterator[Any]:
    psutil = _psutil()
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        yield from parent.children(recursive=True)
        yield parent


def _rss(process: Any) -> int:
    with contextlib.suppress(_psutil().Error):
        return int(process.memory_info().rss)
    return 0


def _psutil() -> Any:
    try:
        import psutil  # noqa: PLC0415 -- an extra's package, named when it is missing
    except ModuleNotFoundError as e:
        raise MissingDependencyError("watching tools", "psutil", "convert") from e
    return psutil


def _ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip()
