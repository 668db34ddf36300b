"""Data sets for calibration, evaluation and training: see :mod:`aid_edge.evaluate.data.opening`."""

from __future__ import annotations

from aid_edge.evaluate.data.dataset import DataSet, refuse_overlap, shared_groups
from aid_edge.evaluate.data.opening import load

__all__ = ["DataSet", "load", "refuse_overlap", "shared_groups"]
