"""Carries out one converter in a worker process and checks the outcome in a fresh one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from aid_edge import isolate, registry, runtimes
from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import ConversionError, DataError, UnsupportedModelError
from aid_edge.executed import (
    benchmark_in_worker,
    check_in_worker,
    predict_in_worker,
    source_in_worker,
)
from aid_edge.isolate import Limits, Progress
from aid_edge.model import SourceModel
from aid_edge.outcome import (
    Closeness,
    check_arrays,
    check_close,
    check_declared,
    check_finite,
    check_placed,
    compare,
    to_artifact,
)
from aid_edge.recipe import Float16, Float32, Recipe, StaticInt8
from aid_edge.runtimes import Placement
from aid_edge.samples import Samples
from aid_edge.unexecuted import inspect_in_worker
from device_agent.contract.manifest import Measurement
from device_agent.contract.profile import HardwareProfile
from device_agent.contract.tensors import TensorInfo

_CHECKED_SAMPLES = 32
_READ_BYTES = 2**20


@dataclass(frozen=True)
class ConversionRequest:
    """One recipe for one runtime of one profile.

    Attributes:
        calibration: Inputs [n, ...] in the source model's layout; for recipes that need it.
        samples: A few real inputs in the source model's layout, on which the outcome is compared
            with the source. At least one; they may be calibration inputs.
        out: Folder for the artifact; made if missing, must be empty.
        reference: The source model's outputs for ``samples``, where they are known already.
        limits: Of each worker process.
    """

    model: SourceModel
    recipe: Recipe
    runtime: str
    profile: HardwareProfile
    samples: Arrays
    out: Path
    calibration: Arrays | None = None
    reference: Arrays | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ConversionResult:
    """An artifact that loads, keeps its declared inputs and outputs and gives finite numbers.

    Attributes:
        artifact: The model file.
        inputs: What the artifact takes; -1 may vary. Always float where the source's are, also
            when the file's own inputs are int8: the runtimes quantize at the edge.
        outputs: Likewise.
        axes: Input name to the permutation from the source's axes to the artifact's; inputs that
            are not listed keep theirs. ``to_artifact`` applies it.
        runtime_version: Of the runtime that the outcome was checked in; where it was not run, the
            first version that reads it.
        seconds: Wall time of the conversion.
        peak_rss_bytes: Of the process that converted.
        closeness: How close it is to the source; None where the artifact was not run.
        tools: Tool name to version.
        log: Tail of what the tools printed.
        executed: Whether the artifact was run here. Where it cannot be (``Converter.executes``),
            its structure and weights were inspected, and reports must say so.
        extras: Further files in the artifact's folder, by name.
        figures: What only the converter or the inspection could find.
        notes: What the reader of the report must know of this artifact.
    """

    artifact: Path
    runtime: str
    runtime_version: str
    recipe: Recipe
    size_bytes: int
    digest: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    axes: Mapping[str, tuple[int, ...]]
    placement: Placement
    closeness: Closeness | None
    seconds: float
    peak_rss_bytes: int
    tools: Mapping[str, str]
    log: str = ""
    executed: bool = True
    extras: Mapping[str, Path] = field(default_factory=dict)
    figures: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()

    def to_artifact(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Return inputs in the source's layout and types as the artifact takes them."""
        return to_artifact(inputs, self.axes, self.inputs)


@dataclass(frozen=True)
class Benchmark:
    """Latency and memory of an artifact on this machine, batch 1, one fresh process.

    Attributes:
        latencies_s: One per run, warm-up runs left out, in order.
        load_s: From opening the file to being able to infer.
        peak_rss_bytes: Peak of the process.
        idle_rss_bytes: Peak before the runtime was imported and the model loaded.
    """

    latencies_s: tuple[float, ...]
    warmup: int
    threads: int
    load_s: float
    peak_rss_bytes: int
    idle_rss_bytes: int
    runtime_version: str


def convert(request: ConversionRequest, *, on_progress: Progress | None = None) -> ConversionResult:
    """Carry out ``request`` and check what came of it in the runtime, in a fresh process.

    Raises:
        UnsupportedModelError: Refused before any work; names operator, node, rule, way out.
        DataError: Calibration data is missing or does not fit the inputs.
        ConversionError: The converter failed, or its outcome is not what it should be.
        StepCrashedError: A worker died, or ran out of memory or time.
    """
    check(request)
    _make_folder(request.out)
    tell = on_progress or _silent
    executes = getattr(registry.load(request.runtime), "executes", True)
    samples = _first(request.samples, _CHECKED_SAMPLES)
    reference = _first(request.reference or {}, _CHECKED_SAMPLES)
    if executes and not reference:
        tell(0.0, "run the source model")
        reference = source_outputs(request.model, samples, limits=request.limits)
    check_finite(reference, "the source model")
    tell(0.1, f"convert to {request.runtime}, {request.recipe.title}")
    made = isolate.run_with(
        request.limits,
        lambda share, text: tell(0.1 + 0.7 * share, text),
        _convert_in_worker,
        _lean(request),
    )
    artifact = _inside(made.value, request.out)
    tell(0.8, f"{'check' if executes else 'inspect'} for {request.runtime}")
    judge = _executed if executes else _inspected
    result = judge(request, artifact, samples, reference)
    tell(1.0, "done")
    return replace(result, seconds=made.seconds, peak_rss_bytes=made.peak_rss_bytes, log=made.log)


