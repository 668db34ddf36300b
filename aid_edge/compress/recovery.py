"""Training that wins back what pruning or quantization costs; the best state is kept.

Imported only in worker processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from aid_edge.compress.lesson import Lesson
from aid_edge.compress.request import CurvePoint
from aid_edge.isolate import progress

WEIGHT_DECAY = 1e-4
MAX_GRADIENT_NORM = 5.0
WARM_UP_SHARE = 0.2
"""Of all steps, until the learning rate peaks; then it falls as a cosine (OneCycle: Smith & Topin,
2018, arXiv:1708.07120)."""

PATIENCE = 8
"""Epochs without gain after which it ends: gains come late, when the learning rate falls."""

_TIMED_STEPS = frozenset({5, 20})
"""After so many steps it is planned how many fit in; the first few take longer than the others."""

_USABLE_SHARE = 0.9
"""Of the minutes, planned to be spent on steps; the rest is for measuring."""

_MIN_BATCH_FOR_NORMS = 8


@dataclass(frozen=True)
class Course:
    """How long and how fast.

    Attributes:
        epochs: At most.
        seconds: At most, by the wall clock.
        learning_rate: Peak.
        seed: Of the order of samples.
        first_epoch: Number of epochs that other courses did before.
    """

    epochs: int
    seconds: float
    learning_rate: float
    seed: int
    first_epoch: int = 0


@dataclass
class Outcome:
    """How a course went."""

    points: list[CurvePoint] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = "epochs"
    notes: list[str] = field(default_factory=list)


def train(
    student: nn.Module,
    lesson: Lesson,
    course: Course,
    after_step: Callable[[], None] | None = None,
) -> Outcome:
    """Train ``student`` in place and leave its best state in it, in evaluation mode.

    The state before any training is one of those it chooses from.

    Args:
        student: With parameters that take gradients.
        lesson: What to learn.
        course: How long.
        after_step: Called after each step, such as to keep pruned weights at zero.
    """
    return _Run(student, lesson, course, after_step or (lambda: None)).done()


class _Run:
    def __init__(
        self, student: nn.Module, lesson: Lesson, course: Course, after_step: Callable[[], None]
    ) -> None:
        self.student, self.lesson, self.course, self.after_step = (
            student, lesson, course, after_step,
        )  # fmt: skip
        self.started = time.monotonic()
        self.outcome = Outcome(best_epoch=course.first_epoch)
        parameters = [p for p in student.parameters() if p.requires_grad]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters, course.learning_rate, weight_decay=WEIGHT_DECAY
        )
        self.generator = np.random.default_rng(course.seed + 1)
        self.per_epoch = len(self._batches(lesson.learn))
        self.total = max(course.epochs * self.per_epoch, 1)
        self.step = 0
        self.best = (-math.inf, -math.inf)
        self.state: dict[str, torch.Tensor] = {}

    def done(self) -> Outcome:
        self._measure(self.course.first_epoch)
        epoch, end = self.course.first_epoch, ""
        while not end:
            end = self._epoch()
            epoch += 1
            if end == "diverged":
                break
            gained = self._measure(epoch)
            if not end:
                self._plan()
            if not gained and epoch - self.outcome.best_epoch >= PATIENCE:
                end = end or "no-gain"
        self.outcome.stopped = end
        self.student.load_state_dict(self.state)
        self.student.eval()
        self._explain()
        return self.outcome

    def _epoch(self) -> str:
        """Train on every sample once; return why training ends here, or nothing."""
        _training_mode(self.student, self.lesson)
        order = self.generator.permutation(np.asarray(self.lesson.learn)).tolist()
        for indices in self._batches(order):
            if time.monotonic() - self.started >= self.course.seconds:
                return "minutes"
            if not self._one(indices):
                return "diverged"
            if self.step >= self.total:
                planned = self.course.epochs * self.per_epoch
                return "epochs" if self.total == planned else "minutes"
        return ""

    def _batches(self, order: Sequence[int]) -> list[list[int]]:
        """Return the batches of an epoch; a last one of a single sample has no batch statistics."""
        found = list(self.lesson.feeder.batches(order, self.lesson.batch))
        return found[:-1] if len(found) > 1 and len(found[-1]) == 1 < len(found[0]) else found

    def _one(self, indices: Sequence[int]) -> bool:
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.learning_rate * _rate((self.step + 0.5) / self.total)
        loss = self.lesson.loss(self.student, indices)
        if not bool(torch.isfinite(loss)):
            return False
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.after_step()
        self.step += 1
        if self.step in _TIMED_STEPS:
            self._plan()
        if self.step % 20 == 0:
            progress(self.step / self.total, f"training, step {self.step} of {self.total}")
        return True

    def _plan(self) -> None:
        """Plan only the steps that fit into the minutes, so that the schedule comes to its end.

        Done again after each epoch: a machine is not equally busy all the time.
        """
        seconds = time.monotonic() - self.started
        measured = self.outcome.points[0].seconds
        each = max(seconds - measured, 1e-9) / max(self.step, 1)
        if len(self.outcome.points) == 1:
            each += measured / self.per_epoch  # what measuring will take at each epoch's end
        left = self.course.seconds * _USABLE_SHARE - seconds
        planned = max(self.course.epochs * self.per_epoch, 1)
        self.total = min(max(self.step + int(left / each), self.step + 1), planned)

    def _measure(self, epoch: int) -> bool:
        """Note the state after ``epoch``; return whether it is the best so far."""
        self.student.eval()
        quality, loss = self.lesson.measure(self.student)
        seconds = time.monotonic() - self.started
        self.outcome.points.append(CurvePoint(epoch, seconds, loss, quality))
        progress(min(self.step / self.total, 1.0), f"epoch {epoch}: {quality:.1%}")
        score = (quality, -loss) if math.isfinite(loss) else (-math.inf, -math.inf)
        if self.state and score <= self.best:
            return False
        self.best = score
        self.outcome.best_epoch = epoch
        self.state = {k: v.detach().clone() for k, v in self.student.state_dict().items()}
        return True

    def _explain(self) -> None:
        best, first = self.outcome.best_epoch, self.course.first_epoch
        if self.outcome.stopped == "diverged":
            self.outcome.notes.append(
                "training gave numbers that are not finite and was ended; try a lower learning rate"
            )
        elif self.step < self.per_epoch:
            self.outcome.notes.append(
                f"time was up before the first epoch was: {self.step} of {self.per_epoch} steps"
            )
        elif self.outcome.stopped == "minutes":
            minutes, epochs = self.course.seconds / 60, self.step / self.per_epoch
            self.outcome.notes.append(
                f"{minutes:.3g} minutes sufficed for {epochs:.3g} of {self.course.epochs} epochs "
                "of training; more may be better"
            )
        if best == first:
            self.outcome.notes.append("training gained nothing; the state before it was kept")


def _rate(share: float) -> float:
    """Return the learning rate as a share of its peak when ``share`` of all steps are done."""
    if share < WARM_UP_SHARE:
        return 0.1 + 0.9 * share / WARM_UP_SHARE
    falling = min((share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE), 1.0)
    return 0.5 * (1 + math.cos(math.pi * falling)) + 1e-4


def _training_mode(student: nn.Module, lesson: Lesson) -> None:
    student.train()
    feed = lesson.feeder.feed
    if feed is None and lesson.feeder.batched and lesson.batch >= _MIN_BATCH_FOR_NORMS:
        return
    # Statistics of a handful of samples are worse than those that the model came with.
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 -- base of all ranks
            module.eval()


def renew_norms(student: nn.Module, lesson: Lesson, samples: int) -> None:
    """Measure the statistics of batch norms anew: pruning changed what they see.

    Left as they are where the model takes too few samples at a time.
    """
    norms = [m for m in student.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    if not norms or lesson.feeder.feed is not None or not lesson.feeder.batched:
        return
    student.eval()
    momenta = [m.momentum for m in norms]
    for norm in norms:
        if norm.track_running_stats:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
            norm.train()
    every = max(len(lesson.learn) // samples, 1)
    with torch.no_grad():
        for indices in lesson.feeder.batches(lesson.learn[::every], lesson.batch):
            if len(indices) > 1:
                lesson.feeder.outputs(student, lesson.feeder.take(indices))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    student.eval()
