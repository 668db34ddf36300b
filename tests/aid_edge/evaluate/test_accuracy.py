from __future__ import annotations

import numpy as np
import pytest

from aid_edge.evaluate.accuracy import compare, top1
from aid_edge.evaluate.statistics import PairedCounts


def scores_for(classes: list[int], width: int = 4) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[classes] + 0.1


def test_drop_is_paired_and_counts_both_directions() -> None:
    labels = np.array([0, 1, 2, 3, 0, 1])
    source = scores_for([0, 1, 2, 3, 1, 0])
    candidate = scores_for([0, 1, 3, 0, 0, 0])
    paired = compare(source, candidate, labels)
    assert paired.counts == PairedCounts(both=2, first_only=2, second_only=1, neither=1)
    assert paired.source == pytest.approx(4 / 6)
    assert paired.candidate == pytest.approx(3 / 6)
    assert paired.drop == pytest.approx(1 / 6)
    assert paired.drop_interval.low < paired.drop < paired.drop_interval.high
    assert paired.candidate_interval.low < 0.5 < paired.candidate_interval.high
    assert paired.n == 6


def test_top1_takes_the_first_of_equals() -> None:
    assert top1(np.zeros((2, 1, 5))).tolist() == [0, 0]


def test_crops_of_one_photo_do_not_count_as_samples_of_their_own() -> None:
    labels = np.zeros(200, np.int64)
    source = scores_for([0] * 200)
    candidate = scores_for([1] * 10 + [0] * 190)
    photos = [f"photo-{i // 10}" for i in range(200)]
    alone = compare(source, candidate, labels)
    # One photo of twenty is lost, with all of its ten crops.
    crops = compare(source, candidate, labels, photos)
    photos_only = compare(source[::10], candidate[::10], labels[::10])
    assert crops.drop == alone.drop == pytest.approx(0.05)
    assert crops.drop_interval.low == pytest.approx(photos_only.drop_interval.low)
    assert crops.drop_interval.high == pytest.approx(photos_only.drop_interval.high)
    assert crops.candidate_interval.low == pytest.approx(photos_only.candidate_interval.low)
    assert crops.p_value == photos_only.p_value == 1.0 > alone.p_value
    assert crops.detectable_drop == pytest.approx(photos_only.detectable_drop)
    assert crops.detectable_drop > 2 * alone.detectable_drop
