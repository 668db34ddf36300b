"""The arithmetic of task metrics; each returns a figure per sample, or a function of weights.

Weights [n] say how often each sample counts, which is how a bootstrap draws. With weights of 1 the
figures are scikit-learn's; tests hold them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.errors import DataError, MissingDependencyError
from aid_edge.evaluate.data.targets import PADDING
from aid_edge.outcome import cosines

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Score = Callable[[FloatArray], float]


# --- classes -----------------------------------------------------------------------------------


def top_k(scores: Array, labels: Array, k: int) -> FloatArray:
    """Return 1 where the right class is among the ``k`` best scores, else 0.

    Ties count for the class with the lower index. One score per sample tells two classes apart at
    :func:`threshold`.

    Args:
        scores: [n, ..., classes], flattened.
        labels: Right classes, [n].
        k: How many answers count.
    """
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    if flat.shape[1] == 1:
        return np.asarray((flat[:, 0] > threshold(flat)) == (labels > 0), np.float64)
    own = flat[np.arange(len(flat)), labels][:, None]
    earlier = np.arange(flat.shape[1])[None] < labels[:, None]
    better = (flat > own).sum(axis=1) + ((flat == own) & earlier).sum(axis=1)
    return np.asarray(better < k, np.float64)


def threshold(scores: Array) -> float:
    """Return where yes begins: 0.5 for probabilities, 0 for scores before a sigmoid."""
    return 0.5 if scores.size and scores.min() >= 0 and scores.max() <= 1 else 0.0


def f1(scores: Array, targets: Array) -> Score:
    """Return the macro F1: over classes that are right or answered for some sample.

    Args:
        scores: [n, classes], or [n, 1] for two classes.
        targets: Classes [n], or several labels [n, classes].
    """
    truth, answers = _binary(scores, targets)
    both, only_answers, only_truth = truth & answers, answers & ~truth, truth & ~answers

    def of(weights: FloatArray) -> float:
        hits, wrong, missed = (weights @ m for m in (both, only_answers, only_truth))
        size = 2 * hits + wrong + missed
        seen = size > 0
        return float(np.mean(2 * hits[seen] / size[seen])) if seen.any() else 0.0

    return of


def average_precision(scores: Array, targets: Array) -> Score:
    """Return the mean over classes of average precision; classes nobody has are left out.

    Per class the sum over thresholds of precision times the recall gained (Manning, Raghavan and
    Schuetze 2008, "Introduction to Information Retrieval", section 8.4), without interpolation.
    """
    return _over_classes(scores, targets, _one_average_precision)


def auc(scores: Array, targets: Array) -> Score:
    """Return the area under the ROC curve, mean over classes, each against the rest.

    The share of pairs of a sample of the class and one of the rest that are in the right order,
    ties by half (Hanley and McNeil 1982, Radiology 143:29). Classes that all or no samples have
    are left out.
    """
    return _over_classes(scores, targets, _one_auc)


def _one_average_precision(place: Array, truth: Array, count: int) -> Score:
    def of(weights: FloatArray) -> float:
        # Thresholds from the highest score down.
        hits = np.cumsum(np.bincount(place, weights * truth, count)[::-1])
        taken = np.cumsum(np.bincount(place, weights, count)[::-1])
        if hits[-1] <= 0:
            return float("nan")
        precision = hits / np.maximum(taken, 1e-300)
        return float(np.sum(np.diff(hits, prepend=0) * precision) / hits[-1])

    return of


def _one_auc(place: Array, truth: Array, count: int) -> Score:
    def of(weights: FloatArray) -> float:
        yes = np.bincount(place, weights * truth, count)
        no = np.bincount(place, weights * ~truth, count)
        pairs = yes.sum() * no.sum()
        if pairs <= 0:
            return float("nan")
        return float(np.sum(yes * (np.cumsum(no) - no / 2)) / pairs)

    return of


def _over_classes(
    scores: Array, targets: Array, one: Callable[[Array, Array, int], Score]
) -> Score:
    truth = _indicator(targets, scores)
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    parts = []
    for c in np.flatnonzero(truth.any(axis=0)):
        values, place = np.unique(flat[:, c], return_inverse=True)
        parts.append(one(place, truth[:, c], len(values)))
    if not parts:
        raise DataError("no sample has any of the classes")

    def of(weights: FloatArray) -> float:
        figures = [part(weights) for part in parts]
        known = [f for f in figures if not np.isnan(f)]
        return float(np.mean(known)) if known else float("nan")

    return of


def _indicator(targets: Array, scores: Array) -> npt.NDArray[np.bool_]:
    """Return targets as [n, classes]; one column, class 1, where there is one score."""
    if targets.ndim == 2:
        return targets.astype(bool)
    width = scores.reshape(len(scores), -1).shape[1]
    if width == 1:
        return (targets > 0)[:, None]
    return np.asarray(targets[:, None] == np.arange(width))


def _binary(scores: Array, targets: Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    truth = _indicator(targets, scores)
    if targets.ndim == 2:
        return truth, flat > threshold(flat)
    if flat.shape[1] == 1:
        # Both classes count.
        answers = flat > threshold(flat)
        return np.hstack([~truth, truth]), np.hstack([~answers, answers])
    return truth, flat.argmax(axis=1)[:, None] == np.arange(flat.shape[1])


# --- values ------------------------------------------------------------------------------------


def _pair(values: Array, targets: Array) -> tuple[FloatArray, FloatArray]:
    a = values.reshape(len(values), -1).astype(np.float64)
    b = np.asarray(targets).reshape(len(targets), -1).astype(np.float64)
    if a.shape != b.shape:
        raise DataError(f"an answer has {a.shape[1]} values, what is right for it has {b.shape[1]}")
    return a, b


def squared_error(values: Array, targets: Array) -> FloatArray:
    """Return the mean squared error of each sample, [n]."""
    a, b = _pair(values, targets)
    return np.asarray(np.mean((a - b) ** 2, axis=1))


def absolute_error(values: Array, targets: Array) -> FloatArray:
    """Return the mean absolute error of each sample, [n]."""
    a, b = _pair(values, targets)
    return np.asarray(np.mean(np.abs(a - b), axis=1))


def relative_error(values: Array, targets: Array) -> FloatArray:
    """Return the length of the error over the length of what is right, per sample, [n]."""
    a, b = _pair(values, targets)
    length = np.linalg.norm(b, axis=1)
    error = np.linalg.norm(a - b, axis=1)
    # Where zero is right, nothing but zero is: the error then counts as it is.
    return np.asarray(error / np.where(length > 0, length, 1.0))


def cosine(values: Array, targets: Array) -> FloatArray:
    """Return the cosine of the angle between answer and what is right, per sample, [n]."""
    a, b = _pair(values, targets)
    return cosines(b, a)


def r2(values: Array, targets: Array) -> Score:
    """Return the share of variance explained, mean over the values of an answer."""
    a, b = _pair(values, targets)
    errors, squares = (a - b) ** 2, b**2

    def of(weights: FloatArray) -> float:
        total = weights.sum()
        spread = weights @ squares - (weights @ b) ** 2 / total
        left = weights @ errors
        constant = spread <= 1e-12 * np.maximum(weights @ squares, 1e-300)
        if constant.all():
            return float("nan")
        return float(np.mean(1 - left[~constant] / spread[~constant]))

    return of


# --- sequences ---------------------------------------------------------------------------------


def decode(outputs: Array, blank: int) -> list[list[int]]:
    """Return the sequence of ids of each sample.

    Whole numbers [n, t] are ids already, filled up with ``PADDING``. Scores [n, t, symbols] are
    decoded greedily: the best symbol of each step, repeats taken together, blanks left out (Graves
    et al. 2006, "Connectionist temporal classification", ICML, section 3.2).

    Args:
        outputs: First output of the model.
        blank: Id of the blank; -1 is the last symbol.
    """
    if outputs.ndim == 2 and outputs.dtype.kind in "iu":
        return [[int(i) for i in row if i != PADDING] for row in outputs]
    if outputs.ndim != 3:
        raise DataError(
            f"error rates take ids [n, t] or scores [n, t, symbols]; the output is "
            f"{outputs.dtype} {list(outputs.shape)}"
        )
    empty = outputs.shape[2] - 1 if blank == -1 else blank
    found = []
    for best in outputs.argmax(axis=2):
        kept = best[np.append(True, best[1:] != best[:-1])]
        found.append([int(i) for i in kept if i != empty])
    return found


def edits(
    answers: Sequence[Sequence[int]], targets: Sequence[Array], space: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return how many symbols must be changed, and how many are right, per sample, each [n].

    Args:
        answers: Ids of each answer.
        targets: Ids of what is right.
        space: Id that parts words: these are compared then, not single ids.
    """
    try:
        from rapidfuzz.distance import Levenshtein  # noqa: PLC0415 -- only error rates need it
    except ModuleNotFoundError as e:
        raise MissingDependencyError("error rates of words", "rapidfuzz", "convert") from e
    wrong, length = [], []
    for answer, target in zip(answers, targets, strict=True):
        said, right = _words(answer, space), _words([int(i) for i in target], space)
        wrong.append(Levenshtein.distance(right, said))
        length.append(len(right))
    return np.array(wrong, np.float64), np.array(length, np.float64)


def _words(ids: Sequence[int], space: int | None) -> list[tuple[int, ...]]:
    if space is None:
        return [(i,) for i in ids]
    words: list[list[int]] = [[]]
    for i in ids:
        if i == space:
            words.append([])
        else:
            words[-1].append(i)
    return [tuple(word) for word in words if word]
