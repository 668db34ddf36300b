"""The latency sketch: error bound and exact merging (contract §6)."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract.sketch import (
    GAMMA,
    MAX_BUCKET,
    MAX_VALUE_S,
    MIN_BUCKET,
    MIN_VALUE_S,
    Sketch,
    bucket_of,
    merge,
    upper_bound_s,
)

ERROR = 0.025
durations_s = st.floats(min_value=MIN_VALUE_S, max_value=MAX_VALUE_S)


def sketch_of(values: list[float]) -> Sketch:
    counts: dict[int, int] = {}
    for value in values:
        counts[bucket_of(value)] = counts.get(bucket_of(value), 0) + 1
    return Sketch(counts=counts, total_s=math.fsum(values))


@given(
    st.lists(durations_s, min_size=1, max_size=200),
    st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0]),
)
def test_quantiles_are_within_the_bound(values: list[float], q: float) -> None:
    """M-6-1."""
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    assert sketch_of(values).quantile(q) == pytest.approx(exact, rel=ERROR)


def test_quantiles_of_a_latency_distribution_are_within_the_bound() -> None:
    """M-6-1, on the shape that latencies have."""
    source = random.Random(7)
    values = sorted(source.lognormvariate(-4, 0.7) for _ in range(20_000))
    sketch = sketch_of(values)
    for q in (0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999):
        exact = values[math.floor(q * (len(values) - 1))]
        assert abs(sketch.quantile(q) - exact) <= ERROR * exact


@given(st.lists(st.lists(durations_s, max_size=50), max_size=6))
def test_merged_sketches_are_the_sketch_of_all(parts: list[list[float]]) -> None:
    """M-6-2."""
    merged = merge(sketch_of(part) for part in parts)
    whole = sketch_of([value for part in parts for value in part])
    assert merged.counts == whole.counts
    assert merged.count == sum(map(len, parts))
    assert merged.total_s == pytest.approx(whole.total_s)


@given(st.lists(st.lists(durations_s, max_size=20), min_size=2, max_size=5))
def test_order_of_merging_does_not_matter(parts: list[list[float]]) -> None:
    """M-6-2."""
    sketches = [sketch_of(part) for part in parts]
    stepwise = merge([merge(sketches[:1]), merge(sketches[1:])])
    assert stepwise.counts == merge(reversed(sketches)).counts


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_has_a_bucket(value: float) -> None:
    """M-6-3: whatever a clock says."""
    assert MIN_BUCKET <= bucket_of(value) <= MAX_BUCKET


@given(durations_s)
def test_bucket_holds_its_values(value: float) -> None:
    """M-6-1: up to rounding at the edges."""
    upper = upper_bound_s(bucket_of(value))
    assert upper / GAMMA * (1 - 1e-9) <= value <= upper * (1 + 1e-9)


def test_bounds_are_those_of_the_values() -> None:
    """M-6-3."""
    assert bucket_of(MIN_VALUE_S) == bucket_of(0.0) == bucket_of(-1.0) == MIN_BUCKET
    assert bucket_of(MAX_VALUE_S) == bucket_of(math.inf) == MAX_BUCKET
    assert bucket_of(math.nan) == MIN_BUCKET


def test_empty_sketch_has_no_quantile() -> None:
    assert Sketch().quantile(0.5) is None
    assert Sketch().count == 0
    assert merge([]) == Sketch()


def test_bucket_without_values_is_not_a_quantile() -> None:
    sketch = Sketch(counts={-100: 0, -50: 3})
    assert sketch.quantile(0.0) == sketch.quantile(1.0) == pytest.approx(GAMMA**-50, rel=ERROR)
