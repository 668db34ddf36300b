from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from aid_edge.evaluate import statistics
from aid_edge.evaluate.statistics import Interval, PairedCounts

COUNTS = st.builds(
    PairedCounts,
    both=st.integers(0, 80),
    first_only=st.integers(0, 20),
    second_only=st.integers(0, 20),
    neither=st.integers(1, 30),
)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (18, 20), (20, 20), (700, 1000)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
    ours = statistics.wilson(hits, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(COUNTS)
def test_tango_bounds_solve_the_score_equation_and_hold_the_drop(counts: PairedCounts) -> None:
    interval = statistics.paired_drop_interval(counts)
    assert -1 <= interval.low <= counts.drop <= interval.high <= 1
    for bound, level in ((interval.low, statistics.Z), (interval.high, -statistics.Z)):
        if abs(bound) < 0.999:
            assert statistics.tango_score(counts, bound) == pytest.approx(level, abs=1e-5)


@pytest.mark.parametrize("drop", [-0.2, -0.03, 0.01, 0.1, 0.3])
def test_tango_uses_the_constrained_maximum_likelihood(drop: float) -> None:
    counts = PairedCounts(both=40, first_only=9, second_only=4, neither=7)
    n, b, c = counts.n, counts.first_only, counts.second_only

    def negative_log_likelihood(gain: float) -> float:
        rest = 1 - 2 * gain - drop
        return -(b * math.log(gain + drop) + c * math.log(gain) + (n - b - c) * math.log(rest))

    low = max(0.0, -drop) + 1e-12
    best = optimize.minimize_scalar(
        negative_log_likelihood, bounds=(low, (1 - drop) / 2 - 1e-12), method="bounded",
        options={"xatol": 1e-13},
    )  # fmt: skip
    score = (b - c - n * drop) / math.sqrt(n * (2 * best.x + drop * (1 - drop)))
    assert statistics.tango_score(counts, drop) == pytest.approx(score, abs=1e-5)


def test_tango_keeps_its_level_at_small_n_where_a_wald_interval_would_not() -> None:
    # Every outcome of n = 20 with gain share 0.02 and loss share 0.07: the true drop is 0.05.
    n, loss, gain = 20, 0.07, 0.02
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = stats.multinomial.pmf([b, c, n - b - c], n, [loss, gain, 1 - loss - gain])
            interval = statistics.paired_drop_interval(PairedCounts(n - b - c, b, c, 0))
            covered += chance * (interval.low <= loss - gain <= interval.high)
    assert 0.94 <= covered <= 1


def test_twenty_samples_without_a_difference_leave_sixteen_points_open() -> None:
    interval = statistics.paired_drop_interval(PairedCounts(18, 0, 0, 2))
    assert interval.high == pytest.approx(0.1611, abs=1e-3)
    assert interval.low == pytest.approx(-0.1611, abs=1e-3)
    assert statistics.smallest_detectable_drop(20, 0.0) > 0.3


def test_samples_to_pass_is_the_least_number_that_passes() -> None:
    margin = 0.009
    n = statistics.samples_to_pass(margin)
    assert statistics.paired_drop_interval(PairedCounts(n, 0, 0, 0)).high <= margin
    assert statistics.paired_drop_interval(PairedCounts(n - 1, 0, 0, 0)).high > margin


@given(COUNTS)
def test_mcnemar_is_the_exact_binomial_test(counts: PairedCounts) -> None:
    differing = counts.first_only + counts.second_only
    expected = stats.binomtest(counts.first_only, differing).pvalue if differing else 1.0
    assert statistics.mcnemar_p(counts) == pytest.approx(expected)


def test_detectable_drop_is_found_with_the_promised_power() -> None:
    # Connor's formula against a simulation of the paired test with that very drop.
    n, psi = 400, 0.06
    drop = statistics.smallest_detectable_drop(n, psi)
    generator = np.random.default_rng(1)
    shares = [(psi + drop) / 2, (psi - drop) / 2, 1 - psi]
    found = [
        statistics.tango_score(PairedCounts(int(rest), int(b), int(c), 0), 0.0) > statistics.Z
        for b, c, rest in generator.multinomial(n, shares, size=4000)
    ]
    assert np.mean(found) == pytest.approx(statistics.POWER, abs=0.05)


def test_more_samples_detect_smaller_drops() -> None:
    drops = [statistics.smallest_detectable_drop(n, 0.02) for n in (20, 100, 1000, 10000)]
    assert drops == sorted(drops, reverse=True)
    assert drops[-1] < 0.006


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_quantile_interval_holds_the_quantile_at_its_level(q: float) -> None:
    generator = np.random.default_rng(2)
    truth = stats.lognorm(1).ppf(q)
    held = [
        (i := statistics.quantile_interval(list(generator.lognormal(size=200)), q)).low
        <= truth
        <= i.high
        for _ in range(500)
    ]
    assert np.mean(held) > 0.92


def test_crops_of_one_photo_widen_the_interval() -> None:
    hits = np.array([True] * 16 + [False] * 4 + [True] * 20)
    groups = [str(i // 4) for i in range(40)]
    alone, clustered = (
        statistics.clustered_share(hits, None),
        statistics.clustered_share(hits, groups),
    )
    assert clustered.high - clustered.low > alone.high - alone.low
    certain = statistics.clustered_share(np.ones(40, bool), groups)
    assert certain == statistics.wilson(10, 10)


def test_bootstrap_resamples_clusters_and_needs_enough_of_them() -> None:
    values = np.repeat(np.arange(8.0), 5)
    groups = [str(int(v)) for v in values]
    columns = np.stack([values, np.ones(40)], axis=1)

    def mean(sums: np.ndarray) -> np.ndarray:
        return sums[:, 0] / sums[:, 1]

    single = statistics.bootstrap(columns, None, mean, seed=0)
    clustered = statistics.bootstrap(columns, groups, mean, seed=0)
    assert isinstance(single, Interval)
    assert isinstance(clustered, Interval)
    assert single.low < 3.5 < single.high
    # Eight clusters of five have the variance of eight samples, not of forty.
    ratio = (clustered.high - clustered.low) / (single.high - single.low)
    assert ratio == pytest.approx(5**0.5, rel=0.15)
    assert statistics.bootstrap(columns[:3], None, mean, seed=0) is None


def test_the_interval_of_clustered_drops_keeps_its_level() -> None:
    generator = np.random.default_rng(5)
    photos, crops, drop = 60, 8, 0.10
    groups = [str(i) for i in np.repeat(np.arange(photos), crops)]
    held = {"clustered": 0, "independent": 0}
    runs = 300
    for _ in range(runs):
        # Photos are lost or gained whole, but for some crops that answer on their own.
        photo = generator.choice([1, -1, 0], size=photos, p=[0.15, 0.05, 0.80])
        own = generator.choice([1, -1, 0], size=photos * crops, p=[0.15, 0.05, 0.80])
        difference = np.where(generator.random(photos * crops) < 0.7, np.repeat(photo, crops), own)
        counts = statistics.paired_counts(difference >= 0, difference <= 0)
        effective = statistics.effective_size(difference.astype(float), groups)
        for name, size in (("clustered", effective), ("independent", None)):
            interval = statistics.paired_drop_interval(counts, size)
            held[name] += interval.low <= drop <= interval.high
    assert held["clustered"] / runs > 0.92
    assert held["independent"] / runs < 0.80


def test_effective_size_lies_between_clusters_and_samples() -> None:
    groups = [str(i // 4) for i in range(40)]
    assert statistics.effective_size(np.arange(40.0), None) == 40
    assert statistics.effective_size(np.zeros(40), groups) == 10
    assert statistics.effective_size(np.repeat(np.arange(10.0), 4), groups) == pytest.approx(10)
    assert statistics.effective_size(np.tile([0.0, 1.0], 20), groups) == 40
    assert statistics.effective_size(np.arange(4.0), ["a"] * 4) == 1


def test_a_cluster_is_one_outcome_of_mcnemars_test() -> None:
    first = np.array([1, 1, 0, 0, 1, 0], bool)
    second = np.array([0, 0, 0, 1, 1, 1], bool)
    groups = ["a", "a", "a", "b", "b", "b"]
    assert statistics.clustered_mcnemar_p(first, second, None) == statistics.mcnemar_p(
        statistics.paired_counts(first, second)
    )
    assert statistics.clustered_mcnemar_p(first, second, groups) == 1.0
