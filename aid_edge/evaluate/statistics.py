"""Intervals and tests for shares, paired shares, means and medians.

All intervals are two-sided; ``CONFIDENCE`` is their level. Sources are named at each function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
POWER = 0.8
"""Chance that a drop called "detectable" is in fact found."""

Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
_Z_POWER = NormalDist().inv_cdf(POWER)
_BISECTIONS = 100
_BOOTSTRAP_DRAWS = 2000
MIN_BOOTSTRAP_UNITS = 5
"""Fewer independent units than this give no useful bootstrap interval."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of level ``CONFIDENCE``."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedCounts:
    """Outcomes of two models on the same samples.

    Attributes:
        both: Both are right.
        first_only: Only the first (the source) is right: a loss.
        second_only: Only the second (the candidate) is right: a gain.
        neither: Both are wrong.
    """

    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def drop(self) -> float:
        """Share of right answers of the first less that of the second."""
        return (self.first_only - self.second_only) / self.n


def paired_counts(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> PairedCounts:
    """Return how often two models are right on the same samples.

    Args:
        first: Whether the source is right, shape [n].
        second: Whether the candidate is right, shape [n].
    """
    return PairedCounts(
        both=int(np.sum(first & second)),
        first_only=int(np.sum(first & ~second)),
        second_only=int(np.sum(~first & second)),
        neither=int(np.sum(~first & ~second)),
    )


def wilson(successes: float, n: float) -> Interval:
    """Return the score interval of a share.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference",
    J. Am. Stat. Assoc. 22:209. ``successes`` and ``n`` need not be whole: see
    :func:`clustered_share`.
    """
    p = successes / n
    scale = 1 + Z**2 / n
    middle = (p + Z**2 / (2 * n)) / scale
    half = Z / scale * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # At the ends the bound is exact; rounding would leave 0.99999.
    low = 0.0 if p <= 0 else max(0.0, middle - half)
    return Interval(low, 1.0 if p >= 1 else min(1.0, middle + half))


def effective_size(values: FloatArray, groups: Sequence[str] | None) -> float:
    """Return how many independent samples tell as much about the mean of ``values``.

    The sample size over the design effect, which is the variance of the mean with clusters over
    that of a simple random sample (Kish 1965, "Survey Sampling", section 8.2; Rao and Scott 1992,
    "A simple method for the analysis of clustered binary data", Biometrics 48:577). Never less
    than the number of clusters, and just that where nothing varies; never more than the samples.

    Args:
        values: One per sample, shape [n].
        groups: Cluster of each sample, or None when samples are independent.
    """
    n = len(values)
    if groups is None:
        return float(n)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    clusters = int(index.max()) + 1
    residuals = values - np.mean(values)
    simple = float(np.sum(residuals**2)) / n**2
    if clusters == 1 or simple <= 0:
        return float(clusters)
    sums = np.bincount(index, weights=residuals)
    clustered = clusters / (clusters - 1) * float(np.sum(sums**2)) / n**2
    return min(float(n), max(float(clusters), n * simple / max(clustered, 1e-12)))


def clustered_share(hits: npt.NDArray[np.bool_], groups: Sequence[str] | None) -> Interval:
    """Return the interval of a share when samples come in clusters, such as crops of one photo.

    The sample size of Wilson's interval is replaced by the effective one (Korn and Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts", Survey
    Methodology 24:193).

    Args:
        hits: Outcomes, shape [n].
        groups: Cluster of each sample, or None when samples are independent.
    """
    p = float(np.mean(hits))
    n = effective_size(hits.astype(np.float64), groups)
    return wilson(p * n, n)


def tango_score(counts: PairedCounts, drop: float) -> float:
    """Return Tango's score statistic of the hypothesis that the true drop is ``drop``.

    Tango 1998, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Stat. Med. 17:891, equations 8 to 11. Standard normal when true.
    """
    n, b, c = counts.n, counts.first_only, counts.second_only
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    gain_share = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * gain_share + drop * (1 - drop))
    distance = b - c - n * drop
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def paired_drop_interval(counts: PairedCounts, effective: float | None = None) -> Interval:
    """Return the interval of the drop in the share of right answers, source less candidate.

    The drops that Tango's score test (:func:`tango_score`) does not refuse. Unlike a bootstrap or
    Wald interval it keeps its level when few answers differ, and has a width when none does.

    Args:
        counts: Outcomes of the two models.
        effective: :func:`effective_size` of the samples where they come in clusters; else all.
    """
    # The score of counts that are all divided by the design effect is this much smaller.
    shrink = 1.0 if effective is None else math.sqrt(effective / counts.n)

    def bound(level: float, low: float, high: float) -> float:
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if shrink * tango_score(counts, middle) > level:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    # The score falls as the hypothetical drop grows.
    return Interval(bound(Z, -1.0, counts.drop), bound(-Z, counts.drop, 1.0))


