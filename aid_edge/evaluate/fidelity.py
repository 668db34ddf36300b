"""How close a candidate's outputs are to the source model's, without any labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.errors import ConversionError
from aid_edge.evaluate.accuracy import top1
from aid_edge.evaluate.statistics import Interval, bootstrap, clustered_share
from aid_edge.outcome import cosines

MAX_SQNR_DB = 200.0
"""Reported where outputs are equal to the last bit: no ratio is larger in float32."""


@dataclass(frozen=True)
class Fidelity:
    """Closeness of outputs over ``n`` inputs; intervals treat a group (photo) as the unit.

    Attributes:
        units: Number of independent units: groups, or inputs where there are no groups.
        agreement: Share of inputs with the same arg-max; None when the task is no classification.
        cosine: Mean over inputs of the cosine similarity of all outputs together.
        cosine_min: Smallest of them.
        max_abs: Largest absolute difference of any output value.
        sqnr_db: Signal to quantization noise: 10 log10 (sum source^2 / sum difference^2).
    """

    n: int
    units: int
    agreement: float | None
    agreement_interval: Interval | None
    cosine: float
    cosine_interval: Interval | None
    cosine_min: float
    max_abs: float
    sqnr_db: float
    sqnr_interval: Interval | None


def compare(
    source: Sequence[npt.NDArray[Any]],
    candidate: Sequence[npt.NDArray[Any]],
    *,
    classification: bool,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Fidelity:
    """Return the fidelity of a candidate.

    Args:
        source: Outputs of the source model, each [n, ...], in its order.
        candidate: Outputs of the candidate, same order and shapes.
        classification: Whether the arg-max of the first output means a class.
        groups: Cluster of each input, or None.
        seed: Of the bootstrap.

    Raises:
        ConversionError: The candidate's outputs are not finite, or of other shapes.
    """
    a, b = _flat(source), _flat(candidate)
    if a.shape != b.shape:
        raise ConversionError(f"outputs have {b.shape[1]} values; the source's have {a.shape[1]}")
    bad = int(np.sum(~np.isfinite(b).all(axis=1)))
    if bad:
        raise ConversionError(f"outputs hold NaN or infinity for {bad} of {len(b)} inputs")
    power = np.stack([np.sum(a**2, axis=1), np.sum((a - b) ** 2, axis=1)], axis=1)
    similar = cosines(a, b)
    summed = np.stack([similar, np.ones(len(a))], axis=1)
    agreement: float | None = None
    agreement_interval: Interval | None = None
    if classification:
        hits = top1(source[0]) == top1(candidate[0])
        agreement = float(np.mean(hits))
        agreement_interval = clustered_share(hits, groups)

    return Fidelity(
        n=len(a),
        units=len(a) if groups is None else len(set(groups)),
        agreement=agreement,
        agreement_interval=agreement_interval,
        cosine=float(np.mean(similar)),
        cosine_interval=bootstrap(summed, groups, lambda s: s[:, 0] / s[:, 1], seed=seed),
        cosine_min=float(np.min(similar)),
        max_abs=float(np.max(np.abs(a - b))),
        sqnr_db=float(_ratio_db(power.sum(axis=0, keepdims=True))[0]),
        sqnr_interval=bootstrap(power, groups, _ratio_db, seed=seed),
    )


def _flat(outputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    return np.concatenate([o.reshape(len(o), -1).astype(np.float64) for o in outputs], axis=1)


def _ratio_db(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return 10 log10 (signal / noise) of rows [signal, noise], within ``MAX_SQNR_DB``."""
    signal, noise = sums[:, 0], sums[:, 1]
    tiny = np.finfo(np.float64).tiny
    # A difference of logarithms, because the quotient may overflow.
    ratio = 10 * (np.log10(np.maximum(signal, tiny)) - np.log10(np.maximum(noise, tiny)))
    return np.where(noise > 0, np.clip(ratio, -MAX_SQNR_DB, MAX_SQNR_DB), MAX_SQNR_DB)
