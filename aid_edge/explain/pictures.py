"""Small pictures of inputs and of evidence, as data URIs; each bounded in bytes."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling

from aid_edge.evaluate.modality import Modality

PIXELS = 96
"""Longest side of a picture; smaller inputs keep their pixels and are scaled by the page."""

MAX_CURVES = 3
_POINTS = 96
_JPEG_QUALITY = 60
_FOR, _AGAINST = (36, 110, 220), (224, 106, 0)
"""Blue and orange are told apart by the color-blind too (Okabe and Ito 2008)."""
_MAX_ALPHA = 190

Array = npt.NDArray[Any]


def picture(sample: Array, modality: Modality, *, gray: bool = False) -> str:
    """Return a picture of an image or series, or an empty text for what has none.

    Args:
        sample: The main input, without the batch axis.
        modality: What it holds.
        gray: Without colors, so that evidence shows on it.
    """
    if modality.kind == "image":
        return _image(sample, modality, gray)
    return _curves(sample, modality) if modality.kind == "series" else ""


def heat(evidence: Array, grid: tuple[int, int], largest: float) -> str:
    """Return evidence as a transparent PNG of one pixel per part: blue for, orange against.

    Args:
        evidence: Per part, [parts].
        grid: Rows and columns of the parts.
        largest: Evidence that is drawn in full color; the same for all that are compared.
    """
    values = np.clip(evidence.reshape(grid) / (largest or 1.0), -1, 1)
    pixels = np.zeros((*grid, 4), np.uint8)
    pixels[..., :3] = np.where(values[..., None] >= 0, _FOR, _AGAINST)
    pixels[..., 3] = np.rint(np.abs(values) * _MAX_ALPHA)
    return _encoded(Image.fromarray(pixels), "PNG")


def _image(sample: Array, modality: Modality, gray: bool) -> str:
    span = np.where(modality.high > modality.low, modality.high - modality.low, 1.0)
    pixels = np.moveaxis((sample - modality.low) / span, modality.axis or 0, -1)
    whole = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole)
    if gray:
        image = image.convert("L")
    if max(image.size) <= PIXELS // 2:
        return _encoded(image, "PNG")
    image.thumbnail((PIXELS, PIXELS), Resampling.BILINEAR)
    return _encoded(image, "JPEG")


def _encoded(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    if form == "JPEG":
        image.save(buffer, form, quality=_JPEG_QUALITY)
    else:
        image.save(buffer, form, optimize=True)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _curves(sample: Array, modality: Modality) -> str:
    """Return the first channels as lines of middle gray: seen on light and on dark."""
    curves = sample[None] if sample.ndim == 1 else np.moveaxis(sample, modality.axis or 0, 0)
    curves = curves.reshape(len(curves), -1)[:MAX_CURVES].astype(np.float64)
    count = min(_POINTS, curves.shape[1])
    picked = curves[:, [i * curves.shape[1] // count for i in range(count)]]
    low, high = float(picked.min()), float(picked.max())
    height = PIXELS // 2
    lines = []
    for curve in picked:
        y = (1 - (curve - low) / ((high - low) or 1.0)) * (height - 2) + 1
        places = " ".join(f"{i * PIXELS / max(1, count - 1):.0f},{v:.0f}" for i, v in enumerate(y))
        lines.append(f'<polyline points="{places}"/>')
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PIXELS} {height}" fill="none" '
        f'stroke="#808890">{"".join(lines)}</svg>'
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
