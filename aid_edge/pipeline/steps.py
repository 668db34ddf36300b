"""The heavy steps of a conversion, each done once for the same inputs, tools and parameters."""

from __future__ import annotations

import contextvars
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec
import numpy.typing as npt

from aid_edge import diagnose, isolate, runner, samples
from aid_edge.converter import Arrays, Converter
from aid_edge.diagnose import LayerRecord
from aid_edge.diagnose.compare import DEFAULT_SAMPLES
from aid_edge.evaluate.data import DataSet
from aid_edge.evaluate.preprocess_faults import diagnose_preprocessing
from aid_edge.isolate import Limits
from aid_edge.model import SourceModel
from aid_edge.pipeline.cache import Cache, source_version
from aid_edge.pipeline.findings import StepFinding, TrainingFinding
from aid_edge.pipeline.search.space import Plan
from aid_edge.pipeline.stored import (
    read_outputs,
    read_prepared,
    read_result,
    read_step,
    write_outputs,
    write_prepared,
    write_result,
    write_step,
)
from aid_edge.recipe import Float32, Recipe, StaticInt8
from aid_edge.runner import Benchmark, ConversionRequest, ConversionResult
from device_agent.contract.names import digest_of
from device_agent.contract.profile import HardwareProfile

BATCH = 16
"""Inputs at a time when outputs are compared; artifacts of a fixed batch keep theirs."""

_TEXT = "text.txt"
BENCHMARK_RUNS = 100
BENCHMARK_SAMPLES = 8
CLOSENESS_SAMPLES = 4
_STEP_MODULES = ("aid_edge.runner", "aid_edge.outcome", "aid_edge.runtimes", "aid_edge.sources")
_PREPARE_MODULE = "aid_edge.compress"
_DIAGNOSE_MODULE = "aid_edge.diagnose"
"""What carries the steps out: their source is part of every key."""

_LAYERS = "layers.json"
_BENCHMARK = "benchmark.json"

Array = npt.NDArray[Any]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Inputs:
    """Data that candidates are made with.

    Attributes:
        calibration: Unlabelled inputs, or None.
        checks: Data of which a few samples check an outcome.
        train: Labelled training data, or None.
    """

    calibration: DataSet | None
    checks: DataSet
    train: DataSet | None = None


class Engine(Protocol):
    """What carries the steps out; :mod:`aid_edge.runner` is one."""

    def convert(
        self, request: ConversionRequest, *, on_progress: Progress | None = None
    ) -> ConversionResult:
        """See :func:`aid_edge.runner.convert`."""

    def predict(
        self,
        artifact: Path,
        runtime: str,
        inputs: Arrays,
        *,
        threads: int = 1,
        batch: int = 1,
        on_progress: Progress | None = None,
    ) -> dict[str, Array]:
        """See :func:`aid_edge.runner.predict`."""

    def source_outputs(
        self,
        model: SourceModel,
        inputs: Arrays,
        *,
        batch: int = 8,
        on_progress: Progress | None = None,
    ) -> dict[str, Array]:
        """See :func:`aid_edge.runner.source_outputs`."""

    def benchmark(
        self, artifact: Path, runtime: str, inputs: Arrays, *, threads: int = 1, runs: int = 100
    ) -> Benchmark:
        """See :func:`aid_edge.runner.benchmark`."""

    def prepare(
        self, model: SourceModel, recipe: Recipe, data: Inputs, out: Path, on_progress: Progress
    ) -> tuple[SourceModel, TrainingFinding | None]:
        """See :func:`aid_edge.compress.prepare`."""

    def layers(
        self, floating: Path, quantized: Path, runtime: str, inputs: Arrays
    ) -> tuple[LayerRecord, ...]:
        """See :func:`aid_edge.diagnose.layers`."""


