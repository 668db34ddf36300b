"""Prunes and trains a model and writes it as a ``.pt2`` file. For worker processes only."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aid_edge.compress import recovery, structured, unstructured
from aid_edge.compress.lesson import Feeder, Lesson, lesson_of
from aid_edge.compress.objectives import difference
from aid_edge.compress.preparation import Job
from aid_edge.compress.recovery import Course, Outcome
from aid_edge.compress.request import Arrays, Training
from aid_edge.compress.simulated_int8 import Simulation, fold_norms, rounded_name
from aid_edge.errors import ConversionError, UnsupportedModelError, first_line
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.recipe import Recover, Structured, Unstructured
from aid_edge.sources import bridges, torch_archive
from aid_edge.sources.opening import load_module, request_of
from aid_edge.sources.recognition import ARCHIVE_SUFFIX
from aid_edge.sources.torch_source import Flat, example_inputs

QAT_RATE_SHARE = 0.1
"""Of the learning rate: rounding is learned in small steps (Krishnamoorthi, 2018, section 3.2)."""

QAT_EPOCHS_SHARE = 0.3
"""Of the epochs of a pruned net, which first wins back in float what pruning cost."""

RENEWED_ON = 1024
"""Samples on which batch norms are measured anew after pruning."""

DAMAGE_SAMPLES = 64
_CHECKED = 8
_CHECKED_BATCHES = (1, 3)
_RESERVED_SHARE = 0.15
"""Of the worker's time, left for loading and writing."""

_MAX_RELATIVE = 1e-3


@dataclass
class _Work:
    """The model on its way."""

    job: Job
    module: nn.Module
    teacher: nn.Module
    feed: tuple[torch.Tensor, ...]
    deadline: float
    notes: list[str] = field(default_factory=list)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)


def run(job: Job) -> Training:
    """Do what ``job`` says and write its file.

    Raises:
        UnsupportedModelError: The model cannot be pruned or trained.
        DataError: Data does not fit.
        ConversionError: The outcome cannot be written, or is not what was trained.
    """
    started = time.monotonic()
    torch.manual_seed(job.recipe.seed)
    torch.set_num_threads(1)
    progress(0.0, "loading the model")
    teacher = _loaded(job)
    module = copy.deepcopy(teacher)
    feed = example_inputs(request_of(job.model), batch=2)
    work = _Work(job, module, teacher, feed, started + job.time_s * (1 - _RESERVED_SHARE))
    macs, parameters = _macs(work, teacher), _parameters(teacher)
    lesson = _lesson(work)
    _prune(work, lesson)
    quality, outcome = "", Outcome(stopped="none")
    if job.recipe.recover is not None and lesson is not None:
        quality = lesson.quality
        outcome = _recover(work, lesson, job.recipe.recover)
    _write(work)
    method = "none" if job.recipe.recover is None else job.recipe.recover.title
    return Training(
        method, quality, tuple(outcome.points), outcome.best_epoch, outcome.stopped,
        macs, _macs(work, work.module), parameters, _parameters(work.module),
        (*work.notes, *outcome.notes),
    )  # fmt: skip


def _loaded(job: Job) -> nn.Module:
    model = job.model
    if model.framework == "onnx":
        module = bridges.torch_module(model, _first(job.checks or job.calibration))
    else:
        module = load_module(model)
    is_archive = model.spec.lower().endswith(ARCHIVE_SUFFIX)
    if is_archive and isinstance(job.recipe.prune, Structured):
        raise UnsupportedModelError(
            f"{model.spec} cannot be pruned by channels",
            ["an exported graph (.pt2) has the shapes of its weights written into it"],
            hint="Give the model's code (module:factory) or ONNX.",
        )
    if not any(p.is_floating_point() for p in module.parameters()):
        raise UnsupportedModelError(f"{model.spec} cannot be trained", ["it has no parameters"])
    _check_batch(model, module)
    return module.eval().requires_grad_(False)


def _check_batch(model: SourceModel, module: nn.Module) -> None:
    """Return if the module takes more than one sample at a time where the model does."""
    if not model.has_dynamic_batch:
        return
    try:
        with torch.no_grad():
            counts = {len(t) for t in Flat(module)(*example_inputs(request_of(model), batch=3))}
    except RuntimeError as e:
        counts, reason = set(), first_line(e)
    else:
        reason = f"of three samples it makes {sorted(counts)}"
    if counts != {3}:
        raise UnsupportedModelError(
            f"{model.spec} cannot be trained: it takes one sample at a time only",
            [reason],
            hint="Declare a batch of one: --input NAME=1x...",
        )


def _first(arrays: Arrays | None) -> Arrays | None:
    return None if arrays is None else {name: arrays[name][:_CHECKED] for name in arrays}


def _lesson(work: _Work) -> Lesson | None:
    """Return what the student is taught with, or None where there are no data at all."""
    job = work.job
    recover = job.recipe.recover
    labelled = recover is not None and recover.method != "distill"
    if labelled and job.train is not None:
        feeder, targets = Feeder(job.model, job.train.inputs), job.train.targets
        groups = job.train.groups
    elif job.calibration is not None:
        feeder, targets, groups = Feeder(job.model, job.calibration), None, job.groups
    else:
        return None
    if feeder.count < 2 * (feeder.feed or 1):
        return None
    return lesson_of(job.model, work.teacher, feeder, targets, job.recipe.seed, groups=groups)


