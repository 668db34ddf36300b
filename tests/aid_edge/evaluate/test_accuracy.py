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
