"""Carries out one converter in a worker process and checks the outcome in a fresh one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.converter import Arrays
from aid_edge.isolate import Limits
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe
from device_agent.contract.profile import HardwareProfile
from device_agent.contract.tensors import TensorInfo

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class ConversionRequest:
    """One recipe for one runtime of one profile.

    Attributes:
        calibration: Inputs [n, ...] in the source model's layout; for recipes that need it.
        samples: A few real inputs in the source model's layout, on which the outcome is compared
            with the source. At least one; they may be calibration inputs.
        out: Folder for the artifact; made if missing, must be empty.
        limits: Of each worker process.
    """

    model: SourceModel
    recipe: Recipe
    runtime: str
    profile: HardwareProfile
    samples: Arrays
    out: Path
    calibration: Arrays | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Placement:
    """Where the operators of an artifact run, as the runtime itself planned them.

    Attributes:
        integer: Compute operators (convolutions, matrix products) in int8.
        floating: Compute operators left in float.
        operators: Every operator type of the planned graph with its count.
    """

    integer: int
    floating: int
    operators: Mapping[str, int]

    @property
    def integer_share(self) -> float:
        """Share of compute operators that run in int8, 0 to 1."""
        total = self.integer + self.floating
        return self.integer / total if total else 0.0


@dataclass(frozen=True)
class Closeness:
    """How close outputs are to the source model's, over ``n`` inputs.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        cosine: Smallest cosine similarity of any one output to its source output.
        agreement: Share of inputs with the same arg-max over the last axis of the first output.
        batches: Batch sizes that were tried and gave the same answers.
    """

    n: int
    max_abs: float
    cosine: float
    agreement: float
    batches: tuple[int, ...]


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
        runtime_version: Of the runtime that the outcome was checked in.
        seconds: Wall time of the conversion.
        peak_rss_bytes: Of the process that converted.
        tools: Tool name to version.
        log: Tail of what the tools printed.
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
    closeness: Closeness
    seconds: float
    peak_rss_bytes: int
    tools: Mapping[str, str]
    log: str = ""

    def to_artifact(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Return inputs in the source's layout as the artifact takes them."""
        return {
            name: np.ascontiguousarray(np.transpose(array, self.axes[name]))
            if name in self.axes
            else array
            for name, array in inputs.items()
        }


@dataclass(frozen=True)
class Benchmark:
    """Latency and memory of an artifact on this machine, batch 1, one fresh process.

    Attributes:
        latencies_s: One per run, warm-up runs left out, in order.
        load_s: From opening the file to being able to infer.
        peak_rss_bytes: Peak of the process.
        idle_rss_bytes: Of the process before the runtime was imported and the model loaded.
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
    raise NotImplementedError


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
    raise NotImplementedError


def source_outputs(
    model: SourceModel,
    inputs: Arrays,
    *,
    batch: int = 8,
    threads: int = 1,
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
    raise NotImplementedError


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
    """
    raise NotImplementedError
