"""Makes candidates: prepares, converts, judges and benchmarks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from aid_edge.errors import (
    DataError,
    HostError,
    MissingDependencyError,
    StepCrashedError,
    UnsupportedModelError,
)
from aid_edge.pipeline.findings import Candidate, Refusal, StepFinding, TrainingFinding
from aid_edge.pipeline.judging import Judge
from aid_edge.pipeline.measure import Host, run_figures
from aid_edge.pipeline.request import Progress
from aid_edge.pipeline.search.space import Plan
from aid_edge.pipeline.steps import StepLog, Steps
from aid_edge.recipe import Recipe
from aid_edge.runner import Benchmark, ConversionResult
from device_agent.contract.profile import HardwareProfile

BENCHMARK_TURNS = 2
"""All candidates are measured in turn, this often, so that a busy moment of the host hits all."""

MIN_DISTILL_INPUTS = 64
"""Fewer inputs are learned by heart: a net of some thousand parameters fits them all."""


@dataclass(frozen=True)
class Made:
    """A candidate that converted.

    Attributes:
        taken: What its steps took, by their identity; see :class:`StepLog`.
    """

    plan: Plan
    candidate: Candidate
    result: ConversionResult
    taken: tuple[tuple[str, StepFinding], ...] = ()

    def changed(self, **fields: object) -> Made:
        """Return it with other findings."""
        return replace(self, candidate=msgspec.structs.replace(self.candidate, **fields))


@dataclass
class Maker:
    """Carries out plans on one subject; can be sent to another process as it is."""

    steps: Steps
    judge: Judge
    host: Host

    def make(
        self, planned: Plan, profile: HardwareProfile, on_progress: Progress | None = None
    ) -> Made | Candidate:
        """Return the made candidate, or the candidate with why it could not be made.

        Raises:
            MissingDependencyError: What the converter needs is not installed.
        """
        told = _Told(f"{profile.id} {planned.id}", on_progress)
        told.whole(0.0, "converting")
        empty = describe(planned)
        try:
            with StepLog() as log:
                result, training = self._converted(planned, profile, told)
                candidate = msgspec.structs.replace(empty, training=training)
                told.whole(0.6, "comparing with the source")
                candidate = self.judge.judge(candidate, result, 0, told.part(0.6, 0.4))
        except MissingDependencyError:
            raise
        except HostError as e:
            told.whole(1.0, f"failed: {e.code}")
            return msgspec.structs.replace(empty, outcome=_refusal(e))
        told.whole(1.0, "done")
        return Made(planned, candidate, result, tuple(log.taken))

    def look(self, made: Made, number: int) -> Made:
        """Return a candidate judged on more data, or with an outcome that says why it was not."""
        try:
            with StepLog() as log:
                found = self.judge.judge(made.candidate, made.result, number, _silent)
        except HostError as e:
            return made.changed(outcome=_refusal(e))
        return replace(made, candidate=found, taken=(*made.taken, *log.taken))

    def benchmark(
        self, made: Sequence[tuple[HardwareProfile, Made]], on_progress: Progress
    ) -> list[Made]:
        """Return the candidates with latency and memory, measured in turn.

        One that cannot be measured gets an outcome that says why, and is not chosen.
        """
        found: list[list[Benchmark]] = [[] for _ in made]
        logs = [StepLog() for _ in made]
        failed: dict[int, HostError] = {}
        total = BENCHMARK_TURNS * len(made)
        fidelity = self.judge.subject.fidelity
        for turn in range(BENCHMARK_TURNS):
            for i, (profile, one) in enumerate(made):
                if i in failed or not one.result.executed:
                    continue
                share = (turn * len(made) + i) / total
                on_progress("benchmark", share, f"{profile.id} {one.plan.id}")
                runtime = profile.runtime(one.plan.runtime)
                threads = 1 if runtime is None else runtime.threads
                try:
                    with logs[i]:
                        measured = self.steps.benchmark(
                            one.result, fidelity, threads, turn=turn, host=self.host.title
                        )
                except StepCrashedError as e:
                    failed[i] = e
                else:
                    found[i].append(measured)
        on_progress("benchmark", 1.0, "done")
        return [
            one.changed(outcome=_refusal(failed[i]))
            if i in failed
            else self._with_run(profile, one, found[i], logs[i])
            for i, (profile, one) in enumerate(made)
        ]

    def _converted(
        self, planned: Plan, profile: HardwareProfile, told: _Told
    ) -> tuple[ConversionResult, TrainingFinding | None]:
        subject = self.judge.subject
        model, training = subject.model, None
        if planned.recipe.is_prepared:
            told.whole(0.0, "pruning and recovering")
            _check_data(planned.recipe, subject.calibration)
            model, training = self.steps.prepare(
                model, planned.recipe, subject.inputs, told.part(0.0, 0.4)
            )
            self.steps.converters[planned.runtime].check(model, profile)
        width = 0.2 if planned.recipe.is_prepared else 0.6
        result = self.steps.convert(
            model, planned, profile, subject.inputs, told.part(0.6 - width, width)
        )
        return result, training

    def _with_run(
        self, profile: HardwareProfile, made: Made, benchmarks: Sequence[Benchmark], log: StepLog
    ) -> Made:
        if not benchmarks:
            return made
        figures = (*made.candidate.measurements, *run_figures(benchmarks, profile, self.host))
        return replace(made.changed(measurements=figures), taken=(*made.taken, *log.taken))


class _Told:
    """Tells of one task, the parts of which each go from 0 to 1."""

    def __init__(self, task: str, on_progress: Progress | None) -> None:
        self._task, self._on_progress = task, on_progress

    def whole(self, share: float, what: str) -> None:
        if self._on_progress is not None:
            self._on_progress(self._task, share, what)

    def part(self, start: float, width: float) -> Callable[[float, str], None]:
        return lambda share, what: self.whole(start + width * share, what)


def _check_data(recipe: Recipe, calibration: object) -> None:
    distills = recipe.recover is not None and recipe.recover.method == "distill"
    count = 0 if calibration is None else len(calibration)  # type: ignore[arg-type]
    if distills and count < MIN_DISTILL_INPUTS:
        raise DataError(
            f"{count} calibration inputs are too few to distil on; {MIN_DISTILL_INPUTS} are wanted",
            hint="Give more real inputs with --calibration; they need no labels.",
        )


def _silent(share: float, text: str) -> None:
    """Take progress and say nothing."""


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
