"""Makes candidates: converts, runs and benchmarks them, and keeps what they answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from aid_edge.errors import (
    ConversionError,
    HostError,
    MissingDependencyError,
    StepCrashedError,
    UnsupportedModelError,
)
from aid_edge.evaluate.data import DataSet
from aid_edge.model import SourceModel
from aid_edge.pipeline.search.space import Plan
from aid_edge.pipeline.findings import Candidate, Flip, PlacementFinding, Refusal
from aid_edge.pipeline.flips import MAX_FLIPS, find_flips
from aid_edge.pipeline.jobs import run_all
from aid_edge.pipeline.measure import (
    Host,
    accuracy_finding,
    fidelity_finding,
    in_order,
    quality_figures,
    run_figures,
    size_figures,
)
from aid_edge.pipeline.request import Progress
from aid_edge.pipeline.steps import Steps
from aid_edge.runner import Benchmark, ConversionResult
from device_agent.contract.profile import HardwareProfile

BENCHMARK_TURNS = 2
"""All candidates are measured in turn, this often, so that a busy moment of the host hits all."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """What is converted and on which data it is judged.

    Attributes:
        evaluation: Labelled data, or None.
        fidelity: What outputs are compared on; may be the evaluation data.
        classification: Whether the first output holds scores of classes.
    """

    model: SourceModel
    calibration: DataSet | None
    evaluation: DataSet | None
    fidelity: DataSet
    classification: bool


@dataclass(frozen=True)
class Made:
    """A candidate that converted.

    Attributes:
        outputs: What it answered on the fidelity data, [n, ...] per output of the artifact.
    """

    plan: Plan
    candidate: Candidate
    result: ConversionResult
    outputs: dict[str, Array]


@dataclass
class Maker:
    """Carries out plans on one subject."""

    steps: Steps
    subject: Subject
    host: Host
    seed: int
    jobs: int = 1
    _source: dict[str, list[Array]] = field(default_factory=dict)

    def run_source(self, on_progress: Callable[[float, str], None]) -> None:
        """Run the source model on all data that candidates are compared on.

        Raises:
            HostError: It cannot be run.
            ConversionError: Its outputs are not finite.
        """
        model = self.subject.model
        judging = self._judging_data()
        work = [partial(self.steps.source_outputs, model, d, on_progress) for d in judging]
        for data, outputs in zip(judging, run_all(work, self.jobs), strict=True):
            arrays = in_order(model.outputs, outputs)
            if not all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f"):
                raise ConversionError(
                    f"the source model gives NaN or infinity on {data.spec}",
                    hint="Check its weights and the preprocessing of the data.",
                )
            self._source[data.digest] = arrays

    def make(
        self, planned: Plan, profile: HardwareProfile, on_progress: Progress
    ) -> Made | Candidate:
        """Return the made candidate, or the candidate with why it could not be made.

        Raises:
            MissingDependencyError: What the converter needs is not installed.
        """
        task = f"{profile.id} {planned.id}"

        def told(start: float, width: float) -> Callable[[float, str], None]:
            return lambda share, what: on_progress(task, start + width * share, what)

        on_progress(task, 0.0, "converting")
        empty = describe(planned)
        try:
            result = self.steps.convert(
                self.subject.model, planned, profile,
                (self.subject.calibration, self.subject.fidelity), told(0.0, 0.6),
            )  # fmt: skip
            made = self._measured(planned, result, told)
        except MissingDependencyError:
            raise
        except HostError as e:
            on_progress(task, 1.0, f"failed: {e.code}")
            return msgspec.structs.replace(empty, outcome=_refusal(e))
        on_progress(task, 1.0, "done")
        return made

    def benchmark(
        self, made: Sequence[tuple[HardwareProfile, Made]], on_progress: Progress
    ) -> list[Made]:
        """Return the candidates with latency and memory, measured in turn.

        One that cannot be measured gets an outcome that says why, and is not chosen.
        """
        found: list[list[Benchmark]] = [[] for _ in made]
        failed: dict[int, HostError] = {}
        total = BENCHMARK_TURNS * len(made)
        for turn in range(BENCHMARK_TURNS):
            for i, (profile, one) in enumerate(made):
                if i in failed:
                    continue
                share = (turn * len(made) + i) / total
                on_progress("benchmark", share, f"{profile.id} {one.plan.id}")
                runtime = profile.runtime(one.plan.runtime)
                threads = 1 if runtime is None else runtime.threads
                try:
                    measured = self.steps.benchmark(
                        one.result, self.subject.fidelity, threads, turn=turn, host=self.host.title
                    )
                except StepCrashedError as e:
                    failed[i] = e
                else:
                    found[i].append(measured)
        on_progress("benchmark", 1.0, "done")
        return [
            self._with_run(profile, one, found[i]) if i not in failed else _lost(one, failed[i])
            for i, (profile, one) in enumerate(made)
        ]

    def _judging_data(self) -> list[DataSet]:
        both = [self.subject.evaluation, self.subject.fidelity]
        return list({d.digest: d for d in both if d is not None}.values())

    def _measured(
        self,
        planned: Plan,
        result: ConversionResult,
        told: Callable[[float, float], Callable[[float, str], None]],
    ) -> Made:
        subject = self.subject
        told(0.6, 0.4)(0.0, "comparing with the source")
        raw = {
            d.digest: self.steps.outputs(result, d, told(0.6, 0.4)) for d in self._judging_data()
        }
        answers = {key: in_order(subject.model.outputs, found) for key, found in raw.items()}
        fidelity = subject.fidelity
        close = fidelity_finding(
            self._source[fidelity.digest], answers[fidelity.digest], fidelity,
            classification=subject.classification, seed=self.seed,
        )  # fmt: skip
        accuracy = None
        flips: tuple[Flip, ...] = ()
        labels = subject.model.card.labels if subject.model.card is not None else ()
        if subject.evaluation is not None:
            digest = subject.evaluation.digest
            before, after = self._source[digest][0], answers[digest][0]
            accuracy = accuracy_finding(before, after, subject.evaluation)
        if subject.classification:
            flips = tuple(
                flip
                for data in self._judging_data()
                for flip in find_flips(
                    self._source[data.digest][0], answers[data.digest][0], data, labels
                )
            )[: 2 * MAX_FLIPS]
        candidate = msgspec.structs.replace(
            describe(planned),
            runtime_version=result.runtime_version,
            digest=result.digest,
            measurements=(*size_figures(result.artifact), *quality_figures(accuracy, close)),
            accuracy=accuracy,
            fidelity=close,
            flips=flips,
            placement=PlacementFinding(
                integer=result.placement.integer,
                floating=result.placement.floating,
                operators=dict(result.placement.operators),
            ),
            seconds=result.seconds,
            conversion_peak_bytes=result.peak_rss_bytes,
            tools=dict(result.tools),
        )
        return Made(planned, candidate, result, raw[fidelity.digest])

    def _with_run(
        self, profile: HardwareProfile, made: Made, benchmarks: Sequence[Benchmark]
    ) -> Made:
        figures = (*made.candidate.measurements, *run_figures(benchmarks, profile, self.host))
        candidate = msgspec.structs.replace(made.candidate, measurements=figures)
        return Made(made.plan, candidate, made.result, made.outputs)


def _lost(made: Made, error: HostError) -> Made:
    candidate = msgspec.structs.replace(made.candidate, outcome=_refusal(error))
    return Made(made.plan, candidate, made.result, made.outputs)


def _refusal(error: HostError) -> Refusal:
    cause = f": {error.cause}" if error.cause else ""
    return Refusal(code=error.code, text=f"{error}{cause}")


def describe(planned: Plan) -> Candidate:
    """Return the candidate of a plan before anything is known of it."""
    return Candidate(
        id=planned.id,
        runtime=planned.runtime,
        recipe=planned.recipe.title,
        recipe_key=planned.recipe.key,
        compressed=planned.recipe.is_compressed,
    )


def refused(planned: Plan, error: UnsupportedModelError) -> Candidate:
    """Return the candidate that a converter refused before any work, with its reasons."""
    text = f"{error}: {'; '.join(error.reasons)}"
    return msgspec.structs.replace(describe(planned), outcome=Refusal(code=error.code, text=text))
