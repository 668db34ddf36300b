"""A content-addressed cache of steps: the same inputs, tools and parameters are done once.

::

    <root>/<step>/<first two digits>/<key>/
      entry.json       the key's parts, and the digest of every file
      ...              what the step made

A folder is written beside its place and renamed into it, so it is whole or not there. An entry
whose files do not match their digests is removed and made again. What a killed run left half made
is removed by the next one, and entries that were not used for longest go when all of them take
more than ``limit_bytes``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from aid_edge import leftovers
from aid_edge.catalogue.files import hash_file, sync_folder
from aid_edge.errors import HostError

ENTRY = "entry.json"
ENVIRONMENT = "XDG_CACHE_HOME"
TOOLS = (
    "torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "nncf", "torchao", "litert-torch",
    "ai-edge-litert", "ai-edge-quantizer", "keras", "h5py", "safetensors", "numpy", "pillow",
    "tensorflow", "tf2onnx", "openvino", "executorch", "coremltools", "torch-pruning", "onnx2tf",
)  # fmt: skip
"""Distributions whose version is part of every key."""

LIMIT_ENVIRONMENT = "AID_EDGE_CACHE_BYTES"
DEFAULT_LIMIT_BYTES = 32 * 10**9
RECENT_S = 3600.0
"""Entries that were used within this time stay: another run may be about to read them."""

_UNFINISHED = ".new-"


class CacheError(HostError):
    """The cache folder cannot be used."""

    code = "cache"


class _Entry(msgspec.Struct, frozen=True):
    parts: dict[str, str]
    files: dict[str, str]


def default_root() -> Path:
    """Return where steps are kept when ``--cache`` names no place."""
    base = os.environ.get(ENVIRONMENT) or str(Path.home() / ".cache")
    return Path(base) / "aid-edge" / "steps"


def default_limit() -> int:
    """Return how many bytes all entries may take together: ``AID_EDGE_CACHE_BYTES``, or 32 GB.

    Raises:
        CacheError: The variable holds no number of bytes.
    """
    text = os.environ.get(LIMIT_ENVIRONMENT, str(DEFAULT_LIMIT_BYTES))
    if not text.isdecimal():
        raise CacheError(
            f"{LIMIT_ENVIRONMENT}: is {text!r}", hint="Give a number of bytes, such as 32000000000."
        )
    return int(text)


def tool_versions() -> dict[str, str]:
    """Return the version of every installed distribution of ``TOOLS``."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def source_version(module: str) -> str:
    """Return a digest of the source of ``module``, a module or package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return "unknown"
    origin = Path(spec.origin)
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Cache:
    """Steps done before, under one folder."""

    def __init__(self, root: Path) -> None:
        """Use ``root``, making it if missing.

        Raises:
            CacheError: It cannot be made or written.
        """
        self.root = root
        self._lock = threading.Lock()
        self._making: dict[Path, threading.RLock] = {}
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                pass
            self._clear_unfinished()
        except OSError as e:
            raise CacheError(
                f"{root}: cannot be used as cache: {e.strerror}", hint="Name another with --cache."
            ) from e

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        """Travel to other processes as the folder alone."""
        return Cache, (self.root,)

    def get(
        self, step: str, parts: Mapping[str, str], make: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        """Return the folder of ``step`` for ``parts``, and whether it was there already.

        Args:
            step: Name of the step; a folder name.
            parts: All that its outcome depends on.
            make: Writes the outcome into an empty folder; an exception leaves no entry.

        Raises:
            CacheError: The outcome cannot be written.
        """
        key = hashlib.sha256(msgspec.json.encode(dict(parts), order="sorted")).hexdigest()
        place = self.root / step / key[:2] / key
        with self._lock:
            mine = self._making.setdefault(place, threading.RLock())
        # Who comes second in this process waits; another process is met at the rename.
        with mine:
            if _is_whole(place):
                _mark_used(place)
                return place, True
            return self._make(place, parts, make)

    def trim(self, limit_bytes: int) -> int:
        """Remove what was not used for longest until ``limit_bytes`` suffice; return what went.

        Entries that were used within the last hour stay, whatever they take.
        """
        found = []
        for entry in self.root.glob(f"*/*/*/{ENTRY}"):
            try:
                size = sum(p.stat().st_size for p in entry.parent.rglob("*") if p.is_file())
                found.append((entry.stat().st_mtime, size, entry.parent))
            except FileNotFoundError:
                continue  # another run removed it
        total, removed = sum(size for _, size, _ in found), 0
        for used, size, folder in sorted(found):
            if total - removed <= limit_bytes or used > time.time() - RECENT_S:
                break
            shutil.rmtree(folder, ignore_errors=True)
            removed += size
        return removed

    def _clear_unfinished(self) -> None:
        """Remove what runs left that were killed while they made an entry."""
        leftovers.clear(self.root.glob(f"*/*/{_UNFINISHED}*"), _UNFINISHED)

    def _make(
        self, place: Path, parts: Mapping[str, str], make: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        temporary: Path | None = None
        try:
            # Cleared first: a damaged entry must not stand in the way of the rename.
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = leftovers.make(place.parent, _UNFINISHED)
            make(temporary)
            _seal(temporary, parts)
            temporary.rename(place)
            sync_folder(place.parent)
        except FileExistsError:
            # Another run was first with the same key, and so with the same outcome.
            if not _is_whole(place):
                raise CacheError(f"{place}: is in the way") from None
        except OSError as e:
            if _is_whole(place):
                return place, True
            raise CacheError(f"{place}: cannot be written: {e.strerror or e}") from e
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return place, False


def _mark_used(folder: Path) -> None:
    # A cache that may only be read serves as well, but does not know what is old.
    with contextlib.suppress(OSError):
        os.utime(folder / ENTRY)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ENTRY)


def _seal(folder: Path, parts: Mapping[str, str]) -> None:
    files = {str(p.relative_to(folder)): hash_file(p)[0] for p in _files(folder)}
    data = msgspec.json.encode(_Entry(dict(parts), files), order="sorted")
    (folder / ENTRY).write_bytes(data)


def _is_whole(folder: Path) -> bool:
    try:
        entry = msgspec.json.decode((folder / ENTRY).read_bytes(), type=_Entry)
        found = {str(p.relative_to(folder)): hash_file(p)[0] for p in _files(folder)}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return found == entry.files
