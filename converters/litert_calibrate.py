"""Ranges of activations from calibration samples; memory stays flat in their number.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import calibrator
from ai_edge_quantizer.utils import qsv_utils
from numpy.typing import NDArray

from aid_edge.converter import Arrays
from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.recipe import StaticInt8
from aid_edge.samples import Samples
from converters import litert_flatbuffer

BINS = 2048
STEPS = 2**8 - 1
"""Steps of an 8-bit range."""

PERCENTILE = 0.9999
"""Share of values that the range holds at either end."""

_READ_SAMPLES = 16
_SHARES = np.linspace(0.3, 1.0, 71)
"""Shares of the observed range that are tried for the least squared error."""

Ranges = dict[str, dict[str, Any]]
"""Tensor name to ``{"min": ..., "max": ...}``, as ai-edge-quantizer takes them."""


def calibrate(
    path: Path,
    recipe: StaticInt8,
    data: tuple[SourceModel, Arrays, Mapping[str, tuple[int, ...]]],
    rules: Any,
) -> Ranges:
    """Return the range of every activation of the float model at ``path``.

    Args:
        path: A finished float model: its signature has the declared names.
        recipe: Says how ranges are chosen, and from how many samples.
        data: The source model, calibration inputs in its layout, and which inputs are permuted.
        rules: The quantizer's recipe manager: what is quantized at all.
    """
    # Its default, a moving average of extremes, gives ranges that clip the logits.
    statistics = calibrator.Calibrator(
        str(path), num_threads=1, qsv_update_func=qsv_utils.min_max_update
    )
    with_float = _Reader(path, data, recipe.samples)
    for number, chunk in enumerate(with_float.chunks(), start=1):
        # It makes a list of what it is given: a few at a time.
        statistics.calibrate({litert_flatbuffer.SIGNATURE: chunk}, rules)
        progress(0.6 + 0.15 * with_float.share(number), "calibrate")
    ranges: Ranges = statistics.get_model_qsvs()
    if recipe.method == "min-max":
        return ranges
    return _narrowed(path, with_float, ranges, recipe)


def _narrowed(path: Path, reader: _Reader, ranges: Ranges, recipe: StaticInt8) -> Ranges:
    """Return ranges that leave out what is rare; inputs and outputs keep theirs."""
    interpreter = Interpreter(
        model_path=str(path), num_threads=1, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    edges = {d["index"] for d in (*interpreter.get_input_details(),
                                  *interpreter.get_output_details())}  # fmt: skip
    watched: dict[str, tuple[int, float, float]] = {}
    constants = _constants(path)
    for detail in interpreter.get_tensor_details():
        name, found = detail["name"], ranges.get(detail["name"])
        if found is None or detail["index"] in edges or name in constants:
            continue
        low, high = (float(np.min(found["min"])), float(np.max(found["max"])))
        if np.dtype(detail["dtype"]).kind == "f" and high > low:
            watched[name] = (detail["index"], low, high)
    counts = {name: np.zeros(BINS, np.int64) for name in watched}
    inputs = reader.details(interpreter)
    for number, chunk in enumerate(reader.chunks(), start=1):
        for feed in chunk:
            for name, value in feed.items():
                interpreter.set_tensor(inputs[name]["index"], value)
            interpreter.invoke()
            for name, (index, low, high) in watched.items():
                values = interpreter.get_tensor(index)
                counts[name] += np.histogram(values, BINS, (low, high))[0]
        progress(0.75 + 0.1 * reader.share(number), "count values")
    choose = percentile if recipe.method == "percentile" else least_error
    narrowed = dict(ranges)
    for name, (_, low, high) in watched.items():
        found_low, found_high = choose(counts[name], low, high)
        like = np.asarray(ranges[name]["min"])
        narrowed[name] = ranges[name] | {
            "min": np.full(like.shape, found_low, np.float32),
            "max": np.full(like.shape, found_high, np.float32),
        }
    return narrowed


def percentile(counts: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Return the range with ``PERCENTILE`` of the values at either end, and zero."""
    edges = np.linspace(low, high, BINS + 1)
    shares = np.cumsum(counts) / max(int(counts.sum()), 1)
    first = int(np.searchsorted(shares, 1 - PERCENTILE))
    last = min(int(np.searchsorted(shares, PERCENTILE)), BINS - 1)
    return min(float(edges[first]), 0.0), max(float(edges[last + 1]), 0.0)


