"""Ranges from histograms: each method keeps its promise."""

from __future__ import annotations

import numpy as np
import pytest

from aid_edge.errors import ConversionError
from converters.onnx_ranges import BINS, LEVELS, Histogram, choose


def _histogram(values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    return Histogram(low, high, np.histogram(values, BINS, (low, high))[0])


def _error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / (LEVELS - 1)
    zero = np.round(-low / step)
    codes = np.clip(np.round(values / step) + zero, 0, LEVELS - 1)
    return float(np.mean(((codes - zero) * step - values) ** 2))


@pytest.fixture
def tailed() -> np.ndarray:
    draws = np.random.default_rng(0)
    return np.concatenate([draws.standard_normal(200_000), [60.0, -25.0]])


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_outliers_lose_their_codes(method: str, tailed: np.ndarray) -> None:
    low, high = choose(_histogram(tailed), method)
    assert -25 < low < -2.5
    assert 2.5 < high < 60


def test_the_extremes_are_kept_by_min_max(tailed: np.ndarray) -> None:
    assert choose(_histogram(tailed), "min-max") == (-25.0, 60.0)


def test_mse_has_the_least_error(tailed: np.ndarray) -> None:
    histogram = _histogram(tailed)
    errors = {
        m: _error(tailed, *choose(histogram, m)) for m in ("min-max", "percentile", "entropy")
    }
    assert _error(tailed, *choose(histogram, "mse")) <= 1.02 * min(errors.values())


@pytest.mark.parametrize("method", ["min-max", "percentile", "entropy", "mse"])
def test_zero_has_a_code(method: str) -> None:
    low, high = choose(_histogram(np.random.default_rng(1).uniform(3, 9, 10_000)), method)
    assert low == 0
    assert 5 < high <= 9


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_what_begins_at_zero_keeps_beginning_there(method: str) -> None:
    values = np.maximum(np.random.default_rng(1).standard_normal(50_000), 0)
    low, high = choose(_histogram(values), method)
    assert low == 0
    assert 2 < high <= values.max()


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_a_constant_is_no_problem(method: str) -> None:
    assert choose(Histogram(2.0, 2.0, np.zeros(BINS, np.int64)), method) == (0.0, 2.0)


def test_symmetric_ranges_look_at_both_sides(tailed: np.ndarray) -> None:
    low, high = choose(_histogram(tailed), "mse", symmetric=True)
    assert low == pytest.approx(-high, rel=0.1)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ConversionError, match=r"by guess.*percentile"):
        choose(Histogram(0.0, 1.0, np.ones(BINS, np.int64)), "guess")
