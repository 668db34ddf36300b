"""What a student is taught with: batches of inputs, the original's answers and labels.

Imported only in worker processes. Inputs are read batch by batch: memory stays flat in their
number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aid_edge.compress.objectives import Imitation, Labels, Measured
from aid_edge.compress.preparation import count_of
from aid_edge.compress.request import Arrays
from aid_edge.errors import DataError, SourceError, first_line
from aid_edge.model import SourceModel
from aid_edge.samples import Samples
from aid_edge.sources.torch_source import Flat

HELD_OUT_SHARE = 0.1
MAX_HELD_OUT = 2048
MIN_HELD_OUT = 16
DISTILLED_SHARE = 0.5
"""Of the loss when there are labels too: the original's answers say more than a label."""

MAX_ANSWERS_BYTES = 256 * 2**20
"""Of the original's answers that are kept; larger ones are computed again each epoch."""

BATCH = 64
LARGE_BATCH = 128
_LARGE = 8192


class Feeder:
    """Runs modules on picked samples, however many of them the model takes at a time."""

    def __init__(self, model: SourceModel, inputs: Arrays, feed: int | None = None) -> None:
        """Take the samples in.

        Args:
            model: Whose inputs they are.
            inputs: Array [n, ...] per input.
            feed: Samples at a time, where that is fixed; else what the model says.
        """
        self.names = tuple(i.name for i in model.inputs)
        self.inputs = inputs
        self.count = count_of(inputs)
        self.batched = model.batched
        # None: any number.
        self.feed = feed or (None if model.has_dynamic_batch else self._fixed(model))

    def _fixed(self, model: SourceModel) -> int:
        sizes = [i.shape[0] for i in model.inputs if i.shape and i.shape[0] > 0]
        return sizes[0] if model.batched and sizes else 1

    def take(self, indices: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Return the inputs of some samples, in the model's order."""
        if isinstance(self.inputs, Samples):
            # Mapped anew each time: pages that stay mapped would count as resident memory.
            found = self.inputs.take(indices)
        else:
            found = {n: np.array(np.asarray(self.inputs[n])[list(indices)]) for n in self.names}
        return tuple(torch.from_numpy(np.ascontiguousarray(found[n])) for n in self.names)

    def outputs(self, module: nn.Module, tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Return the outputs [n, ...] of ``module``.

        Raises:
            SourceError: It fails.
        """
        flat, n = Flat(module), len(tensors[0])
        try:
            if not self.batched:
                rows = [flat(*(t[i] for t in tensors)) for i in range(n)]
                return [torch.stack(column) for column in zip(*rows, strict=True)]
            if self.feed is None:
                return list(flat(*tensors))
            parts = [
                flat(*(t[i : i + self.feed] for t in tensors))
                for i in range(0, n - n % self.feed or n, self.feed)
            ]
            return [torch.cat(column) for column in zip(*parts, strict=True)]
        except RuntimeError as e:
            raise SourceError(f"the model fails on {n} samples: {first_line(e)}") from e

    def batches(self, indices: Sequence[int], size: int) -> Iterator[list[int]]:
        """Yield ``indices`` by ``size``; what does not fill a fixed feed is left out."""
        unit = self.feed or 1
        size = max(size - size % unit, unit)
        usable = len(indices) - len(indices) % unit
        for start in range(0, usable, size):
            yield list(indices[start : min(start + size, usable)])

    def split(
        self, generator: np.random.Generator, groups: Sequence[str] | None = None
    ) -> tuple[list[int], list[int]]:
        """Return the samples to learn from and those held out, drawn by ``generator``.

        A group is held out as a whole, unless that would take more than half of all samples.
        """
        order = [int(i) for i in generator.permutation(self.count)]
        held = min(max(round(self.count * HELD_OUT_SHARE), MIN_HELD_OUT), MAX_HELD_OUT)
        unit = self.feed or 1
        held = min(max(held - held % unit, unit), self.count // 2)
        if groups is not None:
            place = {name: i for i, name in enumerate(dict.fromkeys(groups[i] for i in order))}
            together = sorted(order, key=lambda i: place[groups[i]])
            end = held
            while end < self.count and groups[together[end]] == groups[together[end - 1]]:
                end += 1
            if end <= self.count // 2:
                order, held = together, end
        return sorted(order[held:]), sorted(order[:held])


@dataclass
class Lesson:
    """One course: whom to imitate on which samples, and the labels where there are any.

    Attributes:
        feeder: All samples.
        teacher: The original.
        imitation: How its answers are learned.
        labels: How labels are learned.
        targets: The labels, of all samples.
        learn: Samples that are learned from.
        held: Samples that quality is measured on.
        answers: The original's, as far as they are known.
        answered: For which samples they are.
    """

    feeder: Feeder
    teacher: nn.Module
    imitation: Imitation
    labels: Labels | None = None
    targets: torch.Tensor | None = None
    learn: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    answers: list[torch.Tensor] = field(default_factory=list)
    answered: torch.Tensor | None = None

    @property
    def quality(self) -> str:
        """What held-out quality is called."""
        return self.imitation.quality if self.labels is None else self.labels.quality

    @property
    def batch(self) -> int:
        """Samples of one step."""
        return (
            LARGE_BATCH if len(self.learn) >= _LARGE else min(BATCH, max(len(self.learn) // 4, 1))
        )

    def loss(self, student: nn.Module, indices: Sequence[int]) -> torch.Tensor:
        """Return the loss of one step, with its gradients."""
        tensors = self.feeder.take(indices)
        want = self._wanted(indices, tensors)
        got = self.feeder.outputs(student, tensors)
        imitated = self.imitation.loss(got, want)
        if self.labels is None or self.targets is None:
            return imitated
        labelled = self.labels.loss(got[0], self.targets[list(indices)])
        return DISTILLED_SHARE * imitated + (1 - DISTILLED_SHARE) * labelled

    def measure(self, student: nn.Module) -> tuple[float, float]:
        """Return the held-out quality and loss of ``student``, which is in evaluation mode."""
        sums = Measured()
        with torch.no_grad():
            for indices in self.feeder.batches(self.held, LARGE_BATCH):
                tensors = self.feeder.take(indices)
                got = self.feeder.outputs(student, tensors)
                if self.labels is not None and self.targets is not None:
                    sums += self.labels.measure(got[0], self.targets[list(indices)])
                else:
                    sums += self.imitation.measure(got, self._wanted(indices, tensors))
        judge = self.imitation if self.labels is None else self.labels
        return judge.summed_up(sums), sums.loss / max(sums.samples, 1)

    def _wanted(
        self, indices: Sequence[int], tensors: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        """Return the original's answers; it is asked once for each sample where they are small."""
        where = torch.as_tensor(list(indices))
        if self.answered is not None and bool(self.answered[where].all()):
            return [known[where] for known in self.answers]
        with torch.no_grad():
            want = self.feeder.outputs(self.teacher, tensors)
        if self.answered is None:
            sample_bytes = sum(t[0].numel() * t.element_size() for t in want)
            if sample_bytes * self.feeder.count > MAX_ANSWERS_BYTES:
                return want
            self.answers = [t.new_zeros((self.feeder.count, *t.shape[1:])) for t in want]
            self.answered = torch.zeros(self.feeder.count, dtype=torch.bool)
        for known, new in zip(self.answers, want, strict=True):
            known[where] = new
        self.answered[where] = True
        return want


def lesson_of(
    model: SourceModel,
    teacher: nn.Module,
    feeder: Feeder,
    targets: Any,
    seed: int,
    *,
    groups: Sequence[str] | None = None,
) -> Lesson:
    """Return the course on the samples of ``feeder``.

    Args:
        model: The original.
        teacher: It as a module, in evaluation mode.
        feeder: The samples.
        targets: What is right for each, as :class:`aid_edge.compress.TrainData` has it; None
            without labels.
        seed: Of the split.
        groups: What belongs together among the samples.

    Raises:
        DataError: Labels do not fit, or the original gives no finite numbers.
    """
    learn, held = feeder.split(np.random.default_rng(seed), groups)
    some = next(feeder.batches(held, LARGE_BATCH))
    with torch.no_grad():
        outputs = feeder.outputs(teacher, feeder.take(some))
    if not all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point()):
        raise DataError("the source model gives numbers that are not finite on this data")
    imitation = Imitation.of(model, outputs)
    if targets is None:
        return Lesson(feeder, teacher, imitation, learn=learn, held=held)
    tensor = _tensor(targets, feeder.count)
    labels = Labels.of(tensor, outputs[0], imitation.kinds[0])
    if labels.kind == "classes" and imitation.kinds[0] == "values":
        # Labels say what the card does not: the output is scores of classes.
        imitation = Imitation(("logits", *imitation.kinds[1:]), (1.0, *imitation.variances[1:]))
    return Lesson(feeder, teacher, imitation, labels, tensor, learn, held)


def _tensor(targets: Any, count: int) -> torch.Tensor:
    if isinstance(targets, tuple):
        raise DataError(
            "training labels are sequences of ids, which fine-tuning does not support",
            hint="Distil instead: it needs no labels.",
        )
    array: NDArray[Any] = np.asarray(targets)
    if array.dtype.kind not in "iubf":
        raise DataError(f"training labels are {array.dtype}; wanted are numbers")
    if array.ndim == 0 or len(array) != count:
        found = len(array) if array.ndim else 0
        raise DataError(f"there are {found} training labels for {count} samples")
    floats = array.dtype.kind == "f"
    return torch.from_numpy(np.ascontiguousarray(array, np.float32 if floats else np.int64))
