"""Calibration inputs as quantizers want them: one at a time, as often as they ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.converter import Arrays
from aid_edge.model import SourceModel
from aid_edge.samples import Samples

_READ_SAMPLES = 16


class Feeds:
    """What the source model takes at a time, sample by sample.

    Samples on disk are read in small batches and again on each round, so that memory stays flat
    however many there are and however often a quantizer goes through them.
    """

    def __init__(self, model: SourceModel, inputs: Arrays, count: int) -> None:
        self._model, self._inputs = model, inputs
        self._count = min(count, _length(inputs))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for batch in self._batches():
            for feed in self._model.feeds(batch):
                yield {name: np.array(array, order="C") for name, array in feed.items()}

    def _batches(self) -> Iterator[Arrays]:
        if isinstance(self._inputs, Samples):
            yield from self._inputs.first(self._count).batches(_READ_SAMPLES)
        else:
            yield {name: array[: self._count] for name, array in self._inputs.items()}


def _length(inputs: Arrays) -> int:
    return inputs.count if isinstance(inputs, Samples) else len(next(iter(inputs.values())))
