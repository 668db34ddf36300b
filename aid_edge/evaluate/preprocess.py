"""Carries out the preprocessing steps that a model declares, on one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from aid_edge.errors import DataError
from device_agent.contract.manifest import (
    CenterCrop,
    Channels,
    Layout,
    Normalize,
    PreprocessStep,
    Rescale,
    Resize,
)
from device_agent.contract.tensors import TensorInfo

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MODES = {1: "L", 3: "RGB"}
_DTYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "UINT8": np.uint8}
_IMAGE_RANK = 4


def image_channels(tensor: TensorInfo, steps: Sequence[PreprocessStep]) -> int:
    """Return how many color channels an image input has.

    Raises:
        DataError: The input does not take images: not of rank 4, 1 or 3 channels, FP32 or UINT8.
    """
    if len(tensor.shape) == _IMAGE_RANK and tensor.datatype in _DTYPES:
        channels = tensor.shape[1] if axis_order(tensor, steps) == "NCHW" else tensor.shape[3]
        if channels in _MODES:
            return channels
    raise DataError(
        f"input {tensor.name!r} ({tensor.datatype} {list(tensor.shape)}) does not take images",
        hint="Give the data as .npz with one array per input, or declare the layout in the card.",
    )


def prepare(
    image: Image.Image, steps: Sequence[PreprocessStep], tensor: TensorInfo
) -> npt.NDArray[Any]:
    """Return ``image`` as the model's input ``tensor`` takes it, without the batch axis.

    The image is turned upright (EXIF) and made gray or RGB first. Values are 0 to 255 until a
    ``rescale`` or ``normalize`` step changes them; steps are carried out in order.

    Returns:
        Shape [C, H, W] or [H, W, C], of the tensor's element type.

    Raises:
        DataError: A step cannot be carried out on it.
    """
    mode = _MODES[image_channels(tensor, steps)]
    picture = ImageOps.exif_transpose(image).convert(mode)
    pixels: npt.NDArray[Any] | None = None
    for step in steps:
        if isinstance(step, Resize | CenterCrop):
            if pixels is not None:
                raise DataError(
                    "preprocess: resize and center-crop must stand before normalize, rescale and "
                    "channels"
                )
            picture = _resize(picture, step) if isinstance(step, Resize) else _crop(picture, step)
        elif isinstance(step, Channels | Rescale | Normalize):
            pixels = _valued(_pixels(picture) if pixels is None else pixels, step)
    pixels = _pixels(picture) if pixels is None else pixels
    if axis_order(tensor, steps) == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels, dtype=_DTYPES[tensor.datatype])


def axis_order(tensor: TensorInfo, steps: Sequence[PreprocessStep]) -> str:
    """Return ``NCHW`` or ``NHWC``: as declared, else as the shape of the input says."""
    for step in steps:
        if isinstance(step, Layout):
            return step.order
    return "NCHW" if tensor.shape[1] in _MODES else "NHWC"


def _pixels(picture: Image.Image) -> npt.NDArray[Any]:
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)


def _valued(pixels: npt.NDArray[Any], step: Channels | Rescale | Normalize) -> npt.NDArray[Any]:
    """Return pixels [H, W, C] with a step carried out that changes values, not places."""
    if isinstance(step, Channels):
        return pixels[..., ::-1] if step.order == "BGR" else pixels
    if isinstance(step, Rescale):
        return np.asarray(
            pixels.astype(np.float32) * np.float32(step.scale) + np.float32(step.offset)
        )
    return _normalize(pixels, step)


def _resize(picture: Image.Image, step: Resize) -> Image.Image:
    width, height = picture.size
    shorter = min(width, height)
    # The longer side is cut, not rounded, as torchvision and timm do.
    size = (width * step.size // shorter, height * step.size // shorter)
    return picture.resize(size, _FILTERS[step.interpolation])


def _crop(picture: Image.Image, step: CenterCrop) -> Image.Image:
    width, height = picture.size
    if width < step.width or height < step.height:
        raise DataError(
            f"an image of {width} x {height} pixels is smaller than the crop of "
            f"{step.width} x {step.height}",
            hint="Put a resize step before center-crop in the model card.",
        )
    left, top = round((width - step.width) / 2), round((height - step.height) / 2)
    return picture.crop((left, top, left + step.width, top + step.height))


def _normalize(pixels: npt.NDArray[Any], step: Normalize) -> npt.NDArray[np.float32]:
    channels = pixels.shape[-1]
    if not {len(step.mean), len(step.std)} <= {1, channels} or 0 in step.std:
        raise DataError(
            f"preprocess: normalize has {len(step.mean)} means and {len(step.std)} deviations for "
            f"{channels} channels; none may be zero"
        )
    mean = np.asarray(step.mean, np.float32)
    normalized: npt.NDArray[np.float32] = np.divide(
        pixels.astype(np.float32) - mean, np.asarray(step.std, np.float32), dtype=np.float32
    )
    return normalized