class RunnerEngine:
    """Carries the steps out in worker processes."""

    convert = staticmethod(runner.convert)
    predict = staticmethod(runner.predict)
    source_outputs = staticmethod(runner.source_outputs)
    benchmark = staticmethod(runner.benchmark)
    layers = staticmethod(diagnose.layers)

    def prepare(
        self, model: SourceModel, recipe: Recipe, data: Inputs, out: Path, on_progress: Progress
    ) -> tuple[SourceModel, TrainingFinding | None]:
        """Prune and recover in a worker process."""
        from aid_edge import compress  # noqa: PLC0415 -- few conversions train

        usual = Limits()
        minutes = 0.0 if recipe.recover is None else recipe.recover.minutes
        request = compress.PrepareRequest(
            model=model, recipe=recipe, out=out,
            calibration=None if data.calibration is None else data.calibration.inputs,
            train=data.train,
            groups=None if data.calibration is None else data.calibration.groups,
            checks=data.checks.take(spread(len(data.checks), CLOSENESS_SAMPLES)),
            # Training takes its own minutes on top of what everything else may take.
            limits=replace(usual, time_s=usual.time_s + 60 * minutes),
        )  # fmt: skip
        found = compress.prepare(request, on_progress=on_progress)
        return found.model, msgspec.convert(msgspec.to_builtins(found.training), TrainingFinding)


class StepLog:
    """What the steps took that are asked for inside ``with log``, in order.

    Attributes:
        taken: Identity of each step and what it took; one that several asked for has one identity.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.taken: list[tuple[str, StepFinding]] = []

    def __enter__(self) -> Self:
        """Take down every step from now on."""
        self._token = _log.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it to the outer one."""
        _log.reset(self._token)


_log: contextvars.ContextVar[StepLog | None] = contextvars.ContextVar("log", default=None)


