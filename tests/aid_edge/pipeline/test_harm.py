from __future__ import annotations

import numpy as np
import pytest

from aid_edge.pipeline.harm import MAX_CLASSES, classes, confusion, holm

NAMES = ("cat", "dog", "bird")
TRUTH = np.repeat([0, 1, 2], [40, 40, 3])
SOURCE = TRUTH.copy()
CANDIDATE = TRUTH.copy()
CANDIDATE[:12] = 1  # a dozen cats become dogs
CANDIDATE[80] = 0  # one bird of three becomes a cat


def test_the_class_that_surely_pays_comes_first() -> None:
    found = classes(SOURCE, CANDIDATE, TRUTH, NAMES)
    assert [c.label for c in found] == ["cat", "bird", "dog"]
    cat = found[0]
    assert (cat.n, cat.source, cat.candidate) == (40, 1.0, 0.7)
    assert cat.drop_low is not None
    assert cat.drop_low > 0.1
    assert cat.p_value == pytest.approx(3 * 2 * 0.5**12)
    assert found[1].p_value == 1.0, "one of three says nothing"


def test_where_answers_flow_to() -> None:
    found = confusion(SOURCE, CANDIDATE, TRUTH, NAMES)
    cells = {(c.label, c.answer): (c.source, c.candidate) for c in found}
    assert cells == {
        ("cat", "cat"): (40, 28),
        ("cat", "dog"): (0, 12),
        ("bird", "bird"): (3, 2),
        ("bird", "cat"): (0, 1),
    }
    assert {c.label for c in found[:2]} == {"cat"}


def test_without_labels_the_source_is_taken_for_right() -> None:
    found = confusion(SOURCE, CANDIDATE, None, ())
    assert found[0].label == "class 0"
    assert confusion(SOURCE, SOURCE, None, ()) == ()


def test_holm_never_falls_and_never_passes_one() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_classes_are_bounded() -> None:
    truth = np.arange(500)
    assert len(classes(truth, truth, truth, ())) == MAX_CLASSES
