"""Reads folders of images: flat, or one folder per class."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from aid_edge.errors import DataError
from aid_edge.evaluate.data.reading import Array, Batches, Reading, per_batch
from aid_edge.evaluate.data.targets import class_of
from aid_edge.evaluate.preprocess import image_channels, prepare
from aid_edge.model import SourceModel
from device_agent.contract.tensors import TensorInfo

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"})

GROUP_SEPARATOR = "__"
"""``photo__3.png`` is crop 3 of ``photo``, and so of the group ``photo``."""


def read_images(folder: Path, spec: str, model: SourceModel) -> Reading:
    """Return the images in a folder, prepared by the steps that the model card declares.

    Raises:
        DataError: The model does not take images, or there are none in the folder.
    """
    if len(model.inputs) != 1:
        raise DataError(
            f"{spec}: images can feed a model of one input; this has {len(model.inputs)}"
        )
    tensor = model.inputs[0]
    steps = model.card.preprocess if model.card is not None else ()
    if not steps:
        raise DataError(
            f"{spec}: the model declares no preprocessing, so images cannot be prepared for it",
            hint="Add [[preprocess]] steps to model.toml (--model-card), or give an .npz.",
        )
    image_channels(tensor, steps)
    files = find_files(folder, IMAGE_SUFFIXES)
    if not files:
        raise DataError(
            f"{spec}: holds no images", hint=f"Known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    labels = folder_labels(spec, folder, files, model)

    def batches(chosen: Sequence[int]) -> Batches:
        size, first = 1, True
        start = 0
        while start < len(chosen):
            part = [_prepare(files[i], model, tensor) for i in chosen[start : start + size]]
            if len({p.shape for p in part}) > 1:
                raise DataError(
                    f"{spec}: images come out in different sizes",
                    hint="Add a center-crop step to the model card.",
                )
            yield {tensor.name: np.stack(part)}
            start += size
            if first:
                size, first = per_batch(part[0].nbytes), False

    grouped = all(GROUP_SEPARATOR in f.stem for f in files)
    return Reading(
        spec=spec,
        names=[str(f.relative_to(folder)) for f in files],
        batches=batches,
        targets=labels,
        groups=[f.stem.split(GROUP_SEPARATOR)[0] for f in files] if grouped else None,
        images=files,
    )


def find_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files of these kinds in a folder and in the folders in it, sorted.

    Raises:
        DataError: The folder cannot be read.
    """

    def files(where: Path) -> list[Path]:
        return [p for p in where.iterdir() if p.suffix.lower() in suffixes and p.is_file()]

    try:
        found = files(folder)
        for sub in folder.iterdir():
            if sub.is_dir():
                found += files(sub)
    except OSError as e:
        raise DataError(f"{folder}: cannot be read: {e.strerror}") from e
    return sorted(found)


def folder_labels(
    spec: str, folder: Path, files: Sequence[Path], model: SourceModel
) -> Array | None:
    """Return the class of each file by the folder it lies in, int64 [n]; None when flat.

    Raises:
        DataError: A folder names no class, or files lie beside class folders.
    """
    classes = sorted({f.parent.name for f in files if f.parent != folder})
    if not classes:
        return None
    if any(f.parent == folder for f in files):
        raise DataError(f"{spec}: holds images beside class folders; use one or the other")
    index = {name: class_of(f"{spec}: folder", name, model) for name in classes}
    return np.array([index[f.parent.name] for f in files], np.int64)


def _prepare(file: Path, model: SourceModel, tensor: TensorInfo) -> Array:
    steps = model.card.preprocess if model.card is not None else ()
    try:
        with Image.open(file) as image:
            return prepare(image, steps, tensor)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError,
            ValueError) as e:  # fmt: skip
        raise DataError(f"{file}: is not a readable image", cause=str(e)) from e
    except DataError as e:
        raise DataError(f"{file}: {e}", hint=e.hint) from e
