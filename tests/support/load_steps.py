"""Steps for worker processes in tests of data."""

from __future__ import annotations

from aid_edge import isolate
from aid_edge.evaluate.data import load
from aid_edge.model import SourceModel


def load_in_worker(spec: str, model: SourceModel) -> tuple[int, int]:
    """Return how many samples there are, and by how many bytes loading them raised the peak."""
    before = isolate.peak_rss_bytes()
    data = load(spec, model)
    return len(data), isolate.peak_rss_bytes() - before
