"""How outcomes of steps lie in the cache: JSON and NumPy files, paths relative to their folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from aid_edge.model import SourceModel
from aid_edge.outcome import Closeness
from aid_edge.pipeline.findings import StepFinding, TrainingFinding
from aid_edge.recipe import Recipe
from aid_edge.runner import ConversionResult
from aid_edge.runtimes import Placement
from device_agent.contract.manifest import Measurement
from device_agent.contract.tensors import TensorInfo

_RESULT = "result.json"
_OUTPUTS = "outputs.npz"
_MODEL = "model.json"
_TRAINING = "training.json"
_STEP = "step.json"

Array = npt.NDArray[Any]


class _StoredResult(msgspec.Struct, frozen=True):
    """A :class:`ConversionResult` without its recipe, which the key knows."""

    artifact: str
    runtime: str
    runtime_version: str
    size_bytes: int
    digest: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    axes: dict[str, tuple[int, ...]]
    placement: Placement
    closeness: Closeness | None
    seconds: float
    peak_rss_bytes: int
    tools: dict[str, str]
    log: str
    executed: bool
    extras: dict[str, str]
    figures: tuple[Measurement, ...]
    notes: tuple[str, ...]


def write_result(folder: Path, result: ConversionResult) -> None:
    """Write ``result``, whose files lie in ``folder``."""

    def inside(path: Path) -> str:
        return str(path.resolve().relative_to(folder.resolve()))

    names = {f.name for f in fields(result)} - {"recipe"}
    values = {name: getattr(result, name) for name in names & set(_StoredResult.__struct_fields__)}
    values["artifact"] = inside(result.artifact)
    values["axes"], values["tools"] = dict(result.axes), dict(result.tools)
    values["extras"] = {name: inside(path) for name, path in result.extras.items()}
    (folder / _RESULT).write_bytes(msgspec.json.encode(_StoredResult(**values)))


def read_result(folder: Path, recipe: Recipe) -> ConversionResult:
    """Return what :func:`write_result` left in ``folder``."""
    stored = msgspec.json.decode((folder / _RESULT).read_bytes(), type=_StoredResult)
    values = {name: getattr(stored, name) for name in stored.__struct_fields__}
    values["artifact"] = folder / stored.artifact
    values["extras"] = {name: folder / path for name, path in stored.extras.items()}
    return ConversionResult(**values, recipe=recipe)


def write_outputs(folder: Path, outputs: Mapping[str, Array]) -> None:
    """Write named arrays."""
    # Numbered, because an output may have a name that is no member name of an archive.
    np.savez(folder / _OUTPUTS, *outputs.values(), names=np.array(list(outputs)))


def read_outputs(folder: Path) -> dict[str, Array]:
    """Return what :func:`write_outputs` left in ``folder``."""
    with np.load(folder / _OUTPUTS, allow_pickle=False) as archive:
        return {str(name): archive[f"arr_{i}"] for i, name in enumerate(archive["names"])}


def write_prepared(folder: Path, model: SourceModel, training: TrainingFinding | None) -> None:
    """Write a prepared model, whose files lie in ``folder``, and how it was trained."""

    def inside(value: Any) -> Any:
        path = Path(value)
        root = folder.resolve()
        resolved = path.resolve()
        return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else str(value)

    weights = None if model.weights is None else Path(inside(model.weights))
    kept = replace(model, spec=inside(model.spec), weights=weights)
    (folder / _MODEL).write_bytes(msgspec.json.encode(kept, enc_hook=str))
    (folder / _TRAINING).write_bytes(msgspec.json.encode(training))


def read_prepared(folder: Path) -> tuple[SourceModel, TrainingFinding | None]:
    """Return what :func:`write_prepared` left in ``folder``."""
    model = msgspec.json.decode(
        (folder / _MODEL).read_bytes(), type=SourceModel, dec_hook=lambda kind, value: kind(value)
    )
    training = msgspec.json.decode((folder / _TRAINING).read_bytes(), type=TrainingFinding | None)
    weights = None if model.weights is None else folder / model.weights
    return replace(model, spec=str(folder / model.spec), weights=weights), training


def write_step(folder: Path, step: StepFinding) -> None:
    """Write what a step took."""
    (folder / _STEP).write_bytes(msgspec.json.encode(step))


def read_step(folder: Path) -> StepFinding:
    """Return what :func:`write_step` left in ``folder``."""
    return msgspec.json.decode((folder / _STEP).read_bytes(), type=StepFinding)
