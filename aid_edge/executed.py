"""Runs artifacts and source models in worker processes: for checks, predictions and benchmarks.

Everything here is called in a fresh process by :mod:`aid_edge.runner`.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge import isolate, runtimes
from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import ConversionError
from aid_edge.model import SourceModel
from aid_edge.outcome import (
    Facts,
    check_arrays,
    check_finite,
    check_same,
    is_whole,
    to_artifact,
)
from aid_edge.runtimes import Session
from aid_edge.sources.opening import run_in_worker

BATCHES = (2, 3)
LARGE_BATCH = 65
"""OpenVINO 2026.4 has answered garbage from the 65th row on (int8 transformers, AVX-512 VNNI)."""

_LARGE_BATCH_BYTES = 64 * 2**20
"""Inputs and outputs of the large batch may take this much: what lies between them takes more."""


@dataclass(frozen=True)
class Timing:
    """What a benchmark measured in its process."""

    latencies_s: tuple[float, ...]
    load_s: float
    idle_rss_bytes: int
    runtime_version: str


def check_in_worker(made: Artifact, runtime: str, samples: Arrays, *, saturates: bool) -> Facts:
    """Return what running the artifact ``made`` on ``samples`` finds.

    Args:
        made: The artifact.
        runtime: Its runtime.
        samples: A few inputs in the source model's layout.
        saturates: Whether this processor's fastest kernels may answer otherwise than a device's.

    Raises:
        ConversionError: It does not load or run, gives numbers that are not finite, or other
            answers in batches than alone.
    """
    session = runtimes.open_artifact(made.path, runtime, exact=True)
    inputs = to_artifact(samples, made.axes, session.inputs)
    outputs = run(session, inputs, 1)
    check_finite(outputs, "the artifact")
    plain = runtimes.open_artifact(made.path, runtime)
    fastest = run(plain, inputs, 1)
    if not saturates:
        check_same(outputs, fastest, "in this processor's fastest kernels")
    tried = [1]
    whole = is_whole(samples, session.inputs)
    if not whole and all(info.shape and info.shape[0] == -1 for info in session.inputs):
        tried += _check_batches(session, inputs, outputs)
        _check_batches(plain, inputs, fastest)
    with tempfile.TemporaryDirectory() as scratch:
        placement = runtimes.placement(made.path, runtime, Path(scratch))
    return Facts(
        runtimes.version(runtime), session.inputs, session.outputs, outputs, placement, tuple(tried)
    )


def _check_batches(session: Session, inputs: Arrays, single: Arrays) -> list[int]:
    """Return the batch sizes in which the answers are those of one input at a time, ``single``."""
    for batch in BATCHES:
        check_same(single, run(session, inputs, batch), f"in batches of {batch}")
    many = {name: _repeated(array, LARGE_BATCH) for name, array in inputs.items()}
    wanted = {name: _repeated(array, LARGE_BATCH) for name, array in single.items()}
    if sum(array.nbytes for array in (*many.values(), *wanted.values())) > _LARGE_BATCH_BYTES:
        return list(BATCHES)
    check_same(wanted, run(session, many, LARGE_BATCH), f"in batches of {LARGE_BATCH}")
    return [*BATCHES, LARGE_BATCH]


def _repeated(array: NDArray[Any], count: int) -> NDArray[Any]:
    return np.resize(array, (count, *array.shape[1:]))


def predict_in_worker(
    artifact: Path, runtime: str, inputs: Arrays, how: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """Return the outputs of an artifact; ``how`` is threads and batch."""
    threads, batch = how
    session = runtimes.open_artifact(artifact, runtime, threads=threads, exact=True)
    whole = is_whole(inputs, session.inputs)
    check_arrays(inputs, session.inputs, "inputs", batched=not whole)
    return run(session, inputs, batch)


def source_in_worker(model: SourceModel, inputs: Arrays, batch: int) -> dict[str, NDArray[Any]]:
    """Return the outputs of the source model."""
    count = len(next(iter(inputs.values())))
    fixed = model.inputs[0].shape[0] if model.batched else 1
    picks: list[slice | int] = list(_slices(count, batch if fixed == -1 else fixed))
    if not model.batched:
        picks = list(range(count))
    parts: list[dict[str, NDArray[Any]]] = []
    feeds = {name: _padded(array, fixed) for name, array in inputs.items()}
    names = [info.name for info in model.outputs]
    for done, outputs in enumerate(run_in_worker(model, feeds, picks), start=1):
        parts.append(dict(zip(names, outputs, strict=True)))
        isolate.progress(done / len(picks), "run the source model")
    return _joined(parts, count, whole=not model.batched)


def run(session: Session, inputs: Arrays, batch: int) -> dict[str, NDArray[Any]]:
    """Return the outputs of ``session`` for samples, ``batch`` at a time where it is free."""
    count = len(next(iter(inputs.values())))
    whole = is_whole(inputs, session.inputs)
    fixed = 1 if whole else session.inputs[0].shape[0]
    feeds = {name: _padded(array, fixed) for name, array in inputs.items()}
    picks: list[slice | int] = list(_slices(count, batch if fixed == -1 else fixed))
    if whole:
        picks = list(range(count))
    parts = []
    for done, pick in enumerate(picks, start=1):
        feed = {name: np.asarray(array[pick]) for name, array in feeds.items()}
        parts.append(session.run(feed))
        isolate.progress(done / len(picks), "infer")
    return _joined(parts, count, whole=whole)


def _joined(
    parts: Sequence[Mapping[str, NDArray[Any]]], count: int, *, whole: bool
) -> dict[str, NDArray[Any]]:
    """Return the outputs of all runs as samples [n, ...].

    Raises:
        ConversionError: Runs differ in the shape of an output, which then cannot be compared.
    """
    found = {}
    for name in parts[0]:
        arrays = [np.asarray(part[name]) for part in parts]
        sizes = {array.shape if whole else array.shape[1:] for array in arrays}
        if len(sizes) > 1 or not (whole or arrays[0].ndim):
            shapes = ", ".join(str(list(size)) for size in sorted(sizes)[:3])
            raise ConversionError(
                f"output {name} has another shape from one input to the next: {shapes}",
                hint="Give the inputs fixed sizes with --input NAME=SHAPE, or cut the model "
                "before the operator whose output depends on values.",
            )
        found[name] = np.stack(arrays) if whole else np.concatenate(arrays)[:count]
    return found


def _slices(count: int, batch: int) -> Iterator[slice]:
    for start in range(0, count, batch):
        yield slice(start, start + batch)


def _padded(array: NDArray[Any], fixed: int) -> NDArray[Any]:
    """Return ``array`` with its last sample repeated up to a multiple of ``fixed``."""
    missing = -len(array) % fixed if fixed > 1 else 0
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def benchmark_in_worker(
    artifact: Path, runtime: str, inputs: Arrays, how: tuple[int, int, int]
) -> Timing:
    """Return how long runs of an artifact take; ``how`` is threads, warm-up runs and runs."""
    threads, warmup, runs = how
    idle = isolate.peak_rss_bytes()
    started = time.perf_counter()
    session = runtimes.open_artifact(artifact, runtime, threads=threads)
    load_s = time.perf_counter() - started
    whole = is_whole(inputs, session.inputs)
    count = check_arrays(inputs, session.inputs, "inputs", batched=not whole)
    fixed = 1 if whole else max(session.inputs[0].shape[0], 1)
    feeds = {name: _padded(array, fixed) for name, array in inputs.items()}
    picks: list[slice | int] = list(_slices(count, fixed))
    if whole:
        picks = list(range(count))
    # A scalar must stay an array: ascontiguousarray would make it one of rank 1.
    batches = [{n: np.array(a[pick], order="C") for n, a in feeds.items()} for pick in picks]
    latencies = []
    gc.disable()
    for number in range(warmup + runs):
        feed = batches[number % len(batches)]
        begun = time.perf_counter()
        session.run(feed)
        latencies.append(time.perf_counter() - begun)
    gc.enable()
    return Timing(tuple(latencies[warmup:]), load_s, idle, runtimes.version(runtime))
