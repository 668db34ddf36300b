from __future__ import annotations

import numpy as np
import pytest

from aid_edge.errors import DataError
from aid_edge.evaluate.conditions import (
    CONDITIONS,
    MAX_SAMPLES,
    MIN_SAMPLES,
    apply,
    gaussian,
    samples_for,
    suited,
    words,
)
from aid_edge.evaluate.modality import Modality, detect
from device_agent.contract.manifest import Layout, Normalize

RANDOM = np.random.default_rng(1)
TOKENS = np.array(
    [[101, 7, 8, 9, 10, 11, 102, 0], [101, 5, 6, 7, 102, 0, 0, 0], [101, 4, 9, 8, 7, 102, 0, 0]]
)
# Smooth, as photos are.
PHOTOS = np.stack([gaussian(p, 2.0) for p in RANDOM.random((4, 32, 24, 3))]).transpose(0, 3, 1, 2)
DATA = {
    "image": {"x": (PHOTOS * 4 - 1.5).clip(0, 1).astype(np.float32)},
    "series": {"x": RANDOM.normal(size=(4, 6, 128)).astype(np.float32)},
    "tokens": {"input_ids": TOKENS, "attention_mask": (TOKENS != 0).astype(np.int64)},
    "table": {"x": RANDOM.normal(size=(4, 10)).astype(np.float32)},
}


def known(kind: str) -> Modality:
    found = detect(DATA[kind])
    assert found is not None
    return found


@pytest.mark.parametrize("kind", list(DATA))
def test_each_kind_is_told_from_its_data(kind: str) -> None:
    assert known(kind).kind == kind


def test_channels_and_time_are_found_in_either_layout() -> None:
    assert known("image").axis == 0
    last = detect({"x": DATA["image"]["x"].transpose(0, 2, 3, 1)})
    assert last is not None
    assert (last.kind, last.axis, last.low.shape) == ("image", 2, (1, 1, 3))
    series = detect({"x": DATA["series"]["x"].transpose(0, 2, 1)})
    assert series is not None
    assert (series.kind, series.axis) == ("series", 1)
    wave = detect({"x": RANDOM.normal(size=(3, 4000)).astype(np.float32)})
    assert wave is not None
    assert (wave.kind, wave.axis) == ("series", None)


def test_the_range_of_pixels_is_that_of_the_card() -> None:
    steps = (Normalize((127.5,), (127.5,)), Layout("NCHW"))
    found = detect({"x": DATA["image"]["x"] * 0.2}, steps)
    assert found is not None
    assert np.allclose(found.low, -1)
    assert np.allclose(found.high, 1)


def test_frames_and_padding_of_sentences_are_no_words() -> None:
    found = known("tokens")
    assert found.special == {0, 101, 102}
    assert found.input == "input_ids"
    assert words(TOKENS[1], found).tolist() == [1, 2, 3]
    assert set(found.vocabulary) == {4, 5, 6, 7, 8, 9, 10, 11}


def test_what_fits_nothing_has_no_modality() -> None:
    assert detect({"x": np.zeros((2, 3, 4, 5, 6), np.float32)}) is None
    assert detect({"x": np.zeros((2, 9, 30, 30), np.float32)}) is None
    assert detect({"n": np.zeros((2, 1), np.int64)}) is None


@pytest.mark.parametrize(("kind", "name"), [(c.kind, c.name) for c in CONDITIONS], ids=str)
def test_each_condition_spoils_more_with_severity_and_the_same_by_seed(
    kind: str, name: str
) -> None:
    modality, inputs = known(kind), DATA[kind]
    main = inputs[modality.input]
    untouched = main.copy()
    distances = []
    for severity in (1, 3, 5):
        spoiled = apply(name, severity, inputs, modality, seed=3)
        again = apply(name, severity, inputs, modality, seed=3)
        for key, array in spoiled.items():
            assert array.dtype == inputs[key].dtype
            assert array.shape == inputs[key].shape
            assert np.array_equal(array, again[key])
        changed = spoiled[modality.input]
        difference = changed != main if kind == "tokens" else np.abs(changed - main)
        distances.append(float(difference.mean()))
    assert np.array_equal(main, untouched), "the data themselves are left alone"
    assert distances[0] > 0
    assert distances[0] <= distances[1] <= distances[2]
    assert distances[0] < distances[2] or name == "word-order"


