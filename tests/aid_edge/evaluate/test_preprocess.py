from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from aid_edge.errors import DataError
from aid_edge.evaluate.preprocess import image_channels, prepare
from device_agent.contract.manifest import (
    CenterCrop,
    Channels,
    Layout,
    Normalize,
    Rescale,
    Resize,
)
from device_agent.contract.tensors import TensorInfo

NCHW = TensorInfo("image", "FP32", (-1, 3, 8, 8))
NHWC = TensorInfo("image", "FP32", (-1, 8, 8, 3))


def photo(width: int, height: int) -> Image.Image:
    ramp = np.linspace(0, 255, width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(ramp)


def test_steps_are_carried_out_as_declared() -> None:
    steps = [CenterCrop(height=8, width=8), Normalize(mean=(127,), std=(128,)), Layout("NCHW")]
    made = prepare(photo(12, 10), steps, NCHW)
    expected = (np.asarray(photo(12, 10), np.float32)[1:9, 2:10].transpose(2, 0, 1) - 127) / 128
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_channels_and_values_change_in_the_declared_order() -> None:
    steps = [
        Channels("BGR"),
        Rescale(scale=1 / 255, offset=-0.1),
        Normalize(mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2)),
        Layout("NHWC"),
    ]
    made = prepare(photo(8, 8), steps, NHWC)
    pixels = np.asarray(photo(8, 8), np.float64)[..., ::-1] / 255 - 0.1
    np.testing.assert_allclose(made, (pixels - [0.1, 0.2, 0.3]) / [0.5, 1, 2], atol=1e-6)
    same = prepare(photo(8, 8), [Channels("RGB")], NHWC)
    np.testing.assert_array_equal(same, np.asarray(photo(8, 8), np.float32))


def test_resize_takes_the_shorter_side() -> None:
    made = prepare(photo(40, 20), [Resize(size=8), Layout("NHWC")], NHWC)
    assert made.shape == (8, 16, 3)
    assert prepare(photo(20, 40), [Resize(size=8), Layout("NHWC")], NHWC).shape == (16, 8, 3)


def test_layout_is_read_from_the_shape_when_it_is_not_declared() -> None:
    assert prepare(photo(8, 8), [], NCHW).shape == (3, 8, 8)
    assert prepare(photo(8, 8), [], NHWC).shape == (8, 8, 3)


def test_gray_inputs_get_gray_images() -> None:
    gray = TensorInfo("image", "UINT8", (1, 1, 8, 8))
    made = prepare(photo(8, 8), [], gray)
    assert made.shape == (1, 8, 8)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made[0], np.asarray(photo(8, 8).convert("L")))


def test_a_turned_photo_is_set_upright() -> None:
    turned = photo(8, 16)
    turned.getexif()[0x0112] = 6
    assert prepare(turned, [], NHWC).shape == (8, 16, 3)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([CenterCrop(height=9, width=9)], "smaller than the crop of 9 x 9"),
        ([Normalize(mean=(1, 2), std=(1, 1))], "2 means"),
        ([Normalize(mean=(0,), std=(0,))], "none may be zero"),
        ([Normalize(mean=(0,), std=(1,)), Resize(size=8)], "before normalize"),
        ([Rescale(scale=2), CenterCrop(height=4, width=4)], "before normalize"),
    ],
)
def test_impossible_steps_are_named(steps: list[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        prepare(photo(8, 8), steps, NCHW)


@pytest.mark.parametrize(
    "tensor",
    [
        TensorInfo("x", "FP32", (-1, 10)),
        TensorInfo("x", "INT64", (-1, 3, 8, 8)),
        TensorInfo("x", "FP32", (-1, 7, 8, 8)),
    ],
)
def test_inputs_that_take_no_images_are_named(tensor: TensorInfo) -> None:
    with pytest.raises(DataError, match=r"'x'.*does not take images"):
        image_channels(tensor, [])
