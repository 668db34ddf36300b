"""Which parts of an input speak for which answer, found by hiding them; models are only called.

The margin of an input is the log-odds of one answer over the other. A part's evidence is how much
the margin falls when the part is hidden: positive evidence speaks for the first answer, negative
for the other. All models see the same inputs with the same parts hidden, so that their evidence
differs by the models alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.evaluate.modality import Modality
from aid_edge.evaluate.robustness import Predict, cosines
from aid_edge.explain.parts import Hidden, hide, rise

MAX_FLIPS = 4
"""Explained at once by default: each costs up to a hundred runs of each model."""

CLOSE_CALL = 1.0
"""Log-odds under which a decision is called close: odds of less than 2.7 to 1."""

ALIKE = 0.9
"""Correlation from which two models are said to weigh an input alike."""

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Question:
    """Why this sample is answered with one class rather than another.

    Attributes:
        name: Of the sample.
        inputs: Array [1, ...] per input.
        answer: Class that positive evidence speaks for; None where outputs are no classes, and
            evidence is how far hiding a part moves the output (1 less the cosine).
        other: Class that negative evidence speaks for.
    """

    name: str
    inputs: Mapping[str, Array]
    answer: int | None
    other: int | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What each model made of one sample.

    Attributes:
        margins: Per model, of the whole input.
        parts: Per model, evidence of each part, [parts].
        evaluations: Inputs that each model was run on.
    """

    question: Question
    modality: Modality
    hidden: Hidden
    margins: dict[str, float]
    parts: dict[str, FloatArray]

    @property
    def evaluations(self) -> int:
        """Inputs that each model was run on."""
        return 1 + len(self.hidden.shares)

    def correlation(self, one: str, other: str) -> float | None:
        """Return Spearman's correlation of the evidence in two models, or None without any."""
        return spearman(self.parts[one], self.parts[other])

    def strongest(self, name: str) -> int | None:
        """Return the part that speaks most for the first answer in a model, or None."""
        found = self.parts[name]
        return int(found.argmax()) if len(found) and found.max() > 0 else None


def ask(
    questions: Sequence[Question],
    modality: Modality,
    models: Mapping[str, Predict],
    *,
    masks: int = 0,
    seed: int = 0,
) -> tuple[Evidence, ...]:
    """Return the evidence of each sample in each model; every model is called once.

    Args:
        questions: The samples, with the answers that are weighed against each other.
        modality: What their main input holds.
        models: By name.
        masks: Random masks (RISE) for images; 0 means squares one after the other.
        seed: Of random masks.
    """
    if not questions:
        return ()
    use_rise = masks > 0 and modality.kind == "image"
    hidden = [
        rise(q.inputs, modality, masks, seed) if use_rise else hide(q.inputs, modality)
        for q in questions
    ]
    whole = {
        name: np.concatenate(
            [
                a
                for q, h in zip(questions, hidden, strict=True)
                for a in (q.inputs[name], h.inputs[name])
            ]
        )
        for name in questions[0].inputs
    }
    ends = np.cumsum([1 + len(h.shares) for h in hidden])[:-1]
    answers = {
        name: [np.split(o, ends) for o in predict(whole)] for name, predict in models.items()
    }
    found = []
    for i, (question, h) in enumerate(zip(questions, hidden, strict=True)):
        margins, parts = {}, {}
        for name, outputs in answers.items():
            margin = _margins([o[i] for o in outputs], question)
            margins[name] = float(margin[0])
            parts[name] = _weighed(margin[0] - margin[1:], h)
        found.append(Evidence(question, modality, h, margins, parts))
    return tuple(found)


def spearman(one: FloatArray, other: FloatArray) -> float | None:
    """Return the rank correlation of two series, ties by their mean rank; None for constants."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: FloatArray = ((ends - counts + ends - 1) / 2)[index]
    return ranks


def _margins(outputs: Sequence[Array], question: Question) -> FloatArray:
    """Return the margin of each row of ``outputs``; the first row is the whole input."""
    if question.answer is None or question.other is None:
        first = [np.repeat(o[:1], len(o), axis=0) for o in outputs]
        return cosines(outputs, first)
    scores = log_scores(outputs[0])
    margin: FloatArray = scores[:, question.answer] - scores[:, question.other]
    return margin


def log_scores(scores: Array) -> FloatArray:
    """Return scores [n, ..., classes] whose differences are log-odds, [n, classes].

    Rows that are shares of one (softmax) get their logarithm; others are logits already.
    """
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    sums = flat.sum(axis=1)
    if flat.min() >= 0 and np.allclose(sums, 1.0, atol=0.02):
        return np.log(np.maximum(flat, 1e-6))
    return flat


def _weighed(drops: FloatArray, hidden: Hidden) -> FloatArray:
    if not len(drops):
        return np.zeros(0)
    if hidden.is_random:
        drops = drops - drops.mean()
    sums = hidden.shares.sum(axis=0)
    found: FloatArray = hidden.shares.T @ drops / np.where(sums > 0, sums, 1)
    return found


def in_words(evidence: Evidence, source: str, candidate: str, answers: tuple[str, str]) -> str:
    """Return why a sample flipped, in sentences.

    Args:
        evidence: Of both models; the first answer is the source's, the other the candidate's.
        source: Name of the source model among the evidence.
        candidate: Name of the candidate.
        answers: Names of the source's and the candidate's answers.
    """
    before, after = evidence.margins[source], evidence.margins[candidate]
    said = (
        f"The source prefers {answers[0]} to {answers[1]} with odds of {_odds(before)}; "
        f"the candidate prefers {answers[1]} with odds of {_odds(-after)}."
    )
    correlation = evidence.correlation(source, candidate)
    if correlation is None:
        return f"{said} Hiding parts tells nothing here."
    if correlation >= ALIKE:
        how = f"Both weigh the input alike (rank correlation {correlation:.2f})"
        if before < CLOSE_CALL:
            return f"{said} {how}: a close call that noise tipped."
        return f"{said} {how}, but the margin moved by {before - after:.2f} log-odds."
    change = evidence.parts[candidate] - evidence.parts[source]
    most = int(np.abs(change).argmax())
    return (
        f"{said} They weigh it differently (rank correlation {correlation:.2f}), most in: "
        f"{evidence.hidden.names[most]} (evidence {evidence.parts[source][most]:+.2f} in the "
        f"source, {evidence.parts[candidate][most]:+.2f} in the candidate)."
    )


def _odds(log_odds: float) -> str:
    odds = math.exp(min(abs(log_odds), 50.0))
    return (
        f"{odds:.2f} to 1" if odds < 10 else f"{odds:.0f} to 1" if odds < 1e4 else "over 10000 to 1"
    )