def least_error(counts: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Return the share of the range with the least mean squared error of rounding and clipping.

    Banner et al., "Post-training 4-bit quantization of convolution networks for rapid-deployment"
    (2019), https://arxiv.org/abs/1810.05723; here by search over the histogram.
    """
    edges = np.linspace(low, high, BINS + 1)
    centers = (edges[:-1] + edges[1:]) / 2
    best, chosen = np.inf, 1.0
    for share in _SHARES:
        lowest, highest = min(low * share, 0.0), max(high * share, 0.0)
        scale = (highest - lowest) / STEPS
        if scale <= 0:
            continue
        rounded = np.clip(np.round((centers - lowest) / scale), 0, STEPS) * scale + lowest
        error = float(counts @ (rounded - centers) ** 2)
        if error < best:
            best, chosen = error, float(share)
    return min(low * chosen, 0.0), max(high * chosen, 0.0)


def _constants(path: Path) -> frozenset[str]:
    found, _ = litert_flatbuffer.read(path)
    return frozenset(
        tensor.name.decode()
        for tensor in found.subgraphs[0].tensors
        if (data := found.buffers[tensor.buffer].data) is not None and len(data)
    )


class _Reader:
    """Goes through calibration samples as the artifact takes them, as often as it is asked."""

    def __init__(
        self,
        path: Path,
        data: tuple[SourceModel, Arrays, Mapping[str, tuple[int, ...]]],
        most: int,
    ) -> None:
        self._model, self._calibration, self._axes = data
        count = len(next(iter(self._calibration.values())))
        self._most = min(most, count)
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._details = self.details(interpreter)
        shape = next(iter(self._details.values()))["shape"]
        self._batch = int(shape[0]) if self._model.batched and len(shape) else 1
        if self._most < self._batch:
            raise ConversionError(
                f"the model takes {self._batch} samples at once; there are {self._most} to "
                "calibrate with"
            )

    @staticmethod
    def details(interpreter: Any) -> dict[str, Any]:
        """Return the details of inputs by their declared names."""
        runner = interpreter.get_signature_runner(litert_flatbuffer.SIGNATURE)
        found: dict[str, Any] = runner.get_input_details()
        return found

    def share(self, chunk: int) -> float:
        """Return the share of samples that are done after so many chunks."""
        return min(chunk * _READ_SAMPLES / self._most, 1.0)

    def chunks(self) -> Iterator[list[dict[str, NDArray[Any]]]]:
        """Yield a few feeds at a time."""
        size = max(_READ_SAMPLES // self._batch, 1) * self._batch
        for arrays in self._arrays(size):
            feeds = [
                {name: self._moved(name, array) for name, array in feed.items()}
                for feed in self._model.feeds(arrays, self._batch)
            ]
            whole = [f for f in feeds if self._is_whole(f)]
            if whole:
                yield whole

    def _arrays(self, size: int) -> Iterator[Mapping[str, NDArray[Any]]]:
        if isinstance(self._calibration, Samples):
            yield from self._calibration.first(self._most).batches(size)
            return
        for start in range(0, self._most, size):
            stop = min(start + size, self._most)
            yield {name: array[start:stop] for name, array in self._calibration.items()}

    def _moved(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        value = np.transpose(array, self._axes[name]) if name in self._axes else array
        return np.ascontiguousarray(value, self._details[name]["dtype"]).reshape(value.shape)

    def _is_whole(self, feed: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether a feed has a full batch; the last one may not."""
        return all(value.shape == tuple(self._details[name]["shape"])
                   for name, value in feed.items())  # fmt: skip
