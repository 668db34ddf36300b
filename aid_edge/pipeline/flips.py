"""The samples that candidate and source answer differently, both ways, with small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from aid_edge.evaluate.accuracy import top1
from aid_edge.evaluate.data import DataSet
from aid_edge.evaluate.modality import Modality, detect
from aid_edge.explain.pictures import picture
from aid_edge.pipeline.findings import Flip

MAX_FLIPS = 8
"""Listed per candidate and data set; the counts are in the figures."""

THUMBNAIL_PIXELS = 64
_JPEG_QUALITY = 60
_ORDER = ("loss", "gain", "neither", "unlabelled")


def find_flips(
    source: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    data: DataSet,
    labels: Sequence[str],
) -> tuple[Flip, ...]:
    """Return at most ``MAX_FLIPS`` samples whose top-1 answer changed, losses first.

    Args:
        source: First output of the source model, [n, classes].
        candidate: First output of the candidate, [n, classes].
        data: The samples.
        labels: Class names; class numbers are shown where there are none.
    """
    before, after = top1(source), top1(candidate)
    truth = data.labels
    kinds = [
        (_kind(None if truth is None else int(truth[i]), int(before[i]), int(after[i])), int(i))
        for i in np.flatnonzero(before != after)
    ]
    kinds.sort(key=lambda pair: (_ORDER.index(pair[0]), pair[1]))
    modality = detect(data.inputs) if kinds and data.images is None and data.inputs else None
    return tuple(
        Flip(
            sample=data.names[i],
            kind=kind,
            label="" if truth is None else _name(labels, int(truth[i])),
            source_answer=_name(labels, int(before[i])),
            candidate_answer=_name(labels, int(after[i])),
            thumbnail=_shown(data, i, modality),
        )
        for kind, i in kinds[:MAX_FLIPS]
    )


def _shown(data: DataSet, index: int, modality: Modality | None) -> str:
    """Return a small picture of a sample: of its file, else of what the model takes."""
    if data.images is not None:
        return thumbnail(data.images[index])
    if modality is None:
        return ""
    return picture(np.asarray(data.inputs[modality.input][index]), modality)


def thumbnail(path: Path) -> str:
    """Return a small JPEG of an image file as a data URI; empty when it cannot be read."""
    try:
        with Image.open(path) as image:
            small = ImageOps.fit(
                ImageOps.exif_transpose(image).convert("RGB"), (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
            )
    except (OSError, SyntaxError):
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _kind(
    truth: int | None, before: int, after: int
) -> Literal["loss", "gain", "neither", "unlabelled"]:
    if truth is None:
        return "unlabelled"
    if before == truth:
        return "loss"
    return "gain" if after == truth else "neither"


def _name(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else f"class {index}"
