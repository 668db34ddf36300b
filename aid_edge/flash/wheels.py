"""Gets the wheels that a target needs, for its platform, pinned, and cached.

pip resolves and downloads (``pip download --platform ...``). pip judges environment markers by
the Python that runs it, not by the target's (pypa/pip issue 11664 and others), so the closure is
checked here against the target's own environment, and what is missing is asked for by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import BytesParser
from importlib import metadata, resources
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from aid_edge.errors import FlashError, MissingDependencyError
from aid_edge.flash.target import WheelTarget

DOWNLOAD_TIMEOUT_S = 1800.0
MAX_ROUNDS = 5
"""How often missing requirements of the target are asked for before giving up."""

CACHE_ENVIRONMENT = "AID_EDGE_WHEEL_CACHE"
_INDEX_FILE = "wheels.json"
_ABSENT = re.compile(r"No matching distribution found for ([^\s;(]+)")
_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|Connection refused"
    r"|name resolution|SSLError|ReadTimeoutError|RemoteDisconnected|ConnectionResetError"
)
_CONSTRAINT = re.compile(r"The user requested \(constraint\) ([A-Za-z0-9._-]+)==(\S+)")
_REQUESTED = re.compile(
    r"^ +(?:The user requested|\S+ \S+ depends on) ([A-Za-z0-9][^\n;(]*)", re.MULTILINE
)
_CONFLICT = re.compile(r"ResolutionImpossible|conflicting dependencies")


@dataclass(frozen=True)
class WheelSet:
    """Wheels of one target, in a folder of the cache.

    Attributes:
        names: File names, sorted.
        cached: Whether they were there already.
    """

    folder: Path
    names: tuple[str, ...]
    cached: bool


def default_cache() -> Path:
    """Return where wheels are kept between bundles."""
    if chosen := os.environ.get(CACHE_ENVIRONMENT):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aid-edge" / "wheels"


def device_constraints() -> str:
    """Return the pinned versions of everything that a device can carry."""
    return resources.files("aid_edge.flash").joinpath("device-constraints.txt").read_text()


def fetch_wheels(
    requirements: Iterable[Requirement],
    target: WheelTarget,
    constraints: str,
    cache: Path,
    note: Callable[[str], None] = lambda _: None,
) -> WheelSet:
    """Return the wheels that ``requirements`` and all they require need on ``target``.

    Args:
        requirements: With markers already judged for the target.
        target: What the wheels are for.
        constraints: Pinned versions, in pip's constraints format.
        cache: Folder that sets of wheels are kept in; made when missing.
        note: Told how the work goes.

    Raises:
        FlashError: A wheel does not exist for the target, the requirements contradict each other,
            the index cannot be reached, or the cache cannot be written.
        MissingDependencyError: This Python has no pip.
    """
    wanted = sorted({str(r) for r in requirements})
    key = _key(wanted, target, constraints)
    folder = cache / f"{target.arch}-{target.abi}-{key}"
    names = _cached(folder)
    if names is not None:
        return WheelSet(folder, names, cached=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as scratch:
            work = Path(scratch) / "set"
            work.mkdir()
            note(f"downloading wheels for {target.arch}, Python {target.python}")
            _download_closure(wanted, target, constraints, work)
            names = _write_index(work)
            _move_into_place(work, folder)
    except OSError as e:
        raise FlashError(f"the wheel cache {cache} cannot be written: {e}") from e
    return WheelSet(folder, names, cached=False)


def missing_requirements(
    wheels: Iterable[Path], wanted: Iterable[Requirement], target: WheelTarget
) -> list[Requirement]:
    """Return what is required on ``target`` and satisfied by none of ``wheels``.

    Args:
        wheels: Wheel files.
        target: What they are for.
        wanted: Requirements to start from; the wheels' own are followed from there.
    """
    held = {}
    for wheel in wheels:
        name, version, _, _ = parse_wheel_filename(wheel.name)
        held[name] = (version, wheel)
    missing: dict[str, Requirement] = {}
    todo = [(r, frozenset(r.extras)) for r in wanted]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        found = held.get(name)
        if found is None or not requirement.specifier.contains(found[0], prereleases=True):
            missing[str(requirement)] = requirement
            continue
        for extra in ["", *extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            todo += [
                (r, frozenset(r.extras))
                for r in _requires(found[1])
                if r.marker is None or r.marker.evaluate({**target.environment, "extra": extra})
            ]
    return list(missing.values())


def _requires(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        member = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        message = BytesParser().parsebytes(archive.read(member), headersonly=True)
    return [Requirement(text) for text in message.get_all("Requires-Dist") or []]


def _key(wanted: list[str], target: WheelTarget, constraints: str) -> str:
    facts = [wanted, target.platforms, target.python, target.arch, constraints]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _cached(folder: Path) -> tuple[str, ...] | None:
    """Names of a cached set whose files are whole, else None."""
    try:
        index: dict[str, str] = json.loads((folder / _INDEX_FILE).read_text())
        if all(_sha256(folder / name) == digest for name, digest in index.items()):
            return tuple(sorted(index))
    except (OSError, ValueError):
        pass  # Not there, or spoilt: it is downloaded anew.
    return None


def _write_index(folder: Path) -> tuple[str, ...]:
    index = {path.name: _sha256(path) for path in sorted(folder.glob("*.whl"))}
    (folder / _INDEX_FILE).write_text(json.dumps(index, indent=1))
    return tuple(index)


def _move_into_place(work: Path, folder: Path) -> None:
    if folder.exists():
        if _cached(folder) is not None:
            return  # Another run was quicker.
        shutil.rmtree(folder)
    work.rename(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download_closure(
    wanted: list[str], target: WheelTarget, constraints: str, folder: Path
) -> None:
    asked = list(wanted)
    for _ in range(MAX_ROUNDS):
        _download(asked, target, constraints, folder)
        missing = missing_requirements(
            sorted(folder.glob("*.whl")), [Requirement(w) for w in wanted], target
        )
        if not missing:
            return
        asked += [_without_marker(r) for r in missing]
    raise FlashError(
        f"after {MAX_ROUNDS} rounds these are still missing for {target.arch}: "
        + ", ".join(str(r) for r in missing)
    )


def _without_marker(requirement: Requirement) -> str:
    plain = Requirement(str(requirement))
    plain.marker = None
    return str(plain)


def _download(asked: list[str], target: WheelTarget, constraints: str, folder: Path) -> None:
    try:
        # Not looked for among modules: setuptools, where it is installed, meddles with that.
        metadata.version("pip")
    except metadata.PackageNotFoundError as e:
        raise MissingDependencyError("flash", "pip", "flash") from e
    with _constraints_file(constraints) as file:
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-input", "--progress-bar", "off"),
            *("--disable-pip-version-check", "--dest", str(folder), "--constraint", str(file)),
            *(word for tag in target.platforms for word in ("--platform", tag)),
            *("--python-version", target.python, "--implementation", "cp"),
            *("--abi", target.abi, "--abi", "abi3", "--abi", "none", "--only-binary=:all:"),
            *asked,
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as e:
            raise FlashError(
                f"the wheels did not arrive within {DOWNLOAD_TIMEOUT_S:g} s",
                hint="Try again: pip keeps what it has.",
            ) from e
    if done.returncode:
        raise explain(f"{done.stdout}\n{done.stderr}", target)


@contextmanager
def _constraints_file(constraints: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aid-edge-") as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text(constraints)
        yield path


def explain(output: str, target: WheelTarget) -> FlashError:
    """Return the error that pip's own words amount to."""
    errors = [line for line in output.splitlines() if line.strip() and "WARNING" not in line]
    tail = "\n".join(errors[-8:])
    if _NETWORK.search(output):
        return FlashError(
            "the package index cannot be reached",
            cause=tail,
            hint="Bundles are made where there is a network (or where pip is configured with an "
            "index or a folder of its own), and installed where there is none. "
            "Wheels fetched once are kept in the cache (--wheel-cache).",
        )
    absent = _ABSENT.search(output)
    name = absent[1] if absent else _pinned_out(output)
    if name:
        return FlashError(
            f"no wheel of {name} exists for {target.arch}, Python {target.python}",
            cause=f"tags tried: {target.abi}, abi3 and none, "
            f"each with {', '.join((*target.platforms, 'any'))}",
            hint="Leave its runtime out with --runtime; or name more tags in platform.wheel_tags "
            "of the profile if the device's libc is newer; or build the wheel on such a device and "
            "name its folder in PIP_FIND_LINKS.",
        )
    if _CONFLICT.search(output):
        return FlashError(
            "what the agent and the runtimes require contradicts itself or the pinned versions",
            cause=tail,
            hint="Change the runtime's version range in the profile, or choose with --runtime.",
        )
    return FlashError("pip could not get the wheels", cause=tail)


def _pinned_out(output: str) -> str:
    """Return the pinned requirement that has no wheel for the target, or "".

    pip calls that a conflict between a requirement and the constraint. It is one only where the
    pinned version is outside of what is required.
    """
    pinned = _CONSTRAINT.search(output)
    if pinned is None:
        return ""
    name, version = canonicalize_name(pinned[1]), pinned[2]
    # pip joins the ranges of one package by "and".
    texts = [m[1].replace(" and ", ",") for m in _REQUESTED.finditer(output)]
    required = [r for r in map(_parsed, texts) if r and canonicalize_name(r.name) == name]
    if all(r.specifier.contains(version, prereleases=True) for r in required):
        return f"{pinned[1]}=={version}"
    return ""


def _parsed(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None  # Words of pip that are no requirement.
