"""Photos that lie inside packages, cropped and labelled the same way every time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from examples.archives import FetchError, Package, extract

CROPS_PER_PHOTO = 12
CROP_PIXELS = 256

FOOLBOX = Package(
    "foolbox==3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"
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
    for name, number, crop in crops(photos, CROPS_PER_PHOTO, CROP_PIXELS):
        crop.save(to / f"{name}__{number:02d}.png")


def crops(
    photos: tuple[tuple[str, str], ...], per_photo: int, pixels: int
) -> Iterator[tuple[str, int, Image.Image]]:
    """Yield photo, number and crop of ``pixels`` x ``pixels`` for each photo in turn."""
    for package, name in photos:
        with resources.as_file(resources.files(package) / name) as path, Image.open(path) as photo:
            whole = photo.convert("RGB")
        draws = np.random.default_rng(list(name.encode()))
        for number in range(per_photo):
            box = _box(whole.size, draws)
            crop = whole.crop(box).resize((pixels, pixels), Image.Resampling.BICUBIC)
            yield Path(name).stem, number, crop


def _box(size: tuple[int, int], draws: np.random.Generator) -> tuple[int, int, int, int]:
    side = int(min(size) * draws.uniform(0.6, 1.0))
    left, top = (int(draws.integers(0, whole - side + 1)) for whole in size)
    return left, top, left + side, top + side
