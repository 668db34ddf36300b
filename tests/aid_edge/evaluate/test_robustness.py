from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from aid_edge.evaluate import robustness
from aid_edge.evaluate.conditions import suited
from aid_edge.evaluate.modality import detect
from aid_edge.evaluate.robustness import CLEAN, Judged, measure

RANDOM = np.random.default_rng(5)
LABELS = RANDOM.integers(0, 2, 80)
# Class 1 has a bright left half.
IMAGES = (RANDOM.random((80, 1, 8, 8)) * 0.4).astype(np.float32)
IMAGES[LABELS == 1, :, :, :4] += 0.5
INPUTS = {"x": IMAGES}


def brightness(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    x = inputs["x"]
    score = x[:, 0, :, :4].mean(axis=(1, 2)) - x[:, 0, :, 4:].mean(axis=(1, 2)) - 0.25
    return [np.stack([-score, score], axis=1)]


def one_pixel(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    score = inputs["x"][:, 0, 3, 2] - 0.45
    return [np.stack([-score, score], axis=1)]


def strict(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    return [one_pixel({"x": inputs["x"] - 0.2})[0]]


def judged(*, labels: bool = True, classification: bool = True) -> Judged:
    modality = detect(INPUTS)
    assert modality is not None
    return Judged(INPUTS, modality, LABELS if labels else None, None, classification)


def test_a_brittle_candidate_is_found_out() -> None:
    found = measure(judged(), brightness, {"brittle": one_pixel, "same": brightness})
    assert set(found) == {"brittle", "same"}
    modality = judged().modality
    assert len(found["brittle"]) == 1 + 3 * len(suited(modality))
    clean = found["brittle"][0]
    assert (clean.condition, clean.severity, clean.n) == (CLEAN, 0, 80)
    assert clean.source == 1.0
    noise = next(r for r in found["brittle"] if (r.condition, r.severity) == ("noise", 5))
    assert noise.source > 0.9
    assert noise.candidate < 0.85
    assert noise.drop is not None
    assert noise.drop.low > 0, "the whole interval says that it bears noise worse"
    assert all(r.source == r.candidate for r in found["same"])


def test_without_labels_the_clean_answers_of_the_source_count() -> None:
    found = measure(judged(labels=False), brightness, {"a": strict}, severities=(2,))["a"]
    assert found[0].metric == "agreement with the source on clean inputs"
    assert found[0].source == 1.0
    assert found[0].candidate < 1.0


def test_outputs_that_are_no_classes_are_compared_by_cosine() -> None:
    found = measure(judged(classification=False), brightness, {"a": one_pixel}, severities=(5,))
    assert found["a"][0].metric == "cosine to the source on clean inputs"
    assert found["a"][0].source == pytest.approx(1.0)
    assert all(-1 <= r.candidate <= 1 for r in found["a"])
    assert found["a"][1].drop is not None


def test_models_are_asked_seldom_and_the_same_whatever_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counting(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
        calls.append(len(inputs["x"]))
        return brightness(inputs)

    told: list[float] = []
    whole = measure(
        judged(), counting, {"a": one_pixel}, on_progress=lambda share, _: told.append(share)
    )
    assert calls == [80 * 25]
    assert told == sorted(told)
    monkeypatch.setattr(robustness, "MAX_CALL_BYTES", 3 * IMAGES.nbytes)
    assert measure(judged(), counting, {"a": one_pixel}) == whole
    assert max(calls[1:]) == 240
