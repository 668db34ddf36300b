"""Task metrics of source and candidate, with the paired interval of their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from aid_edge.evaluate.data import DataSet
from aid_edge.evaluate.metrics import compare, metric
from aid_edge.pipeline.findings import MetricFinding

Array = npt.NDArray[Any]

_DEFAULTS = {"values": "rmse", "sequences": "cer", "multi-label": "map", "classes": "top-1"}
"""What decides for targets of a kind when nobody says it and top-1 of a classifier is not it."""


def metric_for(asked: str | None, data: DataSet, *, classification: bool) -> str | None:
    """Return the metric that decides on ``data``; None where top-1 accuracy does, or nothing."""
    if asked is not None:
        return asked
    if data.targets is None or (classification and data.labels is not None):
        return None
    return _DEFAULTS[data.kind]


def metric_findings(
    name: str | None, source: Sequence[Array], candidate: Sequence[Array], data: DataSet, seed: int
) -> tuple[MetricFinding, ...]:
    """Return the metric ``name`` of source and candidate on the same samples; none without one.

    Args:
        name: See :mod:`aid_edge.evaluate.metrics`.
        source: Outputs of the source model, each [n, ...], in its order.
        candidate: Outputs of the candidate, same order and shapes.
        data: The samples with their targets.
        seed: Of the bootstrap.

    Raises:
        DataError: The metric cannot be judged on such data.
    """
    if name is None:
        return ()
    chosen = metric(name)
    found = compare(
        chosen, source, candidate, data.targets,
        kind=data.kind, groups=data.groups, seed=seed,
    )  # fmt: skip
    return (
        MetricFinding(
            name=found.name,
            unit=found.unit,
            higher_is_better=found.higher_is_better,
            n=found.n,
            source=found.source,
            candidate=found.candidate,
            drop=found.drop,
            drop_low=found.drop_interval.low,
            drop_high=found.drop_interval.high,
            detectable_drop=found.detectable_drop,
            labelled=data.targets is not None and data.kind in chosen.kinds,
        ),
    )