def _executed(
    request: ConversionRequest, artifact: Artifact, samples: Arrays, reference: Arrays
) -> ConversionResult:
    """Return the result for an artifact that keeps what was declared when it is run."""
    facts = isolate.run_with(
        request.limits, None, check_in_worker, artifact, request.runtime, samples,
        saturates=_may_saturate(request.recipe),
    ).value  # fmt: skip
    check_declared(request.model, facts.input_infos, facts.output_infos)
    check_placed(facts.placement, request.runtime)
    closeness = compare(reference, facts.outputs, request.model, facts.batches)
    # A file that is int8 already is only passed through; kernels round its steps differently.
    if isinstance(request.recipe.quantize, Float32) and not request.model.quantized:
        check_close(closeness, reference, request.runtime)
    return _result(
        request, artifact, runtime_version=facts.version, inputs=facts.input_infos,
        outputs=facts.output_infos, placement=facts.placement, closeness=closeness,
    )  # fmt: skip


def _inspected(
    request: ConversionRequest, artifact: Artifact, samples: Arrays, reference: Arrays
) -> ConversionResult:
    """Return the result for an artifact that cannot be run here."""
    del samples, reference
    found = isolate.run_with(
        request.limits, None, inspect_in_worker, artifact.path, request.runtime, request.model,
        is_float=isinstance(request.recipe.quantize, Float32 | Float16),
    ).value  # fmt: skip
    seen = found.inspection
    check_declared(request.model, seen.inputs, seen.outputs)
    result = _result(
        request, artifact, runtime_version=seen.version, inputs=seen.inputs, outputs=seen.outputs,
        placement=seen.placement, closeness=None,
    )  # fmt: skip
    return replace(
        result,
        executed=False,
        figures=(*result.figures, *found.figures),
        notes=(*found.notes, *result.notes),
    )


def _result(request: ConversionRequest, artifact: Artifact, **found: Any) -> ConversionResult:
    return ConversionResult(
        artifact=artifact.path,
        runtime=request.runtime,
        recipe=request.recipe,
        size_bytes=artifact.path.stat().st_size,
        digest=_digest(artifact.path),
        axes=dict(artifact.axes),
        seconds=0.0,
        peak_rss_bytes=0,
        tools=dict(artifact.tools),
        extras=dict(artifact.extras),
        figures=tuple(artifact.figures),
        notes=tuple(artifact.notes),
        **found,
    )


def check(request: ConversionRequest) -> None:
    """Return if ``request`` can be carried out; does no work.

    Raises:
        UnknownRuntimeError: There is no converter for its runtime.
        UnsupportedModelError: The converter or the profile refuses model or recipe.
        DataError: Calibration data or samples are missing or do not fit the inputs.
    """
    converter = registry.load(request.runtime)
    reasons = []
    if request.model.framework not in converter.accepts:
        # The converter itself knows the way out.
        converter.check(request.model, request.profile)
        reasons.append(f"{request.runtime} takes {', '.join(sorted(converter.accepts))} models")
    if lacking := request.recipe.needs - converter.methods:
        known = ", ".join(sorted(converter.methods))
        reasons.append(f"{request.runtime} has no {', '.join(sorted(lacking))}; it has {known}")
    if reasons:
        raise UnsupportedModelError(
            f"{request.model.spec} cannot be converted to {request.runtime}", reasons
        )
    converter.check(request.model, request.profile)
    runtimes.version(request.runtime)
    batched = request.model.batched
    check_arrays(request.samples, request.model.inputs, "samples", batched=batched)
    if request.recipe.needs_calibration:
        if request.calibration is None:
            raise DataError(
                f"{request.recipe.title} needs calibration data",
                hint="Give real, unlabelled inputs with --calibration.",
            )
        what = "calibration data"
        check_arrays(request.calibration, request.model.inputs, what, batched=batched)


