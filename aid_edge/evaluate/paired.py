"""Intervals of how much worse one model is than another on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from aid_edge.errors import DataError
from aid_edge.evaluate.statistics import (
    CONFIDENCE,
    MIN_BOOTSTRAP_UNITS,
    POWER,
    Interval,
    PairedCounts,
    Z,
    effective_size,
    paired_counts,
    paired_drop_interval,
    smallest_detectable_drop,
)

MAX_DRAWS = 2000
MAX_JACKKNIFE = 100
"""Units are left out in so many parts at most: the acceleration needs no more."""

_NORMAL = NormalDist()

FloatArray = npt.NDArray[np.float64]
Drop = Callable[[FloatArray], float]
"""How much worse the candidate is over samples that count as often as their weight [n] says."""


@dataclass(frozen=True)
class PairedDrop:
    """How much worse a candidate is, as far as samples can tell.

    Attributes:
        detectable: Smallest true drop such samples find with a chance of 80 %; None where nothing
            varies.
        how: What the interval was made by.
    """

    interval: Interval
    detectable: float | None
    how: str


def paired_shares(
    source: npt.NDArray[np.bool_],
    candidate: npt.NDArray[np.bool_],
    groups: Sequence[str] | None,
) -> PairedDrop:
    """Return the drop in a share of hits: Tango's interval at the effective sample size.

    Args:
        source: Whether the source is right, [n].
        candidate: Likewise the candidate.
        groups: Cluster of each sample, or None when samples are independent.
    """
    counts = paired_counts(source, candidate)
    effective = effective_size(source.astype(np.float64) - candidate.astype(np.float64), groups)
    differing = (counts.first_only + counts.second_only) / counts.n
    return PairedDrop(
        paired_drop_interval(counts, effective),
        smallest_detectable_drop(effective, differing),
        f"Tango's paired {CONFIDENCE:.0%} interval",
    )


def paired_bootstrap(
    drop: Drop,
    n: int,
    groups: Sequence[str] | None,
    *,
    seed: int,
    draws: int = MAX_DRAWS,
    is_share: bool = False,
    what: str = "this figure",
) -> PairedDrop:
    """Return the drop in any figure: a BCa bootstrap of whole groups.

    Bias-corrected and accelerated (Efron 1987, "Better bootstrap confidence intervals", JASA
    82:171; the acceleration by a jackknife over groups, Efron and Tibshirani 1993, equation
    14.15). Both models are drawn on the same samples, so that what they share falls out. Where the
    draws cannot tell the models apart at all and the figure is a share, Tango's interval of no
    difference stands in: no bootstrap has a width then.

    Args:
        drop: Of weights.
        n: Number of samples.
        groups: Cluster of each sample, or None when samples are independent.
        seed: Of the draws; the same seed gives the same interval.
        draws: How many.
        is_share: Whether the figure lies in 0 to 1.
        what: Names the figure in messages.

    Raises:
        DataError: There are fewer than ``MIN_BOOTSTRAP_UNITS`` independent units, or the figure
            is not defined on what was drawn.
    """
    index = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(index.max()) + 1
    if units < MIN_BOOTSTRAP_UNITS:
        raise DataError(
            f"{what}: {units} independent samples are too few for an interval; "
            f"at least {MIN_BOOTSTRAP_UNITS} are needed"
        )
    found = drop(np.ones(n))
    generator = np.random.default_rng(seed)
    drawn = np.array([drop(w) for w in _draws(index, units, draws, generator)])
    drawn = drawn[np.isfinite(drawn)]
    # A class may be missing from a draw; from most of them it must not be.
    if len(drawn) < draws / 2:
        raise DataError(f"{what}: is not defined on most samples drawn from these")
    deviation = float(np.std(drawn))
    if deviation <= 1e-12 * max(1.0, abs(found)):
        if not is_share:
            return PairedDrop(Interval(found, found), None, "no sample differs")
        none = PairedCounts(units, 0, 0, 0)
        width = paired_drop_interval(none)
        return PairedDrop(
            Interval(found + width.low, found + width.high),
            smallest_detectable_drop(units, 0.0),
            f"Tango's paired {CONFIDENCE:.0%} interval of no difference",
        )
    jackknife = np.array([drop(w) for w in _left_out(index, units, generator)])
    low, high = _bca(drawn, found, jackknife[np.isfinite(jackknife)])
    detectable = (Z + _NORMAL.inv_cdf(POWER)) * deviation
    how = f"paired BCa bootstrap, {len(drawn)} draws of {units} units, {CONFIDENCE:.0%} interval"
    return PairedDrop(Interval(low, high), detectable, how)


def _draws(
    index: npt.NDArray[np.intp], units: int, draws: int, generator: np.random.Generator
) -> Iterator[FloatArray]:
    for _ in range(draws):
        counts = np.bincount(generator.integers(0, units, units), minlength=units)
        yield counts[index].astype(np.float64)


def _left_out(
    index: npt.NDArray[np.intp], units: int, generator: np.random.Generator
) -> Iterator[FloatArray]:
    parts = min(units, MAX_JACKKNIFE)
    # Which units are left out together is drawn: neighbors may be alike.
    part = generator.permutation(units) % parts
    for number in range(parts):
        yield (part != number)[index].astype(np.float64)


def _bca(drawn: FloatArray, found: float, jackknife: FloatArray) -> tuple[float, float]:
    below = float(np.mean(drawn < found) + np.mean(drawn == found) / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / (2 * len(drawn))), 1 - 1 / (2 * len(drawn))))
    distance = jackknife.mean() - jackknife
    spread = float(np.sum(distance**2)) ** 1.5
    acceleration = float(np.sum(distance**3)) / (6 * spread) if spread > 0 else 0.0

    def level(z: float) -> float:
        shifted = bias + z
        scale = 1 - acceleration * shifted
        return _NORMAL.cdf(bias + shifted / scale) if scale > 0 else (0.0 if z < 0 else 1.0)

    low, high = np.quantile(drawn, [level(-Z), level(Z)])
    if not math.isfinite(low + high):
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
