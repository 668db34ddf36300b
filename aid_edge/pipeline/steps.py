"""The heavy steps of a conversion, each done once for the same inputs, tools and parameters."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from aid_edge import runner
from aid_edge.converter import Arrays, Converter
from aid_edge.evaluate.data import DataSet
from aid_edge.model import SourceModel
from aid_edge.outcome import Closeness
from aid_edge.pipeline.cache import Cache, source_version
from aid_edge.pipeline.search.space import Plan
from aid_edge.recipe import Recipe
from aid_edge.runner import Benchmark, ConversionRequest, ConversionResult
from aid_edge.runtimes import Placement
from device_agent.contract.names import digest_of
from device_agent.contract.profile import HardwareProfile
from device_agent.contract.tensors import TensorInfo

BATCH = 16
"""Inputs at a time when outputs are compared; artifacts of a fixed batch keep theirs."""

BENCHMARK_RUNS = 100
BENCHMARK_SAMPLES = 8
CLOSENESS_SAMPLES = 4
_STEP_MODULES = ("aid_edge.runner", "aid_edge.outcome", "aid_edge.runtimes", "aid_edge.sources")
"""What carries the steps out: their source is part of every key."""

_RESULT = "result.json"
_OUTPUTS = "outputs.npz"
_BENCHMARK = "benchmark.json"

Array = npt.NDArray[Any]
Progress = Callable[[float, str], None]


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


class RunnerEngine:
    """Carries the steps out in worker processes."""

    convert = staticmethod(runner.convert)
    predict = staticmethod(runner.predict)
    source_outputs = staticmethod(runner.source_outputs)
    benchmark = staticmethod(runner.benchmark)


class _StoredResult(msgspec.Struct, frozen=True):
    """A :class:`ConversionResult` without its recipe and folder, which the key knows."""

    artifact: str
    runtime: str
    runtime_version: str
    size_bytes: int
    digest: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    axes: dict[str, tuple[int, ...]]
    placement: Placement
    closeness: Closeness
    seconds: float
    peak_rss_bytes: int
    tools: dict[str, str]
    log: str


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
        data: tuple[DataSet | None, DataSet],
        on_progress: Progress,
    ) -> ConversionResult:
        """Return the artifact of a planned candidate.

        Args:
            model: The source model.
            planned: The recipe, and the runtime it is carried out for.
            profile: What it is for.
            data: Calibration data, and data of which a few samples check the outcome.
            on_progress: Told how far it is.

        Raises:
            HostError: As :func:`aid_edge.runner.convert` does.
        """
        recipe, runtime = planned.recipe, planned.runtime
        calibration, checks = data
        used = calibration if recipe.needs_calibration else None
        picked = spread(len(checks), CLOSENESS_SAMPLES)

        def make(folder: Path) -> None:
            out = folder / "artifact"
            # In the cache since before any candidate: not another run of the source for each.
            known = self.source_outputs(model, checks, _silent)
            request = ConversionRequest(
                model=model, recipe=recipe, runtime=runtime, profile=profile, out=out,
                samples=checks.take(picked), reference={n: a[picked] for n, a in known.items()},
                calibration=None if used is None else used.inputs,
            )  # fmt: skip
            result = self.engine.convert(request, on_progress=on_progress)
            _write_result(folder, result)

        folder, _ = self.cache.get(
            "convert",
            {
                **self._shared,
                "source": model.digest,
                "recipe": repr(recipe),
                "runtime": runtime,
                "converter": self._converter_version(runtime),
                "profile": _what_is_read(profile, self.converters[runtime]),
                "calibration": "" if used is None else used.digest,
                "checks": checks.digest,
            },
            make,
        )
        return _read_result(folder, recipe)

    def source_outputs(
        self, model: SourceModel, data: DataSet, on_progress: Progress
    ) -> dict[str, Array]:
        """Return the source model's own outputs on ``data``, array [n, ...] per output."""

        def make(folder: Path) -> None:
            outputs = self.engine.source_outputs(
                model, data.inputs, batch=BATCH, on_progress=on_progress
            )
            _write_outputs(folder, outputs)

        parts = {**self._shared, "source": model.digest, "data": data.digest}
        return _read_outputs(self.cache.get("source-outputs", parts, make)[0])

    def outputs(
        self, result: ConversionResult, data: DataSet, on_progress: Progress
    ) -> dict[str, Array]:
        """Return the artifact's outputs on ``data``, array [n, ...] per output."""

        def make(folder: Path) -> None:
            outputs = self.engine.predict(
                result.artifact, result.runtime, result.to_artifact(data.inputs), batch=BATCH,
                on_progress=on_progress,
            )  # fmt: skip
            _write_outputs(folder, outputs)

        parts = {
            **self._shared,
            "artifact": result.digest,
            "runtime": f"{result.runtime} {result.runtime_version}",
            "machine": platform.machine(),
            "data": data.digest,
        }
        return _read_outputs(self.cache.get("outputs", parts, make)[0])

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
            **self._shared,
            "artifact": result.digest,
            "runtime": f"{result.runtime} {result.runtime_version}",
            "data": data.digest,
            "threads": str(threads),
            "turn": str(turn),
            "runs": str(BENCHMARK_RUNS),
            "host": host,
        }
        folder = self.cache.get("benchmark", parts, make)[0]
        return msgspec.json.decode((folder / _BENCHMARK).read_bytes(), type=Benchmark)

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


def _write_result(folder: Path, result: ConversionResult) -> None:
    values = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "recipe"}
    values["artifact"] = str(result.artifact.resolve().relative_to(folder.resolve()))
    values["axes"], values["tools"] = dict(result.axes), dict(result.tools)
    (folder / _RESULT).write_bytes(msgspec.json.encode(_StoredResult(**values)))


def _read_result(folder: Path, recipe: Recipe) -> ConversionResult:
    stored = msgspec.json.decode((folder / _RESULT).read_bytes(), type=_StoredResult)
    values = {name: getattr(stored, name) for name in stored.__struct_fields__}
    return ConversionResult(**{**values, "artifact": folder / stored.artifact, "recipe": recipe})


def _write_outputs(folder: Path, outputs: Mapping[str, Array]) -> None:
    # Numbered, because an output may have a name that is no member name of an archive.
    np.savez(folder / _OUTPUTS, *outputs.values(), names=np.array(list(outputs)))


def _read_outputs(folder: Path) -> dict[str, Array]:
    with np.load(folder / _OUTPUTS, allow_pickle=False) as archive:
        return {str(name): archive[f"arr_{i}"] for i, name in enumerate(archive["names"])}
