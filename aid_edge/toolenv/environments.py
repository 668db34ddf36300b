"""Makes, finds and removes the environments: one folder per tool and pinned list.

::

    $AID_EDGE_TOOLS or $XDG_CACHE_HOME/aid-edge/tools/
      vela-3f0c9a.../        a whole environment, named after the digest of its pinned list
      vela.lock              held while one is made or removed
      vela.failed            why the last attempt failed
      vela-making-...        half made; renamed when whole, swept by the next maker
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aid_edge.errors import HostError, UsageError
from device_agent.contract.errors import EXIT_TOOLCHAIN_MISSING

FOLDER = "AID_EDGE_TOOLS"
"""Environment variable that names the folder of all environments."""

MAKE_TIME_S = 1800.0
RETRY_AFTER_S = 600.0
"""After a failure, nothing is tried for so long unless it is asked for: offline, pip takes its time
to find out, and conversions come in dozens."""

_POLL_S = 0.2
_PIP_TIMEOUT_S = 15
_PIP_RETRIES = 2
_DIGEST_DIGITS = 16
_MAX_CAUSE_CHARS = 600
_PINNED = re.compile(r"^([A-Za-z0-9_.\-]+)==(\S+)", re.MULTILINE)

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Tool:
    """A tool with an environment of its own.

    Attributes:
        name: As in ``pins/<name>.txt``.
        distribution: The one whose version is the tool's.
        purpose: What it is for.
        megabytes: About what its environment takes on disk.
        python_max: Newest Python (minor version of 3) that its distributions have wheels for.
    """

    name: str
    distribution: str
    purpose: str
    megabytes: int
    python_max: int

    @property
    def pins(self) -> str:
        """The pinned list, as pip reads it."""
        files = importlib.resources.files("aid_edge.toolenv")
        text: str = (files / "pins" / f"{self.name}.txt").read_text("utf-8")
        return text

    @property
    def version(self) -> str:
        """The pinned version of the tool itself."""
        return str(dict(_PINNED.findall(self.pins))[self.distribution])

    @property
    def key(self) -> str:
        """Name of the environment's folder; changes with the pinned list and the Python."""
        python = f"{sys.implementation.cache_tag} {sys.platform} {os.uname().machine}"
        digest = hashlib.sha256(f"{python}\n{self.pins}".encode()).hexdigest()
        return f"{self.name}-{digest[:_DIGEST_DIGITS]}"


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("tflite-micro", "tflite-micro", "runs TensorFlow Lite Micro models here", 112, 13),
        Tool("vela", "ethos-u-vela", "compiles for Arm Ethos-U and estimates cycles", 112, 13),
        Tool("onnx2tf", "onnx2tf", "converts ONNX models to LiteRT", 2600, 12),
        Tool("tflite-runtime", "tflite-runtime", "runs LiteRT models as old devices do", 110, 11),
    )
}
"""Every tool that has an environment of its own, by name."""


class ToolMissingError(HostError):
    """A tool's environment is not there and could not be made."""

    code = "tool-missing"
    exit_code = EXIT_TOOLCHAIN_MISSING

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"the environment of the tool {name} is not there: {why}",
            hint=f"With the package index within reach: aid-edge tools install {name}",
        )
        self.name = name


def ensure(name: str, on_progress: Progress | None = None, *, insist: bool = False) -> Path:
    """Return the Python of the environment of the tool ``name``, made if it is not there.

    Safe in several processes at once: one makes it, the others wait.

    Args:
        name: One of ``TOOLS``.
        on_progress: Told how far it is.
        insist: Try although an attempt failed a short while ago.

    Raises:
        UsageError: There is no such tool.
        ToolMissingError: It could not be made: no package index, wheel or room for it.
    """
    tool = _tool(name)
    if (python := find(name)) is not None:
        return python
    if sys.version_info.minor > tool.python_max:
        newest = f"3.{tool.python_max}"
        raise ToolMissingError(name, f"it has no wheels for Python over {newest}")
    failed = folder() / f"{name}.failed"
    if not insist and _is_fresh(failed):
        raise ToolMissingError(name, failed.read_text("utf-8", errors="replace"))
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with _lock(name):
            if (python := find(name)) is None:
                python = _make(tool, on_progress or _silent)
                failed.unlink(missing_ok=True)
    except OSError as e:
        raise ToolMissingError(name, f"{folder()}: {e.strerror or e}") from e
    except ToolMissingError as e:
        with contextlib.suppress(OSError):
            failed.write_text(str(e).partition(": ")[2], "utf-8")
        raise
    return python


def find(name: str) -> Path | None:
    """Return the Python of the environment of the tool ``name``, or None where it is not there.

    Raises:
        UsageError: There is no such tool.
    """
    python = _python(folder() / _tool(name).key)
    # Also false where the Python that it was made with is gone.
    return python if python.exists() else None


def is_installed(name: str) -> bool:
    """Return whether the environment of the tool ``name`` is there.

    Raises:
        UsageError: There is no such tool.
    """
    return find(name) is not None