@pytest.mark.parametrize("name", [c.name for c in CONDITIONS if c.kind == "image"])
def test_images_stay_in_their_range_and_do_not_depend_on_company(name: str) -> None:
    modality, inputs = known("image"), DATA["image"]
    spoiled = apply(name, 4, inputs, modality)["x"]
    assert np.all(spoiled >= modality.low.min() - 1e-6)
    assert np.all(spoiled <= modality.high.max() + 1e-6)
    first = apply(name, 4, {"x": inputs["x"][:1]}, modality)["x"]
    assert np.array_equal(first[0], spoiled[0])


def test_whole_numbers_stay_whole() -> None:
    data = {"x": (DATA["image"]["x"] * 255).astype(np.uint8)}
    modality = detect(data)
    assert modality is not None
    spoiled = apply("noise", 5, data, modality)["x"]
    assert spoiled.dtype == np.uint8
    assert len(np.unique(spoiled)) > 50


def test_dark_divides_linear_light() -> None:
    flat = {"x": np.full((1, 8, 8, 1), 0.5, np.float32)}
    modality = Modality("image", "x", 2, np.zeros((1, 1, 1)), np.ones((1, 1, 1)), flat["x"][0, :1])
    spoiled = apply("dark", 2, flat, modality)["x"]
    assert np.allclose(spoiled**2.2, 0.5**2.2 / 3, atol=1e-6)


def test_missing_part_covers_its_share() -> None:
    ones = {"x": np.ones((1, 1, 100, 100), np.float32)}
    edge = np.zeros((1, 1, 1))
    spoiled = apply("missing", 4, ones, Modality("image", "x", 0, edge, edge + 1, edge))["x"]
    assert abs(float((spoiled == 0).mean()) - 0.35) < 0.01


def test_noise_of_a_series_has_the_ratio() -> None:
    time = np.sin(np.arange(40_000) / 7)[None].astype(np.float32)
    modality = detect({"x": time})
    assert modality is not None
    noise = apply("noise", 3, {"x": time}, modality)["x"] - time
    ratio = 10 * np.log10(np.var(time) / np.var(noise))
    assert abs(ratio - 10) < 0.2


def test_lost_words_leave_the_mask_and_the_frame_right() -> None:
    modality = known("tokens")
    for name in ("missing-words", "cut-off"):
        spoiled = apply(name, 5, DATA["tokens"], modality)
        ids, mask = spoiled["input_ids"], spoiled["attention_mask"]
        assert np.array_equal(ids != 0, mask == 1)
        assert (ids[:, 0] == 101).all()
        assert ((ids == 102).sum(axis=1) == 1).all()
        assert (mask.sum(axis=1) < DATA["tokens"]["attention_mask"].sum(axis=1)).all()
        assert (mask.sum(axis=1) >= 3).all(), "one word is left"


def test_swapped_words_are_the_same_words() -> None:
    spoiled = apply("word-order", 5, DATA["tokens"], known("tokens"))["input_ids"]
    assert np.array_equal(np.sort(spoiled, axis=1), np.sort(TOKENS, axis=1))
    assert not np.array_equal(spoiled, TOKENS)


def test_a_waveform_has_no_dead_channel() -> None:
    wave = detect({"x": RANDOM.normal(size=(3, 4000)).astype(np.float32)})
    assert wave is not None
    assert "dead-channel" not in [c.name for c in suited(wave)]
    assert "dead-channel" in [c.name for c in suited(known("series"))]


@pytest.mark.parametrize(("name", "severity"), [("dark", 0), ("dark", 6), ("rain", 1)])
def test_what_is_not_known_is_refused(name: str, severity: int) -> None:
    with pytest.raises(DataError, match=f"no condition '{name}' of severity {severity}") as caught:
        apply(name, severity, DATA["image"], known("image"))
    assert "dark" in caught.value.hint


def test_cost_is_bounded() -> None:
    assert samples_for(10_000, 28 * 28) == MAX_SAMPLES
    assert samples_for(10_000, 3 * 224 * 224) == 66
    assert samples_for(10_000, 10**9) == MIN_SAMPLES
    assert samples_for(5, 10) == 5
