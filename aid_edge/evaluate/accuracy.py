"""Accuracy of a candidate against the source model on the same labelled samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.evaluate.statistics import (
    Interval,
    PairedCounts,
    clustered_mcnemar_p,
    clustered_share,
    effective_size,
    paired_counts,
    paired_drop_interval,
    smallest_detectable_drop,
)


@dataclass(frozen=True)
class PairedAccuracy:
    """Top-1 accuracy of the source and of a candidate on the same samples.

    Attributes:
        counts: How often each of the two is right.
        source: Share of right answers of the source model.
        candidate: Likewise of the candidate.
        candidate_interval: Wilson interval of ``candidate``, at the effective sample size.
        drop: ``source - candidate``; negative when the candidate is better.
        drop_interval: Tango's paired interval of ``drop``, likewise.
        p_value: McNemar's exact test of "no difference", a cluster taken as one.
        detectable_drop: Smallest true drop these samples find with a chance of 80 %.
    """

    counts: PairedCounts
    source: float
    candidate: float
    candidate_interval: Interval
    drop: float
    drop_interval: Interval
    p_value: float
    detectable_drop: float

    @property
    def n(self) -> int:
        """Number of labelled samples."""
        return self.counts.n


def top1(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the class with the highest score of each sample; scores [n, ..., classes] -> [n]."""
    best: npt.NDArray[np.int64] = scores.reshape(len(scores), -1).argmax(axis=1).astype(np.int64)
    return best


def compare(
    source_scores: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    groups: Sequence[str] | None = None,
) -> PairedAccuracy:
    """Return the paired accuracy of a candidate.

    Args:
        source_scores: Scores of the source model, [n, classes].
        scores: Scores of the candidate on the same samples, [n, classes].
        labels: Right classes, [n].
        groups: Cluster of each sample, such as the photo of a crop; None when samples are
            independent.
    """
    before, after = top1(source_scores) == labels, top1(scores) == labels
    counts = paired_counts(before, after)
    differing = (counts.first_only + counts.second_only) / counts.n
    effective = effective_size(before.astype(np.float64) - after.astype(np.float64), groups)
    return PairedAccuracy(
        counts=counts,
        source=(counts.both + counts.first_only) / counts.n,
        candidate=(counts.both + counts.second_only) / counts.n,
        candidate_interval=clustered_share(after, groups),
        drop=counts.drop,
        drop_interval=paired_drop_interval(counts, effective),
        p_value=clustered_mcnemar_p(before, after, groups),
        detectable_drop=smallest_detectable_drop(effective, differing),
    )
