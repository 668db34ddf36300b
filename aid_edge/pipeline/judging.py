"""How good a candidate's answers are, on some or on all of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from aid_edge.errors import ConversionError
from aid_edge.evaluate.data import DataSet
from aid_edge.evaluate.metrics import check, metric
from aid_edge.model import SourceModel
from aid_edge.pipeline.findings import Candidate, Flip, PlacementFinding
from aid_edge.pipeline.flips import MAX_FLIPS, find_flips
from aid_edge.pipeline.jobs import run_all
from aid_edge.pipeline.measure import (
    accuracy_finding,
    fidelity_finding,
    in_order,
    quality_figures,
    size_figures,
)
from aid_edge.pipeline.quality import metric_findings
from aid_edge.pipeline.search.halving import rounds, shuffled
from aid_edge.pipeline.steps import Inputs, StepLog, Steps
from aid_edge.runner import ConversionResult

Array = npt.NDArray[Any]
Told = Callable[[float, str], None]


@dataclass(frozen=True)
class Subject:
    """What is converted and on which data it is judged.

    Attributes:
        evaluation: Labelled data, or None.
        fidelity: What outputs are compared on; may be the evaluation data.
        classification: Whether the first output holds scores of classes.
        train: Labelled data for fine-tuning, or None.
        metric: Task metric that decides instead of top-1, or None.
    """

    model: SourceModel
    calibration: DataSet | None
    evaluation: DataSet | None
    fidelity: DataSet
    classification: bool
    train: DataSet | None = None
    metric: str | None = None

    @property
    def inputs(self) -> Inputs:
        """What candidates are made with."""
        return Inputs(self.calibration, self.fidelity, self.train)

    @property
    def judging(self) -> list[DataSet]:
        """The data that candidates answer; once where evaluation and fidelity are the same."""
        both = [self.evaluation, self.fidelity]
        return list({d.digest: d for d in both if d is not None}.values())


@dataclass
class Judge:
    """Compares candidates with the source model on one subject.

    Round by round it looks at more samples (:mod:`aid_edge.pipeline.search.halving`); what was
    answered before is not asked again.
    """

    steps: Steps
    subject: Subject
    seed: int
    _source: dict[str, list[Array]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the source's answers, which lie in the cache."""
        return {**vars(self), "_source": {}}

    @property
    def looks(self) -> int:
        """How often candidates are looked at, at most."""
        return max(len(rounds(len(d))) for d in self.subject.judging)

    def samples(self, look: int) -> tuple[int, int]:
        """Return how many samples of the largest data set ``look`` takes, and how many it has."""
        largest = max(self.subject.judging, key=len)
        sizes = rounds(len(largest))
        return sizes[min(look, len(sizes) - 1)], len(largest)

    def run_source(self, told: Told, jobs: int) -> None:
        """Run the source model on all data that candidates are compared on.

        Raises:
            HostError: It cannot be run.
            ConversionError: Its outputs are not finite.
        """
        data = self.subject.judging
        work = [partial(self.steps.source_outputs, self.subject.model, d, told) for d in data]
        for one, outputs in zip(data, run_all(work, jobs), strict=True):
            arrays = in_order(self.subject.model.outputs, outputs)
            if not all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f"):
                raise ConversionError(
                    f"the source model gives NaN or infinity on {one.spec}",
                    hint="Check its weights and the preprocessing of the data.",
                )
            self._source[one.digest] = arrays

    def check_metric(self) -> None:
        """Return if the source model can be judged by the metric that decides, where one does.

        Raises:
            DataError: It cannot; nor could any candidate.
        """
        subject = self.subject
        data = subject.evaluation or subject.fidelity
        if subject.metric is not None:
            check(metric(subject.metric), self.source(data), data.targets, kind=data.kind)

    def source(self, data: DataSet) -> list[Array]:
        """Return the source's answers on ``data``, one array [n, ...] per output."""
        if data.digest not in self._source:
            with StepLog():  # done before any candidate; a worker elsewhere only reads it
                found = self.steps.source_outputs(self.subject.model, data, _silent)
            self._source[data.digest] = in_order(self.subject.model.outputs, found)
        return self._source[data.digest]

    def judge(
        self, candidate: Candidate, result: ConversionResult, look: int, told: Told
    ) -> Candidate:
        """Return ``candidate`` with sizes, and with its quality on the data of ``look``.

        What cannot be run here has no quality, and says so.

        Raises:
            HostError: It cannot be run.
            ConversionError: Its answers are not finite or of other shapes.
        """
        sized = self._sized(candidate, result)
        if not result.executed:
            return sized
        subject = self.subject
        answers, parts = {}, {}
        for data in subject.judging:
            chosen = self._chosen(data, look)
            raw = self.answers(result, data, told, look)
            answers[data.digest] = in_order(subject.model.outputs, raw)
            parts[data.digest] = data if chosen is None else part_of(data, chosen)
        fidelity = subject.fidelity
        close = fidelity_finding(
            self._before(fidelity, self._chosen(fidelity, look)), answers[fidelity.digest],
            parts[fidelity.digest], classification=subject.classification, seed=self.seed,
        )  # fmt: skip
        accuracy = None
        data = subject.evaluation or fidelity
        before = self._before(data, self._chosen(data, look))
        part = parts[data.digest]
        if subject.classification and data.labels is not None:
            accuracy = accuracy_finding(before[0], answers[data.digest][0], part)
        metrics = metric_findings(subject.metric, before, answers[data.digest], part, self.seed)
        flips: tuple[Flip, ...] = ()
        if subject.classification and look >= self.looks - 1:
            flips = self._flips(answers)
        return msgspec.structs.replace(
            sized,
            measurements=(*sized.measurements, *quality_figures(accuracy, close, metrics)),
            accuracy=accuracy,
            metrics=metrics,
            fidelity=close,
            flips=flips,
        )

    def answers(
        self, result: ConversionResult, data: DataSet, told: Told, look: int | None = None
    ) -> dict[str, Array]:
        """Return an artifact's answers in the order of the data: of a look, or all of them."""
        sizes = rounds(len(data))
        if len(sizes) == 1:
            return self.steps.outputs(result, data, told)
        last = len(sizes) - 1 if look is None else min(look, len(sizes) - 1)
        order = shuffled(len(data), data.groups, self.seed)
        slices = [
            sorted(order[start:end])
            for start, end in zip((0, *sizes), sizes[: last + 1], strict=False)
        ]
        found = [self.steps.outputs(result, data, told, chosen) for chosen in slices]
        places = np.argsort([i for chosen in slices for i in chosen], kind="stable")
        return {name: np.concatenate([part[name] for part in found])[places] for name in found[0]}

    def _chosen(self, data: DataSet, look: int) -> list[int] | None:
        """Return the samples of ``look`` in the order of the data; None means all."""
        sizes = rounds(len(data))
        if look >= len(sizes) - 1:
            return None
        return sorted(shuffled(len(data), data.groups, self.seed)[: sizes[look]])

    def _before(self, data: DataSet, chosen: Sequence[int] | None) -> list[Array]:
        whole = self.source(data)
        return whole if chosen is None else [a[list(chosen)] for a in whole]

    def _flips(self, answers: dict[str, list[Array]]) -> tuple[Flip, ...]:
        card = self.subject.model.card
        labels = card.labels if card is not None else ()
        found = [
            flip
            for data in self.subject.judging
            for flip in find_flips(self.source(data)[0], answers[data.digest][0], data, labels)
        ]
        return tuple(found[: 2 * MAX_FLIPS])

    def _sized(self, candidate: Candidate, result: ConversionResult) -> Candidate:
        return msgspec.structs.replace(
            candidate,
            runtime_version=result.runtime_version,
            digest=result.digest,
            executed=result.executed,
            measurements=(*size_figures(result.artifact), *result.figures),
            placement=PlacementFinding(
                integer=result.placement.integer,
                floating=result.placement.floating,
                operators=dict(result.placement.operators),
            ),
            seconds=result.seconds,
            conversion_peak_bytes=result.peak_rss_bytes,
            tools=dict(result.tools),
            notes=tuple(result.notes),
        )


def part_of(data: DataSet, chosen: Sequence[int]) -> DataSet:
    """Return what is known of some samples; without their inputs."""

    def some(values: Sequence[Any] | None) -> Any:
        return None if values is None else tuple(values[i] for i in chosen)

    return replace(
        data,
        inputs={},
        targets=data.targets_of(chosen),
        groups=some(data.groups),
        names=some(data.names),
        images=some(data.images),
        sample_digests=some(data.sample_digests),
    )


def _silent(share: float, text: str) -> None:
    """Take progress and say nothing."""
