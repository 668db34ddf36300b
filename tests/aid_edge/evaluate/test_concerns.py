from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aid_edge.evaluate.concerns import concerns
from aid_edge.evaluate.data import load
from aid_edge.model import SourceModel
from device_agent.contract.tensors import TensorInfo

Make = Callable[..., SourceModel]


def photos(n: int = 40, seed: int = 0) -> np.ndarray:
    """Smooth pictures in the range that the declared steps give, [n, 3, 8, 8]."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, 8)
    a, b, c = (generator.uniform(-0.3, 0.3, (n, 3, 1, 1)) for _ in range(3))
    noise = generator.uniform(-0.02, 0.02, (n, 3, 8, 8))
    return (a + b * ramp[:, None] + c * ramp + noise).astype(np.float32)


def found(tmp_path: Path, model: SourceModel, **arrays: np.ndarray) -> tuple[str, ...]:
    np.savez(tmp_path / "d.npz", **arrays)
    return concerns(load(str(tmp_path / "d.npz"), model), model)


def test_good_data_raise_no_concern(tmp_path: Path, make_model: Make) -> None:
    assert found(tmp_path, make_model(), image=photos(), labels=np.arange(40) % 3) == ()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": photos(5)}, "Only 5 independent samples"),
        (
            {"image": photos(), "groups": np.repeat(np.arange(8), 5)},
            r"Only 8 independent groups \(40 samples\)",
        ),
        ({"image": photos()[[0] * 3 + list(range(1, 40))]}, r"2 of 42 samples are copies.*3 times"),
        ({"image": np.zeros((40, 3, 8, 8), np.float32)}, "same value, 0, everywhere"),
        (
            {"image": photos() * (np.arange(40) >= 7)[:, None, None, None].astype("f4")},
            "one value throughout in 7 of 40",
        ),
        (
            {"image": np.random.default_rng(0).uniform(-0.9, 0.9, (40, 3, 8, 8)).astype("f4")},
            "looks like noise",
        ),
        ({"image": photos() * 127 + 127}, r"values of .* to .*declares gives -0.99\d* to 1"),
        ({"image": photos(), "labels": np.arange(40) % 2}, "1 of 3 classes have no sample: fox"),
        ({"image": photos(), "labels": np.full(40, 1)}, "All samples are of one class, dog"),
        (
            {"image": photos(), "labels": np.array([0] * 37 + [1, 1, 2])},
            "lopsided: 37 samples of cat, 1 of the rarest",
        ),
    ],
)
def test_doubtful_data_are_told(
    tmp_path: Path, make_model: Make, arrays: dict[str, np.ndarray], words: str
) -> None:
    import re

    told = found(tmp_path, make_model(), **arrays)
    assert any(re.search(words, text) for text in told), told


@pytest.mark.parametrize(("given", "wanted"), [((-1, 2, 64), 0), ((-1, 2, 65), 1)])
def test_the_units_of_a_state_need_no_order(
    tmp_path: Path, make_model: Make, given: tuple[int, ...], wanted: int
) -> None:
    plain = make_model()
    state = np.random.default_rng(0).normal(size=(40, 2, 64)).astype(np.float32)
    model = replace(
        plain,
        inputs=(*plain.inputs, TensorInfo("state", "FP32", (-1, 2, 64))),
        outputs=(*plain.outputs, TensorInfo("next", "FP32", given)),
    )
    told = found(tmp_path, model, image=photos(), state=state)
    assert sum("'state' looks like noise" in text for text in told) == wanted


def test_noise_is_marked(make_model: Make) -> None:
    model = make_model()
    data = load("random", model, allow_random=True, limit=40)
    assert data.is_random
    assert any("random noise" in text for text in concerns(data, model))
