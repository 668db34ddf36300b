"""AID Edge from Python and notebooks: ``aid_edge.api.convert(...)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from aid_edge.pipeline.convert import run
from aid_edge.pipeline.request import ConvertRequest, ConvertResult, Progress
from aid_edge.pipeline.search.budget import parse_duration
from aid_edge.profiles import load_profile

__all__ = ["ConvertResult", "convert"]


def convert(
    source: str | Path,
    *,
    profile: str | Path | Sequence[str | Path],
    out: str | Path,
    calibration: str | Path | None = None,
    evaluate: str | Path | None = None,
    fidelity: str | Path | None = None,
    weights: str | Path | None = None,
    model_card: str | Path | None = None,
    runtimes: Sequence[str] = (),
    name: str | None = None,
    version: str | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    jobs: int | None = None,
    inputs: Sequence[str] = (),
    preprocess: str | Path | None = None,
    train: str | Path | None = None,
    recovery_minutes: float = 0.0,
    metric: str | None = None,
    search: Literal["quick", "full"] = "quick",
    time_budget: str | None = None,
    executor: str | None = None,
    allow_overlap: bool = False,
    on_progress: Progress = lambda _task, _share, _what: None,
) -> ConvertResult:
    """Compress and export a model for hardware profiles; in a notebook the result shows its report.

    A profile whose every candidate misses a gate has no release in the result: ask
    ``result.report.is_complete``.

    Args:
        source: Path of an ONNX or Keras model, or ``module:factory`` of a PyTorch one.
        profile: Id or path of a hardware profile, or several.
        out: Folder for the report and the releases.
        calibration: Real inputs to calibrate int8 on: ``.npz``, folder or ``module:callable``.
        evaluate: Labelled data to measure accuracy on.
        fidelity: Unlabelled inputs to compare outputs on; the evaluation inputs when None.
        weights: State dict of a PyTorch model.
        model_card: ``model.toml``; else the one beside the model.
        runtimes: Only these; empty means all of each profile.
        name: Of the releases; else the card's.
        version: Of the releases; else the card's.
        cache: Folder of the step cache.
        seed: Of everything that draws random numbers.
        jobs: Conversions at once; what is timed runs alone in any case.
        inputs: Sizes of inputs, each ``NAME=SHAPE``.
        preprocess: File with preprocessing steps; else the card's.
        train: Labelled data to fine-tune pruned models on; without it they are distilled.
        recovery_minutes: Of training per pruned model; 0 means that nothing is pruned.
        metric: Task metric that decides, such as ``f1`` or ``module:function``; else top-1.
        search: ``quick`` tries what pays nearly always, ``full`` all that the converters can do.
        time_budget: When the search ends, such as ``10m``; None means when it is done.
        executor: Address of a cluster, ``dask://HOST:PORT`` or ``ray://HOST:PORT``.
        allow_overlap: Use calibration data that are judged on as well; the report says so.
        on_progress: Called with task, share done and what is being done.

    Raises:
        AidError: What was asked for cannot be done; its type, cause and hint say why.
    """
    named = [profile] if isinstance(profile, str | Path) else list(profile)
    request = ConvertRequest(
        source=str(source),
        targets=tuple(load_profile(p) for p in named),
        out=Path(out),
        weights=_path(weights),
        card=_path(model_card),
        calibration=_text(calibration),
        evaluation=_text(evaluate),
        fidelity=_text(fidelity),
        runtimes=tuple(runtimes),
        name=name,
        version=version,
        cache=_path(cache),
        seed=seed,
        jobs=jobs,
        inputs=tuple(inputs),
        preprocess=_path(preprocess),
        train=_text(train),
        recovery_minutes=recovery_minutes,
        metric=metric,
        search=search,
        time_budget_s=None if time_budget is None else parse_duration(time_budget),
        executor=executor,
        allow_overlap=allow_overlap,
        command="aid_edge.api.convert",
    )
    return run(request, on_progress=on_progress)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)
