"""Carries out the part of a recipe that changes the source model itself, in a worker process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aid_edge import isolate
from aid_edge.compress.request import Arrays, Prepared, PrepareRequest, TrainData, Training
from aid_edge.errors import (
    ConversionError,
    DataError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
)
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe, Structured
from aid_edge.samples import Samples
from aid_edge.sources.opening import open_source, require

MIN_DISTILL_SAMPLES = 64
"""Fewer are learned by heart: the held-out part would be smaller than a batch."""

MIN_TRAIN_SAMPLES = 64

_MODULES = ("torch", "torch_pruning")
_FRAMEWORKS = frozenset({"torch", "onnx"})
_WAY_OUT = {
    "torchscript": "TorchScript holds a compiled graph: give the model's code (module:factory).",
    "keras": "Export it to ONNX (model.export('model.onnx', format='onnx')) and convert that.",
    "tflite": "Give the model that the TFLite file was made from.",
}


@dataclass(frozen=True)
class Job:
    """What the worker process is told; see :class:`PrepareRequest`."""

    model: SourceModel
    recipe: Recipe
    calibration: Arrays | None
    train: TrainData | None
    checks: Arrays | None
    path: Path
    time_s: float
    groups: Sequence[str] | None = None


def refusal_of(model: SourceModel) -> str:
    """Return why ``model`` is of a kind that is never pruned or trained, or nothing."""
    if model.quantized:
        return "it is quantized already"
    if model.framework not in _FRAMEWORKS:
        return f"{model.framework} models are not brought over to PyTorch, where this is done"
    return ""


def prepare(request: PrepareRequest, on_progress: isolate.Progress | None = None) -> Prepared:
    """Return the source model pruned and recovered as ``request.recipe`` says.

    The same request gives the same bytes with the same tools, unless ``recover.minutes`` ends the
    training before its epochs do.

    Args:
        request: What to do, to what, with which data.
        on_progress: Told the share done and what is being done.

    Raises:
        UsageError: The recipe prepares nothing.
        UnsupportedModelError: The model cannot be pruned or trained; names why.
        DataError: Data that the recipe needs is missing, too little or does not fit.
        MissingDependencyError: torch or torch-pruning is not installed.
        ConversionError: What was made cannot be written, or is not what was trained.
        StepCrashedError: The worker crashed, or ran out of memory or time.
    """
    _check(request)
    request.out.mkdir(parents=True, exist_ok=True)
    path = request.out / f"{request.model.name}.pt2"
    job = Job(
        request.model, request.recipe, request.calibration, _plain(request.train), request.checks,
        path, request.limits.time_s, request.groups,
    )  # fmt: skip
    training = isolate.run_with(request.limits, on_progress, run_in_worker, job).value
    return Prepared(_opened(request, path, training), training)


def run_in_worker(job: Job) -> Training:
    """Do the work of :func:`prepare`. Imports torch: for worker processes only."""
    from aid_edge.compress import worker  # noqa: PLC0415 -- the import is slow and large

    return worker.run(job)


def _check(request: PrepareRequest) -> None:
    model, recipe = request.model, request.recipe
    if not recipe.is_prepared:
        raise UsageError(f"{recipe.title}: neither prunes nor recovers; there is nothing to do")
    if reason := refusal_of(model):
        raise UnsupportedModelError(
            f"{model.spec} cannot be pruned or trained", [reason],
            hint="" if model.quantized else _WAY_OUT.get(model.framework, ""),
        )  # fmt: skip
    _check_installed()
    require(model.framework, model.spec)
    calibration, train = request.calibration, request.train
    for name, data in (
        ("calibration", calibration),
        ("training", None if train is None else train.inputs),
    ):
        if data is not None:
            _check_inputs(model, data, name)
    scope = recipe.prune.scope if isinstance(recipe.prune, Structured) else ""
    if scope == "sensitivity" and calibration is None:
        raise DataError("pruning by sensitivity measures each layer, and has no calibration data",
                        hint="Give --calibration, or prune per layer.")  # fmt: skip
    if recipe.recover is None:
        return
    if recipe.recover.method == "distill":
        _check_enough(calibration, MIN_DISTILL_SAMPLES, "distillation", "--calibration")
    else:
        title = {"fine-tune": "fine-tuning", "qat": "quantization-aware training"}
        method = title[recipe.recover.method]
        targets = None if train is None else train.targets
        inputs = train.inputs if train is not None and targets is not None else None
        _check_enough(inputs, MIN_TRAIN_SAMPLES, method, "--train with labels")


def _check_installed() -> None:
    import importlib.util  # noqa: PLC0415

    for name in _MODULES:
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError("pruning and recovery", name, "convert")


def _check_enough(data: Arrays | None, minimum: int, what: str, option: str) -> None:
    count = 0 if data is None else count_of(data)
    if count < minimum:
        found = f"{count} are given" if count else "none are given"
        raise DataError(
            f"{what} needs at least {minimum} samples; {found}",
            hint=f"Give more with {option}: some hundreds at least, better thousands.",
        )


def _check_inputs(model: SourceModel, data: Arrays, what: str) -> None:
    names = [i.name for i in model.inputs]
    if missing := [n for n in names if n not in data]:
        raise DataError(f"{what} data has no input {missing[0]!r}; it has {', '.join(data)}")
    counts = {n: len(data[n]) for n in names}
    if len(set(counts.values())) > 1:
        raise DataError(f"{what} data has inputs of different lengths: {counts}")
    for info in model.inputs:
        want = info.shape[1:] if model.batched else info.shape
        found = data[info.name].shape[1:]
        fits = len(found) == len(want) and all(
            w in {-1, f} for w, f in zip(want, found, strict=True)
        )
        if not fits:
            raise DataError(
                f"{what} data: input {info.name} is {list(found)} per sample; "
                f"the model takes {list(want)}"
            )


def _plain(train: Any) -> TrainData | None:
    """Return only what the worker needs of labelled data, which may hold much else."""
    if train is None:
        return None
    return TrainData(train.inputs, train.targets, getattr(train, "groups", None))


def _opened(request: PrepareRequest, path: Path, training: Training) -> SourceModel:
    """Return the prepared model with everything of the original that still holds."""
    model = request.model
    found = open_source(str(path), inputs=model.inputs, limits=request.limits)
    shapes = [(o.datatype, tuple(o.shape)) for o in found.outputs]
    wanted = [(o.datatype, tuple(o.shape)) for o in model.outputs]
    if shapes != wanted:
        raise ConversionError(
            f"{model.spec}: prepared, its outputs are {shapes}; those of the source are {wanted}"
        )
    outputs = tuple(model.outputs)
    return replace(
        found, outputs=outputs, card=model.card, batched=model.batched,
        notes=(*model.notes, *training.notes),
    )  # fmt: skip


def count_of(data: Mapping[str, Any]) -> int:
    """Return the number of samples."""
    if isinstance(data, Samples):
        return data.count
    return min((len(np.asarray(a)) for a in data.values()), default=0)