def predict(
    artifact: Path,
    runtime: str,
    inputs: Arrays,
    *,
    threads: int = 1,
    batch: int = 1,
    limits: Limits | None = None,
    on_progress: Progress | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the outputs [n, ...] of an artifact for inputs [n, ...] in the artifact's layout.

    Runs in a fresh process, ``batch`` inputs at a time (the file's own batch where it is fixed).

    Raises:
        DataError: A name, shape or element type is not the artifact's.
        ConversionError: The runtime cannot load or run it.
        StepCrashedError: The process died, or ran out of memory or time.
    """
    found = isolate.run_with(
        limits or Limits(), on_progress, predict_in_worker, artifact, runtime, _to_send(inputs),
        (threads, batch),
    )  # fmt: skip
    return found.value


def source_outputs(
    model: SourceModel,
    inputs: Arrays,
    *,
    batch: int = 8,
    limits: Limits | None = None,
    on_progress: Progress | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the outputs [n, ...] of the source model itself for inputs [n, ...] in its layout.

    Runs in a fresh process in the source framework (ONNX: in ONNX Runtime, unoptimized).

    Raises:
        DataError: A name, shape or element type is not the model's.
        SourceError: The model cannot be run.
        StepCrashedError: The process died, or ran out of memory or time.
    """
    check_arrays(inputs, model.inputs, "inputs", batched=model.batched)
    return isolate.run_with(
        limits or Limits(), on_progress, source_in_worker, model, _to_send(inputs), batch
    ).value


def benchmark(
    artifact: Path,
    runtime: str,
    inputs: Arrays,
    *,
    threads: int = 1,
    warmup: int = 10,
    runs: int = 100,
    limits: Limits | None = None,
) -> Benchmark:
    """Return latency and memory of an artifact, measured alone in a fresh process.

    Args:
        artifact: The model file.
        runtime: Its runtime.
        inputs: Inputs [n, ...] in the artifact's layout; runs go through them in turn.
        threads: Threads of the runtime.
        warmup: Runs that are not counted.
        runs: Runs that are.
        limits: Of the process.

    Raises:
        DataError: A name, shape or element type is not the artifact's.
        ConversionError: The runtime cannot load or run it.
        StepCrashedError: The process died, or ran out of memory or time.
    """
    outcome = isolate.run_with(
        limits or Limits(), None, benchmark_in_worker, artifact, runtime, dict(inputs),
        (threads, warmup, runs),
    )  # fmt: skip
    timing = outcome.value
    return Benchmark(
        timing.latencies_s, warmup, threads, timing.load_s, outcome.peak_rss_bytes,
        timing.idle_rss_bytes, timing.runtime_version,
    )  # fmt: skip


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConversionError(f"{out}: is not empty")
    except OSError as e:
        raise ConversionError(f"{out}: cannot be written: {e.strerror}") from e


def _inside(made: Artifact, out: Path) -> Artifact:
    if not isinstance(made, Artifact):
        raise ConversionError(f"the converter returned {type(made).__name__}, not an Artifact")
    for file in (made.path, *made.extras.values()):
        path = file.resolve()
        if not path.is_relative_to(out.resolve()):
            raise ConversionError(
                f"the converter wrote {path}, outside the folder {out} it was given"
            )
        if not path.is_file() or path.stat().st_size == 0:
            raise ConversionError(f"the converter reported {path}, but there is no such file")
    return made


def _digest(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            hasher.update(block)
    return f"sha256:{hasher.hexdigest()}"


def _to_send(inputs: Arrays) -> Arrays:
    # Samples on disk are read there; arrays would be copied through a pipe.
    return inputs if isinstance(inputs, Samples) else dict(inputs)


def _first(arrays: Arrays, count: int) -> dict[str, NDArray[Any]]:
    return {name: array[:count] for name, array in arrays.items()}


def _lean(request: ConversionRequest) -> ConversionRequest:
    """Return the request with only those arrays that the converter will look at."""
    calibration = None
    if isinstance(request.recipe.quantize, StaticInt8) and request.calibration is not None:
        count = request.recipe.quantize.samples
        given = request.calibration
        # Samples on disk stay there.
        calibration = given.first(count) if isinstance(given, Samples) else _first(given, count)
    return replace(request, samples={}, reference=None, calibration=calibration)


def _may_saturate(recipe: Recipe) -> bool:
    return isinstance(recipe.quantize, StaticInt8) and not recipe.quantize.reduce_range


def _silent(share: float, text: str) -> None:
    """Take progress and say nothing."""


# --- in worker processes ----------------------------------------------------------------------


def _convert_in_worker(request: ConversionRequest) -> Artifact:
    converter = registry.load(request.runtime)
    return converter.convert(
        request.model, request.recipe, request.calibration, request.profile, request.out
    )