def _prune(work: _Work, lesson: Lesson | None) -> None:
    how = work.job.recipe.prune
    if how is None:
        return
    progress(0.0, how.title)
    if isinstance(how, Unstructured):
        work.masks = unstructured.prune(work.module, how.sparsity)
        return
    damage = None
    if lesson is not None:
        tensors = lesson.feeder.take(next(lesson.feeder.batches(lesson.held, DAMAGE_SAMPLES)))
        with torch.no_grad():
            want = lesson.feeder.outputs(work.teacher, tensors)

        def damage(trial: nn.Module) -> float:
            with torch.no_grad():
                got = lesson.feeder.outputs(trial, tensors)
            return difference(got, want, lesson.imitation)

    work.notes += structured.prune(work.module, work.feed, how, damage)
    if lesson is not None:
        recovery.renew_norms(work.module, lesson, RENEWED_ON)


def _recover(work: _Work, lesson: Lesson, recover: Recover) -> Outcome:
    seconds = min(60 * recover.minutes, max(work.deadline - time.monotonic(), 1.0))
    if recover.method != "qat":
        return _train(work, lesson, _course(work, recover, recover.epochs, seconds))
    if work.job.recipe.prune is None:
        course = _course(work, recover, recover.epochs, seconds, QAT_RATE_SHARE)
        return _train_rounded(work, lesson, course)
    last = max(round(recover.epochs * QAT_EPOCHS_SHARE), 1)
    first = max(recover.epochs - last, 1)
    began = time.monotonic()
    floating = _train(work, lesson, _course(work, recover, first, seconds * (1 - QAT_EPOCHS_SHARE)))
    left = max(seconds - (time.monotonic() - began), 1.0)
    course = replace(
        _course(work, recover, last, left, QAT_RATE_SHARE),
        first_epoch=floating.points[-1].epoch + 1,
    )
    rounded = _train_rounded(work, lesson, course)
    rounded.notes = [*floating.notes, *rounded.notes]
    rounded.points = [*floating.points, *rounded.points]
    return rounded


def _course(
    work: _Work, recover: Recover, epochs: int, seconds: float, rate: float = 1.0
) -> Course:
    return Course(epochs, seconds, recover.learning_rate * rate, work.job.recipe.seed)


def _train(work: _Work, lesson: Lesson, course: Course) -> Outcome:
    module = work.module
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())

    def keep_zeros() -> None:
        unstructured.apply(module, work.masks)

    return recovery.train(module, lesson, course, keep_zeros)


def _train_rounded(work: _Work, lesson: Lesson, course: Course) -> Outcome:
    """Train with int8 simulated; the module is a float one again afterwards."""
    tensors = lesson.feeder.take(next(lesson.feeder.batches(lesson.held, DAMAGE_SAMPLES)))

    def outputs(module: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return lesson.feeder.outputs(module, tensors)

    folded, _ = fold_norms(work.module, outputs)
    for parameter in folded.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    simulation = Simulation(folded)
    simulation.observe(folded, outputs)
    known = dict(folded.named_parameters())
    masks = {
        name if name in known else rounded_name(name): mask for name, mask in work.masks.items()
    }
    outcome = recovery.train(folded, lesson, course, lambda: unstructured.apply(folded, masks))
    simulation.remove()
    work.module = folded
    outcome.notes.append("quality is that of simulated int8")
    return outcome


def _write(work: _Work) -> None:
    """Write the module, read it again and compare.

    Raises:
        ConversionError: They differ.
    """
    job, module = work.job, work.module.eval().requires_grad_(False)
    progress(1.0, "writing the prepared model")
    torch_archive.save(Flat(module), job.model.inputs, job.path)
    written = torch_archive.load(job.path)
    for tensors in _probes(work):
        with torch.no_grad():
            want, got = Flat(module)(*tensors), Flat(written)(*tensors)
        for info, a, b in zip(job.model.outputs, want, got, strict=True):
            _check_same(info.name, a, b)


def _probes(work: _Work) -> list[tuple[torch.Tensor, ...]]:
    job, model = work.job, work.job.model
    probes = [example_inputs(request_of(model), batch=b) for b in _CHECKED_BATCHES]
    samples = job.checks or job.calibration or (job.train and job.train.inputs)
    if samples:
        feeder = Feeder(model, samples)
        if feeder.batched and feeder.count >= (feeder.feed or 1):
            probes.append(feeder.take(range(feeder.feed or min(_CHECKED, feeder.count))))
        elif not feeder.batched:
            probes.append(tuple(t[0] for t in feeder.take([0])))
    return probes


def _check_same(name: str, want: torch.Tensor, got: torch.Tensor) -> None:
    if want.shape != got.shape or not bool(torch.isfinite(want.double()).all()):
        raise ConversionError(f"prepared, output {name} is not finite or of another shape")
    largest = float(want.double().abs().max()) if want.numel() else 0.0
    difference_ = float((want.double() - got.double()).abs().max()) if want.numel() else 0.0
    if difference_ > _MAX_RELATIVE * max(largest, 1e-6):
        raise ConversionError(
            f"the file of the prepared model computes something else: output {name} differs by "
            f"{difference_:.3g}, where its largest value is {largest:.3g}"
        )


def _macs(work: _Work, module: nn.Module) -> int:
    """Return multiply-accumulates of convolutions and matrix products for one sample."""
    feed = example_inputs(request_of(work.job.model), batch=1)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), warnings.catch_warnings(), counter:
            warnings.simplefilter("ignore")
            module(*feed)
    except Exception as e:  # the user's forward() may raise anything
        raise ConversionError(f"operations cannot be counted: {first_line(e)}") from e
    samples = len(feed[0]) if work.job.model.batched else 1
    # It counts a multiplication and an addition as two.
    return int(counter.get_total_flops()) // 2 // max(samples, 1)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
