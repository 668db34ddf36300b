"""Sequential stop: published bounds, and errors that are held at every look."""

from __future__ import annotations

import numpy as np
import pytest

from aid_edge.errors import UsageError
from aid_edge.evaluate.sequential import ALPHA, SequentialTest, bounds, shuffled, spent
from aid_edge.evaluate.statistics import PairedCounts


def test_bounds_are_the_published_ones() -> None:
    """Five equal looks, two-sided 5 %, spending like O'Brien-Fleming.

    Reboussin, DeMets, Kim and Lan 2000, Controlled Clinical Trials 21:190, and every group
    sequential program since: 4.877, 3.357, 2.680, 2.290, 2.031.
    """
    found = bounds([k / 5 for k in range(1, 6)])
    assert found == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)


def test_one_look_is_an_ordinary_test() -> None:
    assert bounds([1.0])[0] == pytest.approx(1.95996, abs=1e-4)
    assert spent(1.0, ALPHA) == pytest.approx(ALPHA)


def _decided(seed: int, drop: float, *, differing: float, planned: int, looks: int) -> str:
    generator = np.random.default_rng(seed)
    losses, gains = (differing + drop) / 2, (differing - drop) / 2
    outcomes = generator.choice(3, planned, p=[1 - losses - gains, losses, gains])
    test = SequentialTest(0.02, planned)
    for k in range(1, looks + 1):
        seen = np.bincount(outcomes[: planned * k // looks], minlength=3)
        found = test.look(PairedCounts(int(seen[0]), int(seen[1]), int(seen[2]), 0))
        if found.status != "continue":
            return found.status
    return "never"


def test_a_drop_of_just_the_margin_seldom_passes_or_fails() -> None:
    rounds = 1500
    results = [
        _decided(seed, 0.02, differing=0.06, planned=2000, looks=6) for seed in range(rounds)
    ]
    # 2.5 % on each side; four standard errors of 1,500 rounds are 1.6 points.
    assert results.count("pass") / rounds < ALPHA + 0.016
    assert results.count("fail") / rounds < ALPHA + 0.016
    assert results.count("undecided") / rounds > 0.9


def test_the_same_looks_with_an_ordinary_bound_err_far_more_often() -> None:
    """What the bounds are for: 1.96 at each of six looks is crossed in about one case of six."""
    generator = np.random.default_rng(0)
    sums = np.cumsum(generator.normal(size=(2000, 6)), axis=1) / np.sqrt(np.arange(1, 7))
    assert np.mean(np.abs(sums).max(axis=1) > 1.96) > 0.12
    limits = np.array(bounds([k / 6 for k in range(1, 7)]))
    assert np.mean((np.abs(sums) > limits).any(axis=1)) == pytest.approx(0.05, abs=0.02)


def test_clear_answers_come_early() -> None:
    test = SequentialTest(0.02, 10_000)
    assert test.look(PairedCounts(900, 100, 0, 0)).status == "fail"
    same = SequentialTest(0.02, 10_000)
    assert same.look(PairedCounts(500, 0, 0, 0)).status == "continue"
    found = same.look(PairedCounts(4000, 0, 0, 0))
    assert (found.status, found.n) == ("pass", 4000)
    assert found.z < -found.bound


def test_groups_that_agree_count_as_one() -> None:
    hits = PairedCounts(900, 100, 0, 0)
    assert SequentialTest(0.02, 10_000).look(hits, effective=20.0).status == "continue"


def test_drops_of_single_samples() -> None:
    generator = np.random.default_rng(2)
    drops = generator.normal(0.5, 0.1, 300)
    assert SequentialTest(0.02, 600).look_at(drops).status == "fail"
    assert SequentialTest(0.9, 600).look_at(drops).status == "pass"
    two = ["a"] * 150 + ["b"] * 150
    assert SequentialTest(0.02, 600).look_at(np.repeat([0.5, -0.2], 150), two).status == "continue"
    assert SequentialTest(0.02, 300).look_at(np.zeros(300)).status == "undecided"


def test_looks_go_forward_and_end() -> None:
    test = SequentialTest(0.02, 100)
    test.look(PairedCounts(50, 0, 0, 0))
    for n in (50, 101):
        with pytest.raises(UsageError, match="look"):
            test.look(PairedCounts(n, 0, 0, 0))
    with pytest.raises(UsageError, match="no test of margin 0"):
        SequentialTest(0.0, 10)


def test_groups_stay_together_in_random_order() -> None:
    groups = ["c", "a", "b", "a", "c", "b"]
    order = shuffled(6, groups, 3)
    assert sorted(order) == list(range(6))
    assert [groups[i] for i in order[::2]] == [groups[i] for i in order[1::2]]
    assert shuffled(50, None, 1) == shuffled(50, None, 1) != shuffled(50, None, 2)