def mcnemar_p(counts: PairedCounts) -> float:
    """Return the exact two-sided p-value of "losses and gains are equally likely".

    McNemar 1947, Psychometrika 12:153, with the binomial distribution instead of chi-squared.
    """
    differing = counts.first_only + counts.second_only
    fewer = min(counts.first_only, counts.second_only)
    tail = sum(math.comb(differing, k) for k in range(fewer + 1)) / (1 << differing)
    return min(1.0, 2 * tail)


def clustered_mcnemar_p(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], groups: Sequence[str] | None
) -> float:
    """Return the exact p-value of :func:`mcnemar_p`, each cluster of samples taken as one.

    A cluster speaks for the model that is right on more of its samples: the sign test over
    clusters, which needs no model of how samples within one depend on each other.

    Args:
        first: Whether the source is right, shape [n].
        second: Whether the candidate is right, shape [n].
        groups: Cluster of each sample, or None when samples are independent.
    """
    difference = first.astype(np.int64) - second.astype(np.int64)
    if groups is not None:
        index = np.unique(np.asarray(groups), return_inverse=True)[1]
        difference = np.rint(np.bincount(index, weights=difference)).astype(np.int64)
    return mcnemar_p(paired_counts(difference > 0, difference < 0))


def smallest_detectable_drop(n: float, differing_share: float) -> float:
    """Return the smallest true drop that ``n`` samples find with a chance of ``POWER``.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample
    design", Biometrics 43:207: n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2, solved for the
    drop d. psi, the share of answers that differ, is never less than the drop itself.

    Args:
        n: Number of labelled samples; the effective one where they come in clusters.
        differing_share: Share of samples on which exactly one of the two models is right.
    """

    def needed(drop: float) -> float:
        psi = max(differing_share, drop)
        return (Z * math.sqrt(psi) + _Z_POWER * math.sqrt(psi - drop**2)) ** 2 / drop**2

    low, high = 1e-9, 1.0
    if needed(high) > n:
        return 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if needed(middle) > n else (low, middle)
    return high


def samples_to_pass(margin: float) -> int:
    """Return how many samples decide a gate of ``margin`` when no answer differs at all.

    With no differing answers the upper bound of :func:`paired_drop_interval` is z^2 / (n + z^2).
    """
    return math.ceil(Z**2 * (1 - margin) / margin)


def quantile_interval(values: Sequence[float], q: float) -> Interval:
    """Return a distribution-free interval of the ``q``-quantile, from order statistics.

    Conover 1999, "Practical Nonparametric Statistics", 3rd ed., section 3.2, with the normal
    approximation of the ranks. Where the samples are too few to bound it, the extreme stands.
    """
    ordered = sorted(values)
    n = len(ordered)
    half = Z * math.sqrt(n * q * (1 - q))
    low = max(0, math.floor(n * q - half) - 1)
    high = min(n - 1, math.ceil(n * q + half))
    return Interval(ordered[low], ordered[high])


def bootstrap(
    columns: FloatArray,
    groups: Sequence[str] | None,
    statistic: Callable[[FloatArray], FloatArray],
    *,
    seed: int,
) -> Interval | None:
    """Return the percentile bootstrap interval of a function of sums, resampling whole clusters.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; Davison and
    Hinkley 1997, section 3.8, for clusters. None with fewer than ``MIN_BOOTSTRAP_UNITS``
    independent units.

    Args:
        columns: What is summed, one row per sample, [n, k].
        groups: Cluster of each sample, or None when samples are independent.
        statistic: Of sums [draws, k]; returns [draws].
        seed: Of the generator; the same seed gives the same interval.
    """
    units = columns
    if groups is not None:
        index = np.unique(np.asarray(groups), return_inverse=True)[1]
        units = np.stack([np.bincount(index, weights=column) for column in columns.T], axis=1)
    n = len(units)
    if n < MIN_BOOTSTRAP_UNITS:
        return None
    generator = np.random.default_rng(seed)
    sums = np.stack(
        [
            np.bincount(generator.integers(0, n, n), minlength=n) @ units
            for _ in range(_BOOTSTRAP_DRAWS)
        ]
    )
    low, high = np.quantile(statistic(sums), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
