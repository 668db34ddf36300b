"""Stops an evaluation early when the answer is clear, and still errs no more often than it says.

Looking again and again at growing samples with an ordinary test finds something in the end, true or
not. Here each look spends a part of the error that is allowed in all: next to nothing at first and
most at the end (O'Brien and Fleming 1979, Biometrics 35:549), by the share of the planned samples
that were seen (Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials",
Biometrika 70:659). So the number of looks and their places need not be planned.

Samples must come in random order: :func:`shuffled`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from aid_edge.errors import UsageError
from aid_edge.evaluate.statistics import CONFIDENCE, PairedCounts, tango_score

ALPHA = (1 - CONFIDENCE) / 2
"""Allowed error of each of the two answers, pass and fail, as of a two-sided interval of 95 %."""

MAX_LOOKS = 50

_NORMAL = NormalDist()
_GRID = 601
_BISECTIONS = 40
_FAR = 9.0
"""In standard deviations: nothing is ever further out."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """What one look at the samples so far says.

    Attributes:
        status: ``pass`` when the drop is surely below the margin, ``fail`` when it is surely above;
            ``undecided`` when all planned samples were seen and neither is sure.
        z: Distance of what was found from the margin, in standard errors; negative is below it.
        bound: What ``z`` has to reach on either side at this look.
    """

    status: Literal["pass", "fail", "continue", "undecided"]
    n: int
    z: float
    bound: float


class SequentialTest:
    """Looks at growing samples until it is clear whether the drop is below a margin."""

    def __init__(self, margin: float, planned: int, *, alpha: float = ALPHA) -> None:
        """Plan for at most ``planned`` samples.

        Args:
            margin: Largest drop that passes, above 0.
            planned: Samples there are in all; the last look is at all of them.
            alpha: Chance to pass at a true drop of the margin, and likewise to fail.

        Raises:
            UsageError: A figure makes no sense.
        """
        if margin <= 0 or planned < 1 or not 0 < alpha < 0.5:
            raise UsageError(f"no test of margin {margin:g} on {planned} samples at {alpha:g}")
        self._margin, self._planned = margin, planned
        self._alpha, self._shares = alpha, list[float]()

    def look(self, counts: PairedCounts, effective: float | None = None) -> Look:
        """Return what the hits and misses of all samples so far say, by Tango's score.

        Args:
            counts: Of source and candidate over all samples so far.
            effective: :func:`~aid_edge.evaluate.statistics.effective_size` of these samples where
                they come in clusters.

        Raises:
            UsageError: There are no more samples than at the look before, or over the planned.
        """
        shrink = 1.0 if effective is None else math.sqrt(effective / counts.n)
        return self._judge(shrink * tango_score(counts, self._margin), counts.n)

    def look_at(self, drops: FloatArray, groups: Sequence[str] | None = None) -> Look:
        """Return what drops of single samples say, for metrics that are a mean over samples.

        Args:
            drops: How much worse the candidate is on each sample so far, [n].
            groups: Cluster of each sample, or None when samples are independent.

        Raises:
            UsageError: As for :meth:`look`.
        """
        n = len(drops)
        mean = float(np.mean(drops))
        residuals = np.asarray(drops, np.float64) - mean
        if groups is not None:
            index = np.unique(np.asarray(groups), return_inverse=True)[1]
            residuals = np.bincount(index, weights=residuals).astype(np.float64)
        units = len(residuals)
        if units < 2:
            return self._judge(0.0, n)
        error = math.sqrt(units / (units - 1) * float(np.sum(residuals**2))) / n
        if error <= 0:
            # No sample differs from another: nothing is known about the spread.
            return self._judge(0.0, n)
        return self._judge((mean - self._margin) / error, n)

    def _judge(self, z: float, n: int) -> Look:
        if n > self._planned:
            raise UsageError(f"a look at {n} samples where {self._planned} were planned")
        self._shares.append(n / self._planned)
        bound = bounds(self._shares, self._alpha)[-1]
        if z <= -bound:
            return Look("pass", n, z, bound)
        if z >= bound:
            return Look("fail", n, z, bound)
        return Look("continue" if n < self._planned else "undecided", n, z, bound)


@dataclass(frozen=True)
class _State:
    """How things stand after a look.

    Attributes:
        places: Values of the statistic that never crossed a bound, as sums: z sqrt(share).
        masses: Chance of each, in all the chance of never having crossed.
        spent: Chance of having crossed on one side.
    """

    bound: float
    places: FloatArray
    masses: FloatArray
    spent: float


def bounds(shares: Sequence[float], alpha: float = ALPHA) -> tuple[float, ...]:
    """Return the bounds of a statistic that is standard normal at each of several looks.

    The exact distribution of never having crossed so far is carried along on a grid (Armitage,
    McPherson and Rowe 1969, "Repeated significance tests on accumulating data", J. R. Stat. Soc. A
    132:235; Jennison and Turnbull 2000, "Group Sequential Methods", chapter 19).

    Args:
        shares: Of all information, at each look: ascending, above 0 to 1.
        alpha: Spent on each side by the time all is seen.

    Raises:
        UsageError: Looks do not go forward, or are too many.
    """
    for number, (share, before) in enumerate(zip(shares, (0.0, *shares), strict=False), start=1):
        if not before < share <= 1 or number > MAX_LOOKS:
            raise UsageError(
                f"look {number} at {share:.3g} of the samples after one at {before:.3g}; "
                f"looks must be at more and more, at most {MAX_LOOKS}"
            )
    return tuple(_after(tuple(shares[: i + 1]), alpha).bound for i in range(len(shares)))


@functools.lru_cache(maxsize=256)
def _after(shares: tuple[float, ...], alpha: float) -> _State:
    if not shares:
        return _State(0.0, np.zeros(1), np.ones(1), 0.0)
    *earlier, share = shares
    state = _after(tuple(earlier), alpha)
    step = math.sqrt(share - (earlier[-1] if earlier else 0.0))
    allowed = spent(share, alpha) - state.spent

    # On the scale of sums, where increments are independent.
    def crossing(bound: float) -> float:
        return float(state.masses @ _above((bound * math.sqrt(share) - state.places) / step))

    low, high = 0.0, _FAR
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if crossing(middle) > allowed else (low, middle)
    limit = high * math.sqrt(share)
    edges = np.linspace(-limit, limit, _GRID)
    distance = (edges[:, None] - state.places[None, :]) / step
    density = np.exp(-(distance**2) / 2) @ state.masses / (step * math.sqrt(2 * math.pi))
    # Simpson's rule.
    weights = np.full(_GRID, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    masses = density * weights * (edges[1] - edges[0]) / 3
    return _State(high, edges, masses, state.spent + crossing(high))


def spent(share: float, alpha: float) -> float:
    """Return how much of ``alpha`` may be spent when this share was seen (Lan and DeMets 1983).

    2 - 2 Phi(z_(alpha / 2) / sqrt(share)), which resembles the bounds of O'Brien and Fleming.
    """
    quantile = _NORMAL.inv_cdf(1 - alpha / 2)
    return 2 * _NORMAL.cdf(-quantile / math.sqrt(share))


def shuffled(n: int, groups: Sequence[str] | None, seed: int) -> list[int]:
    """Return the samples in random order, those of one group together.

    Args:
        n: Number of samples.
        groups: Cluster of each sample, or None when samples are independent.
        seed: Of the order.
    """
    generator = np.random.default_rng(seed)
    if groups is None:
        return [int(i) for i in generator.permutation(n)]
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    place = generator.permutation(int(index.max()) + 1)[index]
    return [int(i) for i in np.argsort(place, kind="stable")]


def _above(z: FloatArray) -> FloatArray:
    from scipy.special import ndtr  # noqa: PLC0415 -- takes a while to import

    return np.asarray(ndtr(-z), np.float64)