def version(name: str) -> str:
    """Return the pinned version of the tool ``name``.

    Raises:
        UsageError: There is no such tool.
    """
    return _tool(name).version


def remove(name: str) -> int:
    """Remove every environment of the tool ``name``, also of older lists; return how many.

    Raises:
        UsageError: There is no such tool.
        ToolMissingError: The folder cannot be written.
    """
    _tool(name)
    if not folder().is_dir():
        return 0
    try:
        with _lock(name):
            found = [path for path in folder().iterdir() if _is_of(path, name)]
            for path in found:
                _delete(path)
            (folder() / f"{name}.failed").unlink(missing_ok=True)
    except OSError as e:
        raise ToolMissingError(name, f"{folder()}: {e.strerror or e}") from e
    return len(found)


def folder() -> Path:
    """Return the folder of all environments."""
    if named := os.environ.get(FOLDER):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "aid-edge" / "tools"


def environment() -> dict[str, str]:
    """Return the environment variables for a process of a tool: ours without Python's own.

    A worker's ``PYTHONPATH`` would put our packages in front of the tool's.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}


def _tool(name: str) -> Tool:
    if name not in TOOLS:
        raise UsageError(f"there is no tool {name!r}", hint=f"There are: {', '.join(TOOLS)}.")
    return TOOLS[name]


def _python(environment_folder: Path) -> Path:
    return environment_folder / "bin" / "python"


def _is_of(path: Path, name: str) -> bool:
    digits, start = "0123456789abcdef", f"{name}-"
    rest = path.name.removeprefix(start)
    is_whole = len(rest) == _DIGEST_DIGITS and all(c in digits for c in rest)
    return path.name.startswith(start) and (is_whole or rest.startswith("making-"))


def _is_fresh(failed: Path) -> bool:
    try:
        return time.time() - failed.stat().st_mtime < RETRY_AFTER_S
    except OSError:
        return False


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    """Hold the tool's lock; the system lets go of it when its holder dies."""
    deadline = time.monotonic() + MAKE_TIME_S
    with (folder() / f"{name}.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    why = f"another process has been making it for {MAKE_TIME_S:g} s"
                    raise ToolMissingError(name, why) from None
                time.sleep(_POLL_S)
        yield


def _make(tool: Tool, tell: Progress) -> Path:
    """Make the environment beside its place and move it there whole; the lock is held."""
    for path in folder().iterdir():
        if path.name.startswith(f"{tool.name}-making-"):
            _delete(path)
    place = folder() / tool.key
    making = Path(tempfile.mkdtemp(prefix=f"{tool.name}-making-", dir=folder()))
    try:
        tell(0.0, f"make an environment for {tool.name} {tool.version}")
        _call(tool, [sys.executable, "-m", "venv", "--clear", str(making)], lambda _: None)
        pins = making / "pins.txt"
        pins.write_text(tool.pins, "utf-8")
        total, seen = len(_PINNED.findall(tool.pins)), 0

        def note(line: str) -> None:
            nonlocal seen
            if line.startswith("Collecting "):
                seen += 1
                tell(0.05 + 0.75 * min(seen / total, 1.0), line.strip()[:80])
            elif line.startswith("Installing collected"):
                tell(0.85, f"install {total} packages")

        _call(
            tool,
            [
                str(_python(making)), "-I", "-m", "pip", "install", "--no-input",
                "--disable-pip-version-check", "--only-binary", ":all:",
                "--timeout", str(_PIP_TIMEOUT_S), "--retries", str(_PIP_RETRIES),
                "--requirement", str(pins),
            ],
            note,
        )  # fmt: skip
        if place.exists():
            _delete(place)  # what is left of one whose Python is gone
        # mkdtemp makes it private; other users of a shared folder may read it.
        making.chmod(0o755)
        making.rename(place)
    finally:
        if making.exists():
            _delete(making)
    tell(1.0, "done")
    return _python(place)


def _call(tool: Tool, command: list[str], note: Callable[[str], None]) -> None:
    last: list[str] = []
    deadline = time.monotonic() + MAKE_TIME_S
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", env=environment(),
    ) as process:  # fmt: skip
        try:
            for line in process.stdout or ():
                note(line)
                last = [*last[-20:], line.strip()]
                if time.monotonic() > deadline:
                    process.kill()
                    last.append(f"Error: it took more than {MAKE_TIME_S:g} s")
                    break
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        errors = [line for line in last if "ERROR" in line or "Error" in line] or last[-3:]
        raise ToolMissingError(tool.name, " | ".join(errors)[:_MAX_CAUSE_CHARS] or "pip failed")


def _delete(path: Path) -> None:
    """Remove a folder; moved aside first, so that nobody finds half of it."""
    gone = path
    if "-making-" not in path.name:
        name = path.name.rpartition("-")[0]
        gone = path.with_name(f"{name}-making-{path.name.rpartition('-')[2]}-gone")
        path.rename(gone)
    shutil.rmtree(gone)


def _silent(share: float, text: str) -> None:
    """Take progress and say nothing."""
