"""``aid-edge doctor``: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import click

from aid_edge.cli.output import emit, home_option, json_option, table
from aid_edge.errors import HomeError
from aid_edge.home import default_path, open_home
from device_agent.contract.errors import EXIT_TOOLCHAIN_MISSING

PARTS: dict[str, str] = {
    "agent": "Run a release on this machine.",
    "convert": "Compress, export and measure models.",
    "hub": "Serve a fleet.",
    "flash": "Make devices.",
    "tensorflow": "Convert Keras models on TensorFlow in place of torch.",
}
"""What can be installed on its own; all but ``agent`` are extras of the same name."""

SUPPORTED_PYTHON = ((3, 11), (3, 13))
LOW_DISK_BYTES = 4 * 10**9
LOW_MEMORY_BYTES = 3 * 10**9
_TOOL_TIMEOUT_S = 10.0
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")

_REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<range>[^;A-Za-z]*)(;(?P<marker>.*))?$"
)
State = Literal["ok", "missing", "warning"]


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        part: The part that needs it: one of ``PARTS``, or ``machine``.
        found: Version, path or figure.
        hint: What to do when it is not ok.
    """

    part: str
    name: str
    state: State
    found: str
    hint: str = ""


@click.command()
@click.option(
    "--require",
    "required",
    multiple=True,
    type=click.Choice(list(PARTS)),
    help="Exit with 6 when something of this part is missing. Can be given several times.",
)
@home_option
@json_option
@click.pass_context
def command(
    ctx: click.Context, required: tuple[str, ...], home: Path | None, as_json: bool
) -> None:
    """Say what is installed, what is missing and what to do.

    Nothing is imported or started but the version query of programs, so this is quick and safe.
    """
    checks = [*_machine(home), *_packages(), *_converters(), *_programs()]
    lacking = {c.part for c in checks if c.state == "missing"}
    parts = {part: part not in lacking for part in PARTS}
    result = {"parts": parts, "checks": [c._asdict() for c in checks]}
    emit("aid-edge/doctor/v1", result, _text(checks, parts), as_json=as_json)
    if any(not parts[part] for part in required):
        ctx.exit(EXIT_TOOLCHAIN_MISSING)


def _machine(home: Path | None) -> Iterable[Check]:
    first, last = SUPPORTED_PYTHON
    fits = first <= sys.version_info[:2] <= last
    yield Check(
        "machine",
        "python",
        "ok" if fits else "warning",
        platform.python_version(),
        "" if fits else f"Tested with {first[0]}.{first[1]} to {last[0]}.{last[1]}.",
    )
    yield Check("machine", "system", "ok", f"{platform.system()} {platform.machine()}")
    folder = (home or default_path()).expanduser()
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    yield _room("disk", free, LOW_DISK_BYTES, f"free at {existing}")
    memory = _available_memory_bytes()
    if memory is not None:
        yield _room("memory", memory, LOW_MEMORY_BYTES, "available")
    try:
        opened = open_home(home)
    except HomeError as e:
        yield Check("machine", "home", "warning", str(e), e.hint)
    else:
        yield Check("machine", "home", "ok", f"{opened.path} (fleet {opened.fleet})")


def _room(name: str, found_bytes: int, low_bytes: int, what: str) -> Check:
    text = f"{found_bytes / 1e9:.1f} GB {what}"
    if found_bytes >= low_bytes:
        return Check("machine", name, "ok", text)
    hint = f"Converting a model can take {low_bytes / 1e9:.0f} GB."
    return Check("machine", name, "warning", text, hint)


def _available_memory_bytes() -> int | None:
    """Return how much memory programs can still get, or None where Linux's figure is not told."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def requirements_of(part: str, lines: Iterable[str], machine: str) -> dict[str, str]:
    """Return what ``part`` needs: package name to its range of versions.

    Args:
        part: One of ``PARTS``.
        lines: The distribution's ``Requires-Dist`` lines (PEP 508).
        machine: As :func:`platform.machine` has it; lines for others are left out.
    """
    found = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None:
            continue
        marker = match["marker"] or ""
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
        if (extra[1] if extra else "agent") != part:
            continue
        if "platform_machine" in marker and f"'{machine}'" not in marker.replace('"', "'"):
            continue
        found[match["name"].lower()] = match["range"].strip()
    return found


def _packages() -> Iterable[Check]:
    try:
        lines = importlib.metadata.requires("aid-edge") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("agent", "aid-edge", "missing", "runs from source", "pip install aid-edge")
        return
    for part in PARTS:
        command = "pip install aid-edge" if part == "agent" else f"pip install 'aid-edge[{part}]'"
        for name, versions in sorted(requirements_of(part, lines, platform.machine()).items()):
            try:
                found = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                yield Check(part, name, "missing", "", command)
                continue
            if _fits(found, versions):
                yield Check(part, name, "ok", found)
            else:
                yield Check(part, name, "missing", f"{found}, needs {versions}", command)


def _fits(version: str, versions: str) -> bool:
    """Whether ``version`` is in the range; where ``packaging`` is missing, any version fits."""
    if importlib.util.find_spec("packaging") is None:
        return True
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415  not a package of every part

    return SpecifierSet(versions).contains(version, prereleases=True)


def _converters() -> Iterable[Check]:
    points = importlib.metadata.entry_points(group="aid_edge.converters")
    for point in sorted(points, key=lambda p: p.name):
        origin = point.dist.name if point.dist else "unknown"
        yield Check("convert", f"converter {point.name}", "ok", f"from {origin}")


def _programs() -> Iterable[Check]:
    yield _program(
        "hub",
        ["mosquitto"],
        "-h",
        "The hub falls back to its embedded broker, for tests and demos. `apt install mosquitto`",
    )
    yield _program(
        "machine",
        ["chromium", "chromium-browser", "google-chrome"],
        "--version",
        "Only the browser tests need it. `apt install chromium`",
    )


def _program(part: str, names: list[str], flag: str, hint: str) -> Check:
    places = os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS])
    path = next(filter(None, (shutil.which(name, path=places) for name in names)), None)
    if path is None:
        return Check(part, names[0], "warning", "not found", hint)
    try:
        done = subprocess.run(
            [path, flag], capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return Check(part, names[0], "warning", f"{path} does not start: {e}", hint)
    version = re.search(r"\d+(?:\.\d+)+", done.stdout or done.stderr)
    return Check(part, names[0], "ok", f"{version[0] if version else 'unknown version'} ({path})")


def _text(checks: list[Check], parts: dict[str, bool]) -> str:
    lines = []
    for part in ("machine", *PARTS):
        mine = [c for c in checks if c.part == part]
        verdict = "" if part == "machine" else (" - ready" if parts[part] else " - not installed")
        about = f": {PARTS[part]}" if part in PARTS else ""
        lines.append(f"{part}{about}{verdict}")
        shown = [c for c in mine if part == "machine" or c.state != "ok" or " " in c.name]
        good = [f"{c.name} {c.found}" for c in mine if c not in shown]
        if shown:
            grid = table(("", "", "", ""), [(c.state, c.name, c.found, c.hint) for c in shown])
            lines += [f"  {row}" for row in grid.splitlines()[1:]]
        if good:
            lines.append(f"  ok       {', '.join(good)}")
    return "\n".join(lines)
