"""What recovery learns and how well: losses and held-out quality, for any kind of output.

Imported only in worker processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from aid_edge.errors import DataError
from aid_edge.model import SourceModel

Kind = Literal["logits", "probabilities", "values", "other"]
"""What an output is: scores of classes before or after softmax (last axis), numbers, or integers
and the like that cannot be learned."""

TargetKind = Literal["classes", "binary", "multi-label", "values"]

TEMPERATURE = 2.0
"""Softens both distributions; between 1 and 4 it makes little difference here (Hinton et al., 2015,
arXiv:1503.02531, section 2)."""

_SUM_TOLERANCE = 1e-3
_TINY = 1e-8

Outputs = Sequence[torch.Tensor]


def kinds_of(model: SourceModel, outputs: Outputs) -> tuple[Kind, ...]:
    """Return what each of the original's outputs is.

    Args:
        model: A card with the task ``classification`` makes the first output scores of classes.
        outputs: The original's, on some samples.
    """
    classifies = model.card is not None and model.card.task == "classification"
    return tuple(_kind(t, classifies and i == 0) for i, t in enumerate(outputs))


def _kind(output: torch.Tensor, classifies: bool) -> Kind:
    if not output.is_floating_point():
        return "other"
    if output.dim() < 2 or output.shape[-1] < 2:
        return "values"
    sums = output.sum(-1)
    if float(output.min()) >= -_SUM_TOLERANCE and bool(((sums - 1).abs() < _SUM_TOLERANCE).all()):
        return "probabilities"
    return "logits" if classifies else "values"


@dataclass(frozen=True)
class Measured:
    """Sums over held-out samples, of which quality and loss are made."""

    loss: float = 0.0
    samples: int = 0
    right: float = 0.0
    asked: float = 0.0
    error: float = 0.0

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.loss + other.loss, self.samples + other.samples, self.right + other.right,
            self.asked + other.asked, self.error + other.error,
        )  # fmt: skip


@dataclass(frozen=True)
class Imitation:
    """The original's outputs are what is right.

    Attributes:
        kinds: Of the outputs.
        variances: Of the original's outputs, so that each weighs the same whatever its unit.
    """

    kinds: tuple[Kind, ...]
    variances: tuple[float, ...]

    @classmethod
    def of(cls, model: SourceModel, outputs: Outputs) -> Imitation:
        """Return the objective for a model whose original gives ``outputs`` on some samples.

        Raises:
            DataError: None of them can be learned.
        """
        kinds = kinds_of(model, outputs)
        if all(kind == "other" for kind in kinds):
            raise DataError("the model has no output of floats, so nothing can be learned from it")
        variances = tuple(
            max(float(t.float().var(unbiased=False)), _TINY) if k == "values" else 1.0
            for t, k in zip(outputs, kinds, strict=True)
        )
        return cls(kinds, variances)

    @property
    def is_choice(self) -> bool:
        """Whether an output chooses among classes."""
        return any(kind in {"logits", "probabilities"} for kind in self.kinds)

    @property
    def quality(self) -> str:
        """What held-out quality is called."""
        if self.is_choice:
            return "agreement with the source"
        return "share of the source's variance that is reproduced"

    def loss(self, got: Outputs, want: Outputs) -> torch.Tensor:
        """Return the distance of the student's outputs from the original's, per sample.

        Kullback-Leibler of softened distributions where classes are chosen, else the squared
        error as a share of the variance.
        """
        total = torch.zeros(())
        for a, b, kind, variance in zip(got, want, self.kinds, self.variances, strict=True):
            if kind == "values":
                total = total + functional.mse_loss(a, b) / variance
            elif kind != "other":
                p, q = (functional.log_softmax(_scores(t, kind) / TEMPERATURE, -1) for t in (a, b))
                distance = functional.kl_div(p, q, log_target=True, reduction="none").sum(-1)
                total = total + distance.mean() * TEMPERATURE**2
        return total

    def measure(self, got: Outputs, want: Outputs) -> Measured:
        """Return the sums of one held-out batch."""
        n = len(want[0])
        right = asked = error = 0.0
        for a, b, kind, variance in zip(got, want, self.kinds, self.variances, strict=True):
            if kind == "values":
                error += float(functional.mse_loss(a, b)) / variance / len(self.kinds) * n
            elif kind != "other":
                same = a.argmax(-1) == b.argmax(-1)
                right, asked = right + float(same.sum()), asked + same.numel()
        return Measured(float(self.loss(got, want)) * n, n, right, asked, error)

    def summed_up(self, sums: Measured) -> float:
        """Return the quality, 0 to 1."""
        if self.is_choice:
            return sums.right / max(sums.asked, 1.0)
        return min(max(1 - sums.error / max(sums.samples, 1), 0.0), 1.0)


@dataclass(frozen=True)
class Labels:
    """Labels are what is right for the first output.

    Attributes:
        kind: What they are.
        output: What the first output is.
        variance: Of float targets.
    """

    kind: TargetKind
    output: Kind
    variance: float = 1.0

    @classmethod
    def of(cls, targets: torch.Tensor, output: torch.Tensor, kind: Kind) -> Labels:
        """Return the objective for ``targets`` [n, ...] of a first output [m, ...].

        Raises:
            DataError: They do not fit the output.
        """
        if kind == "other":
            raise DataError("the first output of the model is no float; labels cannot train it")
        shape, width = list(output.shape[1:]), output[0].numel() if len(output) else 0
        if targets.is_floating_point():
            if not bool(torch.isfinite(targets).all()):
                raise DataError("training labels hold NaN or infinity")
            if targets[0].numel() != width:
                raise DataError(f"training labels are {list(targets.shape[1:])} per sample; the "
                                f"first output is {shape}")  # fmt: skip
            variance = max(float(targets.float().var(unbiased=False)), _TINY)
            return cls("values", kind, variance)
        if targets.dim() == 1:
            classes = 2 if width == 1 else width  # one score: yes or no
            if output.dim() != 2 and width != 1:
                raise DataError(f"one class per sample does not fit an output of shape {shape}")
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= classes:
                raise DataError(f"training labels are {low} to {high}; the model has {classes} "
                                "classes, counted from 0")  # fmt: skip
            if width == 1:
                return cls("binary", kind)
            return cls("classes", "probabilities" if kind == "probabilities" else "logits")
        if list(targets.shape[1:]) != shape or not bool(((targets == 0) | (targets == 1)).all()):
            raise DataError(
                f"training labels are {list(targets.shape[1:])} integers per sample; wanted is one "
                f"class, or zeros and ones of the first output's shape {shape}"
            )
        return cls("multi-label", kind)

    @property
    def quality(self) -> str:
        """What held-out quality is called."""
        if self.kind == "values":
            return "share of the labels' variance that is explained"
        return "accuracy"

    def loss(self, got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the first output ``got`` for labels ``want``."""
        if self.kind == "classes":
            return functional.cross_entropy(_scores(got, self.output), want)
        flat = got.reshape(want.shape)
        if self.kind == "values":
            return functional.mse_loss(flat, want.to(flat.dtype)) / self.variance
        if bool(((flat >= 0) & (flat <= 1)).all()):
            probable = flat.clamp(_TINY, 1 - _TINY)
            return functional.binary_cross_entropy(probable, want.to(flat.dtype))
        return functional.binary_cross_entropy_with_logits(flat, want.to(flat.dtype))

    def measure(self, got: torch.Tensor, want: torch.Tensor) -> Measured:
        """Return the sums of one held-out batch."""
        n = len(want)
        right = asked = error = 0.0
        if self.kind == "values":
            error = float(functional.mse_loss(got.reshape(want.shape), want.to(got.dtype)))
            error *= n / self.variance
        elif self.kind == "classes":
            right, asked = float((got.argmax(-1) == want).sum()), float(n)
        else:
            flat = got.reshape(want.shape)
            # Probabilities are yes from a half on, scores from zero on.
            border = 0.5 if bool(((flat >= 0) & (flat <= 1)).all()) else 0.0
            right, asked = float(((flat > border) == (want > 0)).sum()), float(want.numel())
        return Measured(float(self.loss(got, want)) * n, n, right, asked, error)

    def summed_up(self, sums: Measured) -> float:
        """Return the quality, 0 to 1."""
        if self.kind == "values":
            return min(max(1 - sums.error / max(sums.samples, 1), 0.0), 1.0)
        return sums.right / max(sums.asked, 1.0)


def difference(got: Outputs, want: Outputs, imitation: Imitation) -> float:
    """Return how far ``got`` is from the original's outputs; infinite where it is not finite."""
    found = float(imitation.loss(got, want))
    return found if found == found and found != float("inf") else float("inf")  # noqa: PLR0124


def _scores(output: torch.Tensor, kind: Kind) -> torch.Tensor:
    return output.clamp_min(_TINY).log() if kind == "probabilities" else output
