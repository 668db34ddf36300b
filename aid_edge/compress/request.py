"""What preparation is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from aid_edge.isolate import Limits
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe

Arrays = Mapping[str, NDArray[Any]]


class Labelled(Protocol):
    """Labelled data, as :class:`aid_edge.evaluate.data.DataSet` is."""

    @property
    def inputs(self) -> Arrays:
        """Array [n, ...] per input of the model."""

    @property
    def targets(self) -> Any:
        """What is right for the first output, or None; see :class:`TrainData`."""


@dataclass(frozen=True)
class TrainData:
    """Labelled data for fine-tuning.

    Attributes:
        inputs: Array [n, ...] per input of the model.
        targets: For the first output: class indices int64 [n] (0 and 1 where it has one score),
            0 and 1 int64 [n, k] for k scores, or floats of the output's shape.
        groups: What belongs together, such as crops of one photo; None where nothing does.
    """

    inputs: Arrays
    targets: Any
    groups: Sequence[str] | None = None


@dataclass(frozen=True)
class PrepareRequest:
    """What :func:`aid_edge.compress.prepare` is asked for.

    Attributes:
        model: The original; also the teacher.
        recipe: Of which ``prune``, ``recover`` and ``seed`` are carried out.
        out: Folder for the prepared model; made if missing.
        calibration: Unlabelled inputs [n, ...]; :class:`aid_edge.samples.Samples` are read batch
            by batch. Needed to distil and for sensitivity.
        train: Labelled data; needed to fine-tune and for QAT.
        limits: Of the worker process; time includes ``recover.minutes``.
        checks: A few inputs on which the file that is written must compute what was trained; else
            the first of ``calibration`` or ``train``.
        groups: What belongs together in ``calibration``; a group is held out as a whole.
    """

    model: SourceModel
    recipe: Recipe
    out: Path
    calibration: Arrays | None = None
    train: Labelled | None = None
    limits: Limits = field(default_factory=Limits)
    checks: Arrays | None = None
    groups: Sequence[str] | None = None


@dataclass(frozen=True)
class CurvePoint:
    """One epoch of recovery; epoch 0 is the state before any training.

    Attributes:
        seconds: Since recovery began.
        loss: On held-out samples.
        quality: On held-out samples; see :attr:`Training.quality`.
    """

    epoch: int
    seconds: float
    loss: float
    quality: float


@dataclass(frozen=True)
class Training:
    """What pruning and recovery did to the source model.

    Attributes:
        method: Title of the recovery, such as ``distilled``; ``none`` when there was none.
        quality: What the curve's quality is, such as ``agreement with the source``.
        points: The learning curve; empty without recovery.
        best_epoch: The state that was kept; 0 is the one before any training.
        stopped: Why it ended: ``epochs``, ``minutes``, ``no-gain``, ``diverged`` or ``none``.
        macs_before: Multiply-accumulates of convolutions and matrix products for one sample.
        parameters_before: Trained values; zeros of unstructured pruning count.
        notes: What the reader must know, such as layers that could not be pruned.
    """

    method: str
    quality: str
    points: tuple[CurvePoint, ...]
    best_epoch: int
    stopped: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A source model that was pruned, trained or both.

    Attributes:
        model: A ``.pt2`` file with the original's inputs, outputs, card and batch.
        training: How it was made.
    """

    model: SourceModel
    training: Training
