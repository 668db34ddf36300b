"""Faults of preprocessing are found where they are, and only there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aid_edge.evaluate.data import load
from aid_edge.evaluate.preprocess_faults import certainty, diagnose_preprocessing
from aid_edge.model import SourceModel
from aid_edge.sources.opening import open_source
from device_agent.contract.manifest import (
    Channels,
    Layout,
    Normalize,
    PreprocessStep,
    Rescale,
)
from examples.fetch import fetch

Make = Callable[..., SourceModel]
EXAMPLES = Path(__file__).parents[3] / "build" / "examples"


def pixels(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Pictures in RGB, [n, 3, 8, 8], of which one channel is brightest: the class."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % 3
    images = generator.uniform(0, 90, (n, 3, 8, 8))
    images[np.arange(n), labels] += 120
    return images.astype(np.float32), labels


def brightest(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tell the brightest channel of pixels of 0 to 255; below that, guess the first class."""
    means = inputs["image"].mean(axis=(2, 3))
    sure = np.where(means.max(axis=1, keepdims=True) > 20, means - 100, 0)
    return {"scores": (sure / 10).astype(np.float32)}


def data_for(
    tmp_path: Path,
    make: Make,
    images: np.ndarray,
    labels: np.ndarray | None,
    *steps: PreprocessStep,
):
    model = make(steps=(*steps, Layout("NCHW")))
    arrays = {"image": images.astype(np.float32)}
    np.savez(tmp_path / "d.npz", **arrays, **({} if labels is None else {"labels": labels}))
    return model, load(str(tmp_path / "d.npz"), model)


ONE = Normalize(mean=(0.0,), std=(1.0,))


def test_good_preprocessing_is_left_alone(tmp_path: Path, make_model: Make) -> None:
    images, labels = pixels()
    for given in (labels, None):
        model, data = data_for(tmp_path, make_model, images, given, ONE)
        found = diagnose_preprocessing(model, data, predict=brightest)
        assert found is not None
        assert (found.fault, found.text) == (None, "")
        assert len(found.ways) >= 4


@pytest.mark.parametrize("labelled", [True, False])
def test_a_wrong_range_is_told(tmp_path: Path, make_model: Make, labelled: bool) -> None:
    images, labels = pixels()
    model, data = data_for(
        tmp_path, make_model, images / 255, labels if labelled else None, Rescale(scale=1 / 255)
    )
    found = diagnose_preprocessing(model, data, predict=brightest)
    assert found is not None
    assert found.fault is not None
    assert found.fault.what == "with values of 0 to 255"
    assert found.measure == ("accuracy" if labelled else "certainty")
    if labelled:
        assert "right on 33% of 30 images as declared, and on 100% with values" in found.text
    else:
        assert "may be wrong" in found.text


@pytest.mark.parametrize(
    ("given", "step", "words"),
    [
        (lambda i: i[:, ::-1], ONE, "in BGR order"),
        (lambda i: i[:, ::-1], Channels("BGR"), "in RGB order"),
        (
            lambda i: np.ascontiguousarray(i.transpose(0, 2, 3, 1)).reshape(i.shape),
            ONE,
            "with the bytes read as height, width, channel",
        ),
    ],
)
def test_wrong_channels_and_layouts_are_told(
    tmp_path: Path,
    make_model: Make,
    given: Callable[[np.ndarray], np.ndarray],
    step: PreprocessStep,
    words: str,
) -> None:
    images, labels = pixels()
    model, data = data_for(tmp_path, make_model, given(images), labels, step)
    found = diagnose_preprocessing(model, data, predict=brightest)
    assert found is not None
    assert found.fault is not None
    assert found.fault.what == words


def test_nothing_is_said_where_nothing_can_be(tmp_path: Path, make_model: Make) -> None:
    images, labels = pixels(6)
    model, few = data_for(tmp_path, make_model, images, labels, ONE)
    assert diagnose_preprocessing(model, few, predict=brightest) is None
    noise = load("random", model, allow_random=True)
    assert diagnose_preprocessing(model, noise, predict=brightest) is None
    whole = msgspec.structs.replace(model.inputs[0], datatype="INT64")
    ids = dataclasses.replace(model, inputs=(whole,))
    assert diagnose_preprocessing(ids, few, predict=brightest) is None


def test_sure_of_always_the_same_is_not_certain() -> None:
    collapsed = np.tile([50.0, 0, 0], (20, 1))
    various = 50 * np.eye(3)[np.arange(20) % 3]
    assert certainty(collapsed) == pytest.approx(0)
    assert certainty(various) == pytest.approx(1, abs=0.01)
    assert certainty(np.zeros((20, 3))) == 0


@pytest.fixture(scope="module")
def cifar() -> SourceModel:
    return open_source(str(fetch("cifar-10", EXAMPLES) / "model.h5"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Rescale(scale=1 / 255), "10% of 20 images as declared, and on 100% with values of 0 to"),
        (Channels("BGR"), "55% of 20 images as declared, and on 100% in RGB order"),
    ],
)
def test_the_cifar_net_wants_pixels_as_they_are(
    cifar: SourceModel, step: PreprocessStep, words: str
) -> None:
    """Keras CIFAR-10 net: 20 of 20 right at 0..255 in RGB, else a tenth or half."""
    assert cifar.card is not None
    card = dataclasses.replace(cifar.card, preprocess=(step, Layout("NHWC")))
    model = dataclasses.replace(cifar, card=card)
    found = diagnose_preprocessing(model, load(str(EXAMPLES / "cifar-10" / "evaluation"), model))
    assert found is not None
    assert words in found.text
