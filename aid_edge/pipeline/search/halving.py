"""Successive halving: judge all on little data, drop what has clearly lost, go on with more. Pure.

A candidate is dropped when a quality gate is missed, or when a candidate that is no larger and no
slower is better, and the data leave no doubt of it. "No doubt" is a one-sided bound whose level is
shared out over all looks at the data (Bonferroni: ``ALPHA`` over the number of rounds), so that
looking often does not find losers by chance. Jamieson and Talwalkar 2016,
https://arxiv.org/abs/1502.07943, halve by rank; we do by test, because a rank on few samples is
chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from aid_edge.evaluate.statistics import Z
from aid_edge.pipeline.findings import Candidate, FidelityFinding, MetricFinding
from aid_edge.pipeline.gates import metric_margin
from aid_edge.pipeline.text import percent, points
from device_agent.contract.profile import Hard

ALPHA = 0.05
FIRST_ROUND = 512
GROWTH = 4
"""Each round judges on this many times the samples of the one before."""


def rounds(n: int) -> tuple[int, ...]:
    """Return how many of ``n`` samples each round judges on; the last one takes all.

    A round that would save less than half of the work is not worth its overhead.
    """
    found = []
    size = FIRST_ROUND
    while 2 * size <= n:
        found.append(size)
        size *= GROWTH
    return (*found, n)


def shuffled(n: int, groups: Sequence[str] | None, seed: int) -> list[int]:
    """Return the samples in the order in which rounds take them: whole groups, at random."""
    generator = np.random.default_rng(seed)
    if groups is None:
        return [int(i) for i in generator.permutation(n)]
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    names = sorted(members)
    return [i for place in generator.permutation(len(names)) for i in members[names[place]]]


def critical(looks: int) -> float:
    """Return what a standard normal score must be over to leave no doubt at one of ``looks``."""
    return NormalDist().inv_cdf(1 - ALPHA / looks)


@dataclass(frozen=True)
class Loss:
    """Why a candidate goes no further; ``code`` is a reason code of the report."""

    code: str
    text: str


def clearly_misses(candidate: Candidate, hard: Hard, looks: int) -> Loss | None:
    """Return why ``candidate`` certainly misses a quality gate, or None while it may pass."""
    z = critical(looks)
    accuracy, fidelity = candidate.accuracy, candidate.fidelity
    if candidate.metrics:
        return _metric_misses(candidate.metrics[0], hard.accuracy_share, z)
    if accuracy is not None:
        margin = (1 - hard.accuracy_share) * accuracy.source
        if _lower(accuracy.drop, accuracy.drop_low, z) > margin:
            text = f"drop {points(accuracy.drop)} points on {accuracy.n} samples"
            return Loss("accuracy-dropped", f"{text}; allowed {points(margin)}")
    if fidelity is None or (candidate.training is not None and accuracy is not None):
        # Labels may overrule closeness of a pruned or trained net once all of them were seen.
        return None
    return _fidelity_misses(fidelity, hard, z)


def clearly_worse(candidate: Candidate, other: Candidate, looks: int) -> bool:
    """Return whether ``candidate`` is less accurate than ``other`` beyond doubt.

    Both were judged on the same samples against the same source, so the intervals of their drops
    are apart only when the difference is real; that is a stricter demand than a paired test.
    """
    a, b = candidate.accuracy, other.accuracy
    if a is None or b is None or a.n != b.n:
        return False
    z = critical(looks)
    return _lower(a.drop, a.drop_low, z) > -_lower(-b.drop, -b.drop_high, z)


def _metric_misses(metric: MetricFinding, share: float, z: float) -> Loss | None:
    margin = metric_margin(metric, share)
    if _lower(metric.drop, metric.drop_low, z) > margin:
        text = f"{metric.name} is {metric.drop:.4g} worse on {metric.n} samples"
        return Loss("accuracy-dropped", f"{text}; allowed {margin:.4g}")
    return None


def _lower(value: float, low: float, z: float) -> float:
    """Return a lower bound at the level of ``z``, by widening an interval of level 95 %."""
    return value - z / Z * (value - low)


def _fidelity_misses(fidelity: FidelityFinding, hard: Hard, z: float) -> Loss | None:
    if fidelity.agreement is not None and hard.agreement > 0:
        spread = math.sqrt(hard.agreement * (1 - hard.agreement) / fidelity.units)
        if fidelity.agreement < hard.agreement - z * spread:
            text = f"agrees on {percent(fidelity.agreement)} of {fidelity.n} samples"
            return Loss("agreement-low", f"{text}; at least {percent(hard.agreement)}")
    if fidelity.cosine_high is not None:
        error = (fidelity.cosine_high - fidelity.cosine) / Z
        if fidelity.cosine + z * error < hard.cosine:
            text = f"cosine {fidelity.cosine:.4f} over {fidelity.n} samples"
            return Loss("cosine-low", f"{text}; at least {hard.cosine:.4f}")
    return None
