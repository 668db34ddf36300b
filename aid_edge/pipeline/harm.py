"""Who pays for a candidate: classes that lose, and which classes flow into which. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aid_edge.evaluate.statistics import mcnemar_p, paired_counts, paired_drop_interval
from aid_edge.pipeline.findings import ClassFinding, ConfusionFinding

MAX_CLASSES = 100
"""Kept per candidate, those that lose most first."""

MAX_CELLS = 24

Classes = npt.NDArray[np.int64]


def classes(
    source: Classes, candidate: Classes, truth: Classes, names: Sequence[str]
) -> tuple[ClassFinding, ...]:
    """Return recall per class, those that lose most first.

    Args:
        source: Answers of the source model, [n].
        candidate: Answers of the candidate to the same samples, [n].
        truth: Right classes, [n].
        names: Of the classes; numbers are shown where there are none.
    """
    found = []
    for label in np.unique(truth):
        of = truth == label
        counts = paired_counts(source[of] == label, candidate[of] == label)
        interval = paired_drop_interval(counts)
        found.append((int(label), counts, interval, mcnemar_p(counts)))
    adjusted = holm([p for *_, p in found])
    lines = [
        ClassFinding(
            label=name_of(names, label),
            n=counts.n,
            source=(counts.both + counts.first_only) / counts.n,
            candidate=(counts.both + counts.second_only) / counts.n,
            drop_low=interval.low,
            drop_high=interval.high,
            p_value=p,
        )
        for (label, counts, interval, _), p in zip(found, adjusted, strict=True)
    ]
    # By what is lost for sure first, so that a class of three samples does not lead.
    lines.sort(key=lambda c: (c.p_value, c.candidate - c.source))
    return tuple(lines[:MAX_CLASSES])


def confusion(
    source: Classes, candidate: Classes, truth: Classes | None, names: Sequence[str]
) -> tuple[ConfusionFinding, ...]:
    """Return the cells of the confusion matrix that changed, the surest changes first.

    Args:
        source: Answers of the source model, [n].
        candidate: Answers of the candidate to the same samples, [n].
        truth: Right classes, [n]; the source's answers count as right where nobody knows.
        names: Of the classes.
    """
    right = source if truth is None else truth
    changed = source != candidate
    cells = {
        (int(label), int(answer))
        for answers in (source[changed], candidate[changed])
        for label, answer in zip(right[changed], answers, strict=True)
    }
    found = []
    for label, answer in sorted(cells):
        of = right == label
        before, after = source[of] == answer, candidate[of] == answer
        if before.sum() == after.sum():
            continue
        found.append(
            ConfusionFinding(
                label=name_of(names, label),
                answer=name_of(names, answer),
                n=int(of.sum()),
                source=int(before.sum()),
                candidate=int(after.sum()),
                p_value=mcnemar_p(paired_counts(before, after)),
            )
        )
    found.sort(key=lambda c: (c.p_value, -abs(c.candidate - c.source)))
    return tuple(found[:MAX_CELLS])


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def name_of(names: Sequence[str], index: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return names[index] if index < len(names) else f"class {index}"
