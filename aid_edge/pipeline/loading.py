"""Loads all data of a conversion and looks whether they can be meant, before any work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aid_edge.compress import refusal_of
from aid_edge.errors import DataError, UsageError
from aid_edge.evaluate.concerns import concerns
from aid_edge.evaluate.data import DataSet, load, refuse_overlap
from aid_edge.evaluate.data.opening import RANDOM
from aid_edge.model import SourceModel
from aid_edge.pipeline.findings import DataFinding
from aid_edge.pipeline.judging import Subject
from aid_edge.pipeline.quality import metric_for
from aid_edge.pipeline.request import ConvertRequest
from aid_edge.pipeline.search.driver import Planned
from aid_edge.pipeline.search.space import Plan
from aid_edge.recipe import MAX_CALIBRATION_SAMPLES, MAX_RECOVERY_SAMPLES


@dataclass
class Loader:
    """Loads data sets for one model.

    Attributes:
        shared: Folder that other machines see as well, or None: samples are put there.
        notes: What the reader of the report must know of the data.
    """

    request: ConvertRequest
    model: SourceModel
    shared: Path | None = None
    notes: list[str] = field(default_factory=list)
    _read_data: dict[str, DataSet] = field(default_factory=dict)

    def load(self, planned: Sequence[Planned]) -> Subject:
        """Return what is converted with all its data.

        Raises:
            DataError: Data are missing, do not fit, or overlap.
            UsageError: There is nothing to judge on.
        """
        request = self.request
        if request.recovery_minutes and (reason := refusal_of(self.model)):
            self.notes.append(f"Nothing is pruned or trained: {reason}.")
        calibration = self._calibration(planned)
        evaluation = fidelity = None
        if request.evaluation is not None:
            evaluation = self._read("evaluation", request.evaluation, labelled=True)
        if request.fidelity is not None:
            fidelity = self._read("fidelity", request.fidelity)
        fidelity = fidelity or evaluation
        if fidelity is None:
            raise UsageError("nothing to judge candidates on")
        train = None
        if request.train is not None:
            train = self._read("training", request.train, labelled=True)
        for role, other in (("evaluation", evaluation), ("fidelity", fidelity)):
            if other is not None:
                self._check_overlap(calibration, other, role)
                self._check_overlap(train, other, role)
        is_classifier = _is_classification(self.model, evaluation)
        judged = evaluation or fidelity
        metric = metric_for(request.metric, judged, classification=is_classifier)
        return Subject(self.model, calibration, evaluation, fidelity, is_classifier, train, metric)

    def say(self, preprocessing: Callable[[SourceModel, DataSet], str]) -> None:
        """Note what makes the data doubtful, once the source model has run on them.

        Args:
            preprocessing: Returns what the usual faults of preprocessing would explain.
        """
        for role, data in self._read_data.items():
            if data.is_random:
                continue  # said already
            self.notes += [f"{role} data: {text}" for text in concerns(data, self.model)]
        judged = self._read_data.get("evaluation") or self._read_data.get("fidelity")
        if judged is not None and (text := preprocessing(self.model, judged)):
            self.notes.append(text)

    def _calibration(self, planned: Sequence[Planned]) -> DataSet | None:
        spec = self.request.calibration
        needing = [p for one in planned for p in one.plans if p.recipe.needs_calibration]
        if needing and spec is None:
            raise DataError(
                f"{needing[0].id} needs calibration data, and none are given",
                hint="Give real inputs with --calibration; they need no labels.",
            )
        if not needing or spec is None:
            return None
        data = self._read("calibration", spec, limit=_most_calibration(needing, spec))
        if data.is_random:
            self.notes.append(
                "Calibrated on random data: ranges, and what was learned from them, mean nothing "
                "for real inputs. The release is marked; do not deploy it for its answers."
            )
        return data

    def _read(
        self, role: str, spec: str, *, labelled: bool = False, limit: int | None = None
    ) -> DataSet:
        folder = None if self.shared is None else self.shared / role
        data = load(
            spec, self.model, labelled=labelled, folder=folder, seed=self.request.seed,
            limit=limit, allow_random=role == "calibration",
        )  # fmt: skip
        self._read_data[role] = data
        return data

    def _check_overlap(self, made_with: DataSet | None, other: DataSet, role: str) -> None:
        if made_with is None:
            return
        if not self.request.allow_overlap:
            refuse_overlap(made_with, other, role)
            return
        with contextlib.suppress(DataError):
            refuse_overlap(made_with, other, role)
            return
        seen = set(made_with.sample_digests)
        shared = sum(digest in seen for digest in other.sample_digests)
        self.notes.append(
            f"{shared} of {len(other)} samples of the {role} data were also used to make the "
            "candidates (allowed by --allow-overlap): figures on them flatter."
        )


def _most_calibration(needing: Sequence[Plan], spec: str) -> int:
    """Return how many inputs are read: distillation takes all, quantization picks some of them."""
    recovers = [p.recipe.recover for p in needing]
    distills = any(r is not None and r.method == "distill" for r in recovers)
    return MAX_RECOVERY_SAMPLES if distills and spec != RANDOM else MAX_CALIBRATION_SAMPLES


def data_findings(subject: Subject) -> tuple[DataFinding, ...]:
    """Return the data that were used, for the report."""
    roles: list[
        tuple[Literal["calibration", "evaluation", "fidelity", "training"], DataSet | None]
    ] = [
        ("calibration", subject.calibration),
        ("evaluation", subject.evaluation),
        ("fidelity", subject.fidelity),
        ("training", subject.train),
    ]
    return tuple(
        DataFinding(
            role=role,
            spec=data.spec,
            n=len(data),
            units=data.clusters,
            labelled=data.targets is not None,
            digest=data.digest,
            random=data.is_random,
        )
        for role, data in roles
        if data is not None
    )


def _is_classification(model: SourceModel, evaluation: DataSet | None) -> bool:
    if model.card is not None and model.card.task == "classification":
        return True
    if evaluation is None or evaluation.labels is None:
        return False
    shape = model.outputs[0].shape
    # One score per sample has no arg-max; a task metric judges it.
    return bool(shape) and shape[-1] != 1
