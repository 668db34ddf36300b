"""Quantized tensors at the edge of a TFLite model, whose users see floats only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def quantized(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Return float values as the integer tensor that ``detail`` describes; others unchanged.

    ``q = round(x / scale) + zero_point``, clipped to the type (LiteRT 8-bit specification).

    Args:
        array: Values.
        detail: Of a tensor, as LiteRT's interpreters list them.
    """
    scale, zero_point = detail["quantization"]
    dtype = np.dtype(detail["dtype"])
    if not scale or dtype.kind not in "iu" or array.dtype.kind != "f":
        return np.asarray(array, dtype, order="C")
    bounds = np.iinfo(dtype)
    steps = np.round(array / np.float32(scale)) + zero_point
    return np.asarray(np.clip(steps, bounds.min, bounds.max), dtype)


def dequantized(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Return a quantized tensor as float32 ``(q - zero_point) * scale``; others unchanged."""
    scale, zero_point = detail["quantization"]
    if not scale or array.dtype.kind not in "iu":
        return np.asarray(array)
    steps = array.astype(np.float32) - np.float32(zero_point)
    return np.asarray(steps * np.float32(scale), np.float32)
