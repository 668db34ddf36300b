"""How source and candidates bear real-life conditions: quality on the same spoiled inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.evaluate import accuracy
from aid_edge.evaluate.conditions import SEVERITIES, apply, samples_for, suited
from aid_edge.evaluate.modality import Modality
from aid_edge.evaluate.statistics import Interval, bootstrap

MAX_CALL_BYTES = 128 * 2**20
"""Spoiled inputs that exist at once; a model is asked once for all that fit."""

CLEAN = "none"
"""Name of the condition of inputs as they are, severity 0."""

Array = npt.NDArray[Any]
Predict = Callable[[dict[str, Array]], Sequence[Array]]
"""Answers of a model to inputs [n, ...] by name: array [n, ...] per output, in its order."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class Judged:
    """What answers under bad conditions are judged on.

    Attributes:
        inputs: Real samples, array [n, ...] per input, as the source model takes them.
        modality: What the main input holds.
        labels: Right classes, int64 [n]; None where nobody knows.
        groups: Cluster of each sample, or None when samples are independent.
        classification: Whether the first output holds scores of classes.
        seed: Of all random choices.
    """

    inputs: Mapping[str, Array]
    modality: Modality
    labels: npt.NDArray[np.int64] | None = None
    groups: Sequence[str] | None = None
    classification: bool = True
    seed: int = 0


@dataclass(frozen=True)
class ConditionResult:
    """Quality of source and candidate on the same spoiled inputs.

    Attributes:
        condition: Name, or ``CLEAN``.
        title: For people.
        severity: 1 to 5; 0 for clean inputs.
        metric: What ``source`` and ``candidate`` are.
        drop: Paired 95 % interval of ``source - candidate``; None where it has none.
    """

    condition: str
    title: str
    severity: int
    metric: str
    n: int
    source: float
    candidate: float
    drop: Interval | None


def measure(
    judged: Judged,
    source: Predict,
    candidates: Mapping[str, Predict],
    *,
    severities: Sequence[int] = SEVERITIES,
    most: int | None = None,
    on_progress: Progress = lambda _share, _what: None,
) -> dict[str, tuple[ConditionResult, ...]]:
    """Return how source and candidates bear each condition that suits the data.

    Quality is top-1 accuracy where there are labels; else agreement with the source's own answers
    to the clean inputs; and for outputs that are no classes the cosine to those.

    Args:
        judged: The samples; at most ``samples_for`` of them are used, evenly spaced.
        source: The source model.
        candidates: By name.
        severities: Which of the five.
        most: At most so many samples, where models are slow.
        on_progress: Told the share that is done, and what is being done.

    Returns:
        Per candidate the clean inputs first, then one result per condition and severity.
    """
    judged = _some_of(judged, most)
    cells = [(CLEAN, 0)] + [(c.name, s) for c in suited(judged.modality) for s in severities]
    models = {"": source, **candidates}
    answers: dict[str, list[tuple[tuple[str, int], list[Array]]]] = {name: [] for name in models}
    done = 0
    for part in _calls(cells, judged):
        spoiled = [_spoiled(cell, judged) for cell in part]
        joined = {name: np.concatenate([s[name] for s in spoiled]) for name in judged.inputs}
        for i, (name, predict) in enumerate(models.items()):
            on_progress((done + i * len(part) / len(models)) / len(cells), part[0][0])
            outputs = [np.split(o, len(part)) for o in predict(joined)]
            answers[name] += [(cell, [o[k] for o in outputs]) for k, cell in enumerate(part)]
        done += len(part)
    clean = answers[""][0][1]
    return {
        name: tuple(
            _result(cell, before, after, clean, judged)
            for (cell, before), (_, after) in zip(answers[""], answers[name], strict=True)
        )
        for name in candidates
    }


def _some_of(judged: Judged, most: int | None) -> Judged:
    main = judged.inputs[judged.modality.input]
    count = samples_for(len(main), main[0].size)
    count = count if most is None else min(count, most)
    picked = [i * len(main) // count for i in range(count)]
    return Judged(
        {name: array[picked] for name, array in judged.inputs.items()},
        judged.modality,
        None if judged.labels is None else judged.labels[picked],
        None if judged.groups is None else [judged.groups[i] for i in picked],
        judged.classification,
        judged.seed,
    )


def _calls(cells: Sequence[tuple[str, int]], judged: Judged) -> Iterator[Sequence[tuple[str, int]]]:
    size = max(1, MAX_CALL_BYTES // sum(a.nbytes for a in judged.inputs.values()))
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def _spoiled(cell: tuple[str, int], judged: Judged) -> dict[str, Array]:
    if cell[0] == CLEAN:
        return dict(judged.inputs)
    return apply(*cell, judged.inputs, judged.modality, judged.seed)


def _result(
    cell: tuple[str, int],
    before: Sequence[Array],
    after: Sequence[Array],
    clean: Sequence[Array],
    judged: Judged,
) -> ConditionResult:
    name, severity = cell
    titles = {c.name: c.title for c in suited(judged.modality)}
    found = (name, titles.get(name, "as they are"), severity)
    if judged.classification:
        labelled = judged.labels is not None
        truth = judged.labels if judged.labels is not None else accuracy.top1(clean[0])
        paired = accuracy.compare(before[0], after[0], truth, judged.groups)
        return ConditionResult(
            *found, "top-1" if labelled else "agreement with the source on clean inputs",
            paired.n, paired.source, paired.candidate, paired.drop_interval,
        )  # fmt: skip
    one, other = cosines(before, clean), cosines(after, clean)
    columns = np.stack([one - other, np.ones(len(one))], axis=1)
    interval = bootstrap(columns, judged.groups, lambda s: s[:, 0] / s[:, 1], seed=judged.seed)
    return ConditionResult(
        *found, "cosine to the source on clean inputs", len(one), float(one.mean()),
        float(other.mean()), interval,
    )  # fmt: skip


def cosines(outputs: Sequence[Array], others: Sequence[Array]) -> npt.NDArray[np.float64]:
    """Return the cosine of each sample's outputs to its other outputs, all outputs joined: [n]."""
    a = np.concatenate([o.reshape(len(o), -1).astype(np.float64) for o in outputs], axis=1)
    b = np.concatenate([o.reshape(len(o), -1).astype(np.float64) for o in others], axis=1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: npt.NDArray[np.float64] = np.where(
        lengths > 0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1), (a == b).all(axis=1)
    )
    return found