@dataclass(frozen=True)
class Steps:
    """Cached steps with everything that all of their keys share.

    Attributes:
        tools: Distribution to version.
        converters: By runtime. The source of a converter's package is part of the key, and what
            it reads of the profile.
    """

    cache: Cache
    tools: Mapping[str, str]
    converters: Mapping[str, Converter]
    engine: Engine = field(default_factory=RunnerEngine)

    def convert(
        self,
        model: SourceModel,
        planned: Plan,
        profile: HardwareProfile,
        data: Inputs,
        on_progress: Progress,
    ) -> ConversionResult:
        """Return the artifact of a planned candidate.

        Args:
            model: The source model, or what preparation made of it.
            planned: The recipe, and the runtime it is carried out for.
            profile: What it is for.
            data: Calibration data, and data of which a few samples check the outcome.
            on_progress: Told how far it is.

        Raises:
            HostError: As :func:`aid_edge.runner.convert` does.
        """
        # Pruning and recovery are done by now: converters see what is left.
        recipe, runtime = replace(planned.recipe, prune=None, recover=None), planned.runtime
        checks = data.checks
        used = data.calibration if recipe.needs_calibration else None
        picked = spread(len(checks), CLOSENESS_SAMPLES)

        def make(folder: Path) -> None:
            reference = None
            if not planned.recipe.is_prepared:
                # In the cache since before any candidate: not another run of the source for each.
                known = self.source_outputs(model, checks, _silent)
                reference = {n: a[picked] for n, a in known.items()}
            request = ConversionRequest(
                model=model, recipe=recipe, runtime=runtime, profile=profile,
                out=folder / "artifact", samples=checks.take(picked), reference=reference,
                calibration=None if used is None else self._calibration(used, recipe),
            )  # fmt: skip
            write_result(folder, self.engine.convert(request, on_progress=on_progress))

        parts = {
            "source": _what(model),
            "recipe": repr(recipe),
            "runtime": runtime,
            "converter": self._converter_version(runtime),
            "profile": _what_is_read(profile, self.converters[runtime]),
            "calibration": "" if used is None else used.digest,
            "checks": checks.digest,
        }
        folder = self._done("convert", parts, make, f"convert to {runtime}")
        return read_result(folder, planned.recipe)

    def prepare(
        self, model: SourceModel, recipe: Recipe, data: Inputs, on_progress: Progress
    ) -> tuple[SourceModel, TrainingFinding | None]:
        """Return the model pruned and recovered, and how its training went.

        Raises:
            HostError: As :func:`aid_edge.compress.prepare` does.
        """
        calibration, train = data.calibration, data.train

        def make(folder: Path) -> None:
            found, training = self.engine.prepare(
                model, recipe, data, folder / "prepared", on_progress
            )
            write_prepared(folder, found, training)

        # What follows preparation makes no difference to it, but for QAT, which simulates it.
        is_qat = recipe.recover is not None and recipe.recover.method == "qat"
        parts = {
            "source": _what(model),
            "task": "" if model.card is None else model.card.task,
            "recipe": repr(recipe if is_qat else replace(recipe, quantize=Float32())),
            "compress": source_version(_PREPARE_MODULE),
            "calibration": "" if calibration is None else calibration.digest,
            "train": "" if train is None else train.digest,
        }
        return read_prepared(self._done("prepare", parts, make, "prune and recover"))

    def source_outputs(
        self, model: SourceModel, data: DataSet, on_progress: Progress
    ) -> dict[str, Array]:
        """Return the source model's own outputs on ``data``, array [n, ...] per output."""

        def make(folder: Path) -> None:
            outputs = self.engine.source_outputs(
                model, data.inputs, batch=BATCH, on_progress=on_progress
            )
            write_outputs(folder, outputs)

        parts = {"source": _what(model), "data": data.digest}
        return read_outputs(self._done("source-outputs", parts, make, "run the source model"))

    def preprocessing(self, model: SourceModel, data: DataSet) -> str:
        """Return what the usual faults of preprocessing would explain; empty where none would.

        Raises:
            HostError: The source model cannot be run.
        """

        def make(folder: Path) -> None:
            found = diagnose_preprocessing(
                model, data, predict=lambda inputs: self.engine.source_outputs(model, inputs)
            )
            (folder / _TEXT).write_text("" if found is None else found.text)

        card = model.card
        parts = {
            "source": _what(model),
            "declared": "" if card is None else f"{card.task} {card.preprocess!r}",
            "data": data.digest,
            "code": source_version("aid_edge.evaluate.preprocess_faults"),
        }
        folder = self._done("preprocessing", parts, make, "try the usual preprocessing faults")
        return (folder / _TEXT).read_text()

    def outputs(
        self,
        result: ConversionResult,
        data: DataSet,
        on_progress: Progress,
        chosen: Sequence[int] | None = None,
    ) -> dict[str, Array]:
        """Return the artifact's outputs on ``data``, array [n, ...] per output.

        Args:
            result: The artifact.
            data: What to run it on.
            on_progress: Told how far it is.
            chosen: Which samples, in which order; None is all.
        """

        def make(folder: Path) -> None:
            inputs = data.inputs if chosen is None else data.take(chosen)
            outputs = self.engine.predict(
                result.artifact, result.runtime, result.to_artifact(inputs), batch=BATCH,
                on_progress=on_progress,
            )  # fmt: skip
            write_outputs(folder, outputs)

        some = "" if chosen is None else digest_of(repr(list(chosen)).encode())
        parts = {
            "artifact": result.digest,
            "runtime": f"{result.runtime} {result.runtime_version}",
            "machine": platform.machine(),
            "data": data.digest,
            "chosen": some,
        }
        return read_outputs(self._done("outputs", parts, make, f"run in {result.runtime}"))

    def layers(
        self, floating: ConversionResult, quantized: ConversionResult, data: DataSet
    ) -> tuple[LayerRecord, ...]:
        """Return how each layer of a quantized artifact bears it; the worst first.

        Raises:
            HostError: As :func:`aid_edge.diagnose.layers` does.
        """

        def make(folder: Path) -> None:
            picked = spread(len(data), DEFAULT_SAMPLES)
            found = self.engine.layers(
                floating.artifact, quantized.artifact, quantized.runtime,
                quantized.to_artifact(data.take(picked)),
            )  # fmt: skip
            (folder / _LAYERS).write_bytes(msgspec.json.encode(found))

        parts = {
            "floating": floating.digest,
            "quantized": quantized.digest,
            "runtime": f"{quantized.runtime} {quantized.runtime_version}",
            "data": data.digest,
            "diagnose": source_version(_DIAGNOSE_MODULE),
        }
        folder = self._done("layers", parts, make, "look into layers")
        return msgspec.json.decode((folder / _LAYERS).read_bytes(), type=tuple[LayerRecord, ...])

    def benchmark(
        self, result: ConversionResult, data: DataSet, threads: int, *, turn: int, host: str
    ) -> Benchmark:
        """Return latency and memory of the artifact in one fresh process.

        Args:
            result: What to measure.
            data: Its first samples are what it runs on.
            threads: Of the runtime.
            turn: Number of the measurement, when one artifact is measured several times.
            host: Names this machine: figures of another are not taken for ours.
        """

        def make(folder: Path) -> None:
            inputs = result.to_artifact(data.take(spread(len(data), BENCHMARK_SAMPLES)))
            found = self.engine.benchmark(
                result.artifact, result.runtime, inputs, threads=threads, runs=BENCHMARK_RUNS
            )
            (folder / _BENCHMARK).write_bytes(msgspec.json.encode(found))

        parts = {
            "artifact": result.digest,
            "runtime": f"{result.runtime} {result.runtime_version}",
            "data": data.digest,
            "threads": str(threads),
            "turn": str(turn),
            "runs": str(BENCHMARK_RUNS),
            "host": host,
        }
        folder = self._done("benchmark", parts, make, f"benchmark in {result.runtime}")
        return msgspec.json.decode((folder / _BENCHMARK).read_bytes(), type=Benchmark)

    def _calibration(self, data: DataSet, recipe: Recipe) -> Arrays:
        """Return what a recipe calibrates on, evenly spaced over the data, on disk."""
        wanted = recipe.quantize.samples if isinstance(recipe.quantize, StaticInt8) else len(data)
        if wanted >= len(data):
            return data.inputs
        picked = spread(len(data), wanted)

        def make(folder: Path) -> None:
            parts = (picked[i : i + BATCH] for i in range(0, len(picked), BATCH))
            samples.write(folder / "samples", (data.take(part) for part in parts))

        folder = self._done("calibration", {"data": data.digest, "n": str(wanted)}, make, "sample")
        return samples.read(folder / "samples")

    def _done(
        self, step: str, parts: Mapping[str, str], make: Callable[[Path], None], title: str
    ) -> Path:
        """Return the folder with the outcome of ``step``, and take down what it took, ever."""

        def metered(folder: Path) -> None:
            # Steps within a step are part of it.
            with isolate.Meter() as meter, StepLog():
                make(folder)
            found = StepFinding(what=title, seconds=meter.seconds, peak_bytes=meter.peak_rss_bytes)
            write_step(folder, found)

        folder, _ = self.cache.get(step, {**self._shared, **parts}, metered)
        if (log := _log.get()) is not None:
            log.taken.append((f"{step}/{folder.name}", read_step(folder)))
        return folder

    @cached_property
    def _shared(self) -> dict[str, str]:
        # Once: a file that is edited meanwhile does not part the keys of one run.
        tools = msgspec.json.encode(dict(self.tools), order="sorted")
        code = [source_version(name) for name in _STEP_MODULES]
        return {
            "tools": digest_of(tools),
            "python": platform.python_version(),
            "code": digest_of("".join(code).encode()),
        }

    def _converter_version(self, runtime: str) -> str:
        # With the package it lies in: a converter is seldom one module.
        module = type(self.converters[runtime]).__module__
        return source_version(module.rpartition(".")[0] or module)


