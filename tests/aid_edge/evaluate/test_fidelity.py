from __future__ import annotations

import numpy as np
import pytest

from aid_edge.errors import ConversionError
from aid_edge.evaluate.fidelity import MAX_SQNR_DB, compare

SOURCE = np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32)


def test_equal_outputs_are_perfect() -> None:
    same = compare([SOURCE], [SOURCE.copy()], classification=True)
    assert (same.agreement, same.cosine, same.max_abs) == (1.0, 1.0, 0.0)
    assert same.sqnr_db == MAX_SQNR_DB
    assert same.agreement_interval is not None
    assert same.agreement_interval.low < 1.0


def test_known_noise_gives_the_known_ratio() -> None:
    noise = np.random.default_rng(1).normal(scale=0.01, size=SOURCE.shape).astype(np.float32)
    close = compare([SOURCE], [SOURCE + noise], classification=True, seed=3)
    expected = 10 * np.log10((SOURCE**2).sum() / (noise**2).sum())
    assert close.sqnr_db == pytest.approx(expected, abs=0.01)
    assert close.sqnr_interval is not None
    assert close.sqnr_interval.low < expected < close.sqnr_interval.high
    assert close.max_abs == pytest.approx(np.abs(noise).max(), rel=1e-3)
    assert close == compare([SOURCE], [SOURCE + noise], classification=True, seed=3)


def test_several_outputs_count_together_and_agreement_is_of_the_first() -> None:
    wrong = -SOURCE
    mixed = compare([SOURCE, SOURCE], [SOURCE, wrong], classification=True)
    assert mixed.agreement == 1.0
    assert mixed.cosine == pytest.approx(0.0, abs=1e-6)
    assert compare([SOURCE], [wrong], classification=False).agreement is None


def test_crops_are_not_independent() -> None:
    groups = [str(i // 8) for i in range(40)]
    candidate = SOURCE.copy()
    candidate[:8] = -candidate[:8]
    alone = compare([SOURCE], [candidate], classification=True)
    clustered = compare([SOURCE], [candidate], classification=True, groups=groups)
    assert clustered.units == 5
    assert alone.agreement_interval is not None
    assert clustered.agreement_interval is not None
    assert clustered.agreement_interval.low < alone.agreement_interval.low


def test_zero_outputs_have_a_cosine() -> None:
    zeros = np.zeros((6, 3))
    assert compare([zeros], [zeros], classification=False).cosine == 1.0
    assert compare([zeros], [zeros + 1], classification=False).cosine == 0.0


def test_broken_outputs_are_refused() -> None:
    broken = SOURCE.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ConversionError, match="NaN or infinity for 1 of 40"):
        compare([SOURCE], [broken], classification=True)
    with pytest.raises(ConversionError, match="have 9 values; the source's have 10"):
        compare([SOURCE], [SOURCE[:, :9]], classification=True)
