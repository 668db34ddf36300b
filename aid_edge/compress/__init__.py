"""Pruning a source model and winning its accuracy back; the heavy modules run in workers only."""

from aid_edge.compress.preparation import prepare, refusal_of
from aid_edge.compress.request import CurvePoint, Prepared, PrepareRequest, TrainData, Training

__all__ = [
    "CurvePoint",
    "PrepareRequest",
    "Prepared",
    "TrainData",
    "Training",
    "prepare",
    "refusal_of",
]