def _what(model: SourceModel) -> str:
    """Return what a source model is: its files, the sizes given to open ones, and all names."""
    return f"{model.digest} {model.inputs!r} {model.outputs!r}"


def _what_is_read(profile: HardwareProfile, converter: Converter) -> str:
    """Return what the bytes depend on in ``profile``: all of it, where the converter says nothing.

    How numbers are quantized is not among it: the recipe says it.
    """
    # Sizes and durations are kinds of int and float.
    whole = msgspec.to_builtins(
        profile, enc_hook=lambda v: int(v) if isinstance(v, int) else float(v)
    )
    reads = getattr(converter, "reads", None)
    if reads is None:
        return msgspec.json.encode(whole, order="sorted").decode()
    entry: dict[str, Any] = next(
        (r for r in whole["runtimes"] if r["name"] == converter.runtime), {}
    )
    found = {key: _at({**whole, "runtime": entry}, key) for key in reads}
    return msgspec.json.encode(found, order="sorted").decode()


def _at(table: Any, key: str) -> Any:
    for part in key.split("."):
        table = table[part]
    return table


def _silent(share: float, text: str) -> None:
    """Take progress and say nothing."""


def spread(n: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` indices, evenly spaced over ``n`` samples."""
    count = min(n, wanted)
    return [i * n // count for i in range(count)]
