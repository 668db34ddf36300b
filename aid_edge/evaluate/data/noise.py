"""Makes random inputs, for shapes and speed where nothing better is at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aid_edge.evaluate.data.reading import Array, Batches, Reading, per_batch, sample_shape
from aid_edge.model import SourceModel
from aid_edge.sources.inspection import NUMPY_NAMES
from device_agent.contract.tensors import TensorInfo

DEFAULT_NOISE_SAMPLES = 32
MAX_NOISE_BYTES = 256 * 2**20
"""More than the default number of samples are made only where they take no more than this."""

FREE_DIMENSION = 16
"""Size of a dimension that may vary."""


def read_noise(model: SourceModel, limit: int | None, seed: int) -> Reading:
    """Return random samples: floats are standard normal, bytes uniform.

    Wider integers are 0 or 1, which every vocabulary has. With a limit, there are as many as it
    allows and as fit into ``MAX_NOISE_BYTES``; noise says nothing that gigabytes would say better.
    """
    shapes = {
        t.name: tuple(FREE_DIMENSION if d == -1 else d for d in sample_shape(model, t))
        for t in model.inputs
    }

    sample = sum(4 * math.prod(shape) for shape in shapes.values())
    count = DEFAULT_NOISE_SAMPLES
    if limit is not None:
        count = min(limit, max(count, MAX_NOISE_BYTES // sample))

    def batches(chosen: Sequence[int]) -> Batches:
        size = per_batch(sample)
        generator = np.random.default_rng(seed)
        for start in range(0, len(chosen), size):
            n = min(size, len(chosen) - start)
            yield {t.name: _values(t, (n, *shapes[t.name]), generator) for t in model.inputs}

    names = [f"random {i}" for i in range(count)]
    return Reading("random", names, batches, is_random=True)


def _values(tensor: TensorInfo, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    dtype = np.dtype(NUMPY_NAMES[tensor.datatype])
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        return generator.integers(low, high + 1, shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)
