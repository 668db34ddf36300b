"""A closer look at the chosen candidate and its float baseline: who pays, where, and why.

Only these two are looked into, since it costs up to some thousand runs of each and of the source;
slow models are looked into on fewer samples and one severity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.errors import HostError
from aid_edge.evaluate.accuracy import top1
from aid_edge.evaluate.conditions import SEVERITIES, suited
from aid_edge.evaluate.data import DataSet
from aid_edge.evaluate.modality import Modality, detect
from aid_edge.evaluate.robustness import ConditionResult, Judged, Predict, measure
from aid_edge.explain.evidence import MAX_FLIPS, Evidence, Question, ask, in_words
from aid_edge.explain.pictures import heat, picture
from aid_edge.pipeline import harm
from aid_edge.pipeline.findings import ConditionFinding, ExplanationFinding, PartFinding
from aid_edge.pipeline.making import Made, Maker
from aid_edge.pipeline.measure import in_order
from aid_edge.runner import ConversionResult

SHOWN_PARTS = 8

CONDITIONS_S = 60.0
"""What the runs under bad conditions may take, for all models of a profile together."""

MIDDLE_SEVERITY = 3
"""Of the five, what is measured where there is no time for the others."""

_FEW, _FEWEST, _MOST = 32, 16, 256
"""Samples per condition: under ``_FEW`` severities are given up first, under ``_FEWEST`` none."""

Array = npt.NDArray[Any]
Told = Callable[[float, str], None]


def _silent(_share: float, _what: str) -> None:
    """Take progress and say nothing."""


def looked_into(
    maker: Maker, made: Sequence[Made], chosen: str | None, told: Told = _silent
) -> tuple[Made, ...]:
    """Return the candidates; the chosen one and its float baseline with what a closer look found.

    A look that fails is a note of the candidate, and fails nothing else.

    Args:
        maker: Of the candidates.
        made: All candidates of one profile.
        chosen: Id of the chosen one; None looks into nothing.
        told: Told how far it is.
    """
    best = next((m for m in made if m.plan.id == chosen and m.result.executed), None)
    if best is None:
        return tuple(made)
    pair = {best.plan.id: best}
    for one in made:
        if not one.candidate.compressed and one.plan.runtime == best.plan.runtime:
            pair.setdefault(one.plan.id, one)
    looked = {name: _with_harm(maker, one) for name, one in pair.items()}
    try:
        looked = _with_conditions(maker, looked, told)
        looked[best.plan.id] = _with_explanations(maker, looked[best.plan.id])
    except HostError as e:
        worse = looked[best.plan.id]
        said = f"It could not be looked into further: {e}"
        looked[best.plan.id] = worse.changed(notes=(*worse.candidate.notes, said))
    return tuple(looked.get(m.plan.id, m) for m in made)


def _data(maker: Maker) -> DataSet:
    subject = maker.judge.subject
    return subject.evaluation or subject.fidelity


def _names(maker: Maker) -> tuple[str, ...]:
    card = maker.judge.subject.model.card
    return card.labels if card is not None else ()


def _modality(maker: Maker) -> Modality | None:
    card = maker.judge.subject.model.card
    return detect(_data(maker).inputs, card.preprocess if card is not None else ())


def _answers(maker: Maker, made: Made, data: DataSet) -> list[Array]:
    raw = maker.judge.answers(made.result, data, _silent)
    return in_order(maker.judge.subject.model.outputs, raw)


def _with_harm(maker: Maker, made: Made) -> Made:
    data = _data(maker)
    if not maker.judge.subject.classification:
        return made
    before = top1(maker.judge.source(data)[0])
    after = top1(_answers(maker, made, data)[0])
    if data.labels is not None and len(data.labels) != len(before):
        return made  # a class per frame or token, not per sample
    names = _names(maker)
    classes = () if data.labels is None else harm.classes(before, after, data.labels, names)
    return made.changed(
        classes=classes, confusion=harm.confusion(before, after, data.labels, names)
    )


# --- conditions ----------------------------------------------------------------------------------


def _with_conditions(maker: Maker, made: dict[str, Made], told: Told) -> dict[str, Made]:
    modality, data = _modality(maker), _data(maker)
    if modality is None:
        return made
    subject = maker.judge.subject
    judged = Judged(
        data.inputs, modality, data.labels, data.groups, subject.classification, maker.judge.seed
    )
    conditions = len(suited(modality))
    severities, most = bounded(
        conditions, [m.candidate.value("latency_p50") for m in made.values()]
    )
    found = measure(
        judged,
        _of_source(maker, data),
        {name: _of_artifact(maker, one.result, data) for name, one in made.items()},
        severities=severities,
        most=most,
        on_progress=told,
    )
    return {
        name: one.changed(conditions=tuple(_condition(r) for r in found[name]))
        for name, one in made.items()
    }


def bounded(
    conditions: int, latencies_s: Sequence[float | None]
) -> tuple[tuple[int, ...], int | None]:
    """Return the severities and the most samples that ``CONDITIONS_S`` is enough for.

    Args:
        conditions: How many there are.
        latencies_s: Of each artifact; None where it was not measured.
    """
    known = [s for s in latencies_s if s is not None]
    if not known:
        return SEVERITIES, None
    # The source runs without optimization: it takes twice as long as the slowest artifact, or so.
    all_s = 2 * max(known) + sum(known)
    most = int(CONDITIONS_S / (all_s * (1 + conditions * len(SEVERITIES))))
    if most >= _FEW:
        return SEVERITIES, _stepped(most)
    return (MIDDLE_SEVERITY,), _stepped(int(CONDITIONS_S / (all_s * (1 + conditions))))


def _stepped(samples: int) -> int:
    # In powers of two: another run with other latencies mostly asks for the same, which is cached.
    return min(_MOST, max(_FEWEST, 1 << max(0, samples.bit_length() - 1)))


def _condition(found: ConditionResult) -> ConditionFinding:
    return ConditionFinding(
        condition=found.title,
        severity=found.severity,
        metric=found.metric,
        n=found.n,
        source=found.source,
        candidate=found.candidate,
        drop_low=None if found.drop is None else found.drop.low,
        drop_high=None if found.drop is None else found.drop.high,
    )


def _of_source(maker: Maker, data: DataSet) -> Predict:
    model = maker.judge.subject.model

    def predict(inputs: dict[str, Array]) -> list[Array]:
        outputs = maker.steps.source_outputs(model, _made_up(data, inputs), _silent)
        return in_order(model.outputs, outputs)

    return predict


def _of_artifact(maker: Maker, result: ConversionResult, data: DataSet) -> Predict:
    def predict(inputs: dict[str, Array]) -> list[Array]:
        outputs = maker.steps.outputs(result, _made_up(data, inputs), _silent)
        return in_order(maker.judge.subject.model.outputs, outputs)

    return predict


def _made_up(data: DataSet, inputs: Mapping[str, Array]) -> DataSet:
    """Return inputs that we made ourselves as a data set: its digest is over what they hold."""
    digest = hashlib.sha256(b"made up")
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    n = len(next(iter(inputs.values())))
    return replace(
        data,
        inputs=dict(inputs),
        targets=None,
        groups=None,
        images=None,
        names=tuple(f"#{i}" for i in range(n)),
        digest=f"sha256:{digest.hexdigest()}",
        sample_digests=(),
    )


# --- explanations --------------------------------------------------------------------------------


def _with_explanations(maker: Maker, made: Made) -> Made:
    modality, data = _modality(maker), _data(maker)
    if modality is None or not made.candidate.compressed:
        return made
    if not maker.judge.subject.classification:
        return made
    before = top1(maker.judge.source(data)[0])
    after = top1(_answers(maker, made, data)[0])
    flipped = np.flatnonzero(before != after)
    if data.labels is not None and len(data.labels) == len(before):
        # What the candidate lost first.
        flipped = flipped[np.argsort(before[flipped] != data.labels[flipped], kind="stable")]
    picked = [int(i) for i in flipped[:MAX_FLIPS]]
    questions = [
        Question(data.names[i], data.take([i]), int(before[i]), int(after[i])) for i in picked
    ]
    models = {
        "source": _of_source(maker, data),
        "candidate": _of_artifact(maker, made.result, data),
    }
    found = ask(questions, modality, models, seed=maker.judge.seed)
    explain = partial(_explanation, data=data, names=_names(maker))
    return made.changed(
        explanations=tuple(explain(e, i) for e, i in zip(found, picked, strict=True))
    )


def _explanation(
    found: Evidence, index: int, *, data: DataSet, names: Sequence[str]
) -> ExplanationFinding:
    question, modality = found.question, found.modality
    answers = (
        harm.name_of(names, question.answer or 0),
        harm.name_of(names, question.other or 0),
    )
    before, after = found.parts["source"], found.parts["candidate"]
    largest = max((float(np.abs(p).max()) for p in (before, after) if len(p)), default=0.0)
    shown = picture(question.inputs[modality.input][0], modality, gray=True)
    strongest = np.argsort(-np.maximum(np.abs(before), np.abs(after)), kind="stable")
    return ExplanationFinding(
        sample=question.name,
        kind=modality.kind,
        label="" if data.labels is None else harm.name_of(names, int(data.labels[index])),
        source_answer=answers[0],
        candidate_answer=answers[1],
        method=found.hidden.method,
        evaluations=found.evaluations,
        source_margin=found.margins["source"],
        candidate_margin=found.margins["candidate"],
        correlation=found.correlation("source", "candidate"),
        summary=in_words(found, "source", "candidate", answers),
        parts=()
        if modality.kind == "image"
        else tuple(
            PartFinding(
                name=found.hidden.names[i], source=float(before[i]), candidate=float(after[i])
            )
            for i in strongest[:SHOWN_PARTS]
        ),
        picture=shown,
        source_map=heat(before, found.hidden.grid, largest) if shown else "",
        candidate_map=heat(after, found.hidden.grid, largest) if shown else "",
    )
