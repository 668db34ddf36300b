"""Layer by layer: a quantized artifact against the float one of the same runtime."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aid_edge import isolate
from aid_edge.converter import Arrays
from aid_edge.diagnose.records import Layer, LayerRecord, Tally, ranked
from aid_edge.errors import ConversionError
from aid_edge.isolate import Limits, Progress
from aid_edge.samples import Samples

RUNTIMES = ("onnx_runtime", "litert")
"""Runtimes whose inner tensors can be read: module ``aid_edge.diagnose.<name>_probe``."""

DEFAULT_SAMPLES = 32
MAX_SAMPLES = 1024


class Probe(Protocol):
    """Two artifacts of one runtime, loaded so that inner tensors can be read.

    Attributes:
        layers: In the order of execution.
        shapes: Of the inputs, by name; -1 may vary.
    """

    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def run(self, feeds: Arrays) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield layer index, float output and quantized output of one inference."""


def layers(
    floating: Path,
    quantized: Path,
    runtime: str,
    inputs: Arrays,
    *,
    samples: int = DEFAULT_SAMPLES,
    limits: Limits | None = None,
    on_progress: Progress | None = None,
) -> tuple[LayerRecord, ...]:
    """Return how each layer of an artifact bears quantization; the worst first.

    Runs in a worker process, one sample after the other: memory does not depend on their number.
    Integer operators are simulated in float (quantize, compute, quantize), so what is found is
    the error of quantization itself and not of one processor's kernels.

    Args:
        floating: The float32 artifact for the same runtime and profile.
        quantized: The int8 artifact.
        runtime: One of :data:`RUNTIMES`.
        inputs: Real inputs [n, ...] in the artifact's layout and types.
        samples: How many of them are used at most, 1 to ``MAX_SAMPLES``.
        limits: Of the worker process.
        on_progress: Told how far it is.

    Raises:
        ConversionError: The runtime's inner tensors cannot be read, or no layer is in both.
        StepCrashedError: The process died, or ran out of memory or time.
    """
    if runtime not in RUNTIMES:
        raise ConversionError(
            f"layers of {runtime} artifacts cannot be looked into",
            hint=f"Possible for {', '.join(RUNTIMES)}.",
        )
    count = max(1, min(samples, MAX_SAMPLES))
    given = inputs if isinstance(inputs, Samples) else {n: a[:count] for n, a in inputs.items()}
    return isolate.run_with(
        limits or Limits(), on_progress, _layers_in_worker, (floating, quantized), runtime,
        given, count,
    ).value  # fmt: skip


def can_diagnose(runtime: str) -> bool:
    """Return whether :func:`layers` knows how to look into artifacts of ``runtime``."""
    return runtime in RUNTIMES


def _layers_in_worker(
    artifacts: tuple[Path, Path], runtime: str, inputs: Arrays, count: int
) -> tuple[LayerRecord, ...]:
    module = importlib.import_module(f"aid_edge.diagnose.{runtime}_probe")
    probe: Probe = module.open_probe(*artifacts)
    if not probe.layers:
        raise ConversionError(
            f"{artifacts[1].name}: no layer is found in both the float and the int8 artifact"
        )
    tallies = [Tally() for _ in probe.layers]
    for done, feeds in enumerate(_feeds(inputs, probe.shapes, count), start=1):
        for index, exact, noisy in probe.run(feeds):
            tallies[index].add(exact, noisy, probe.layers[index].bounds)
        isolate.progress(done / count, "compare layers")
    return ranked(probe.layers, tallies)


def _feeds(
    inputs: Arrays, shapes: Mapping[str, tuple[int, ...]], count: int
) -> Iterator[dict[str, Any]]:
    """Yield what one inference takes, ``count`` times at most.

    A model without a batch axis takes whole samples, else as many rows as its first axis has.
    """
    whole = any(inputs[name].ndim > len(shape) for name, shape in shapes.items())
    rows = {n: 1 if whole or not shape else max(shape[0], 1) for n, shape in shapes.items()}
    found = min(len(inputs[name]) // n for name, n in rows.items())
    for i in range(min(count, found)):
        one = {name: inputs[name][i * n : (i + 1) * n] for name, n in rows.items()}
        yield {n: np.array(part[0] if whole else part, order="C") for n, part in one.items()}
