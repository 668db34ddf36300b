"""Task metrics of source and candidate, with the paired interval of their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from aid_edge.evaluate.data import DataSet
from aid_edge.model import SourceModel
from aid_edge.pipeline.findings import MetricFinding

Array = npt.NDArray[Any]


def metric_findings(
    name: str | None,
    outputs: tuple[Sequence[Array], Sequence[Array]],
    data: DataSet,
    model: SourceModel,
    seed: int,
) -> tuple[MetricFinding, ...]:
    """Return the metric that was asked for, of source and candidate on the same samples."""
    return ()
