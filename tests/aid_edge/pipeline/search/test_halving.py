from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from aid_edge.evaluate.statistics import PairedCounts, paired_drop_interval
from aid_edge.pipeline.findings import (
    AccuracyFinding,
    Candidate,
    FidelityFinding,
    MetricFinding,
)
from aid_edge.pipeline.search.halving import (
    FIRST_ROUND,
    clearly_misses,
    clearly_worse,
    critical,
    rounds,
    shuffled,
)
from device_agent.contract.profile import Duration, Hard, Size

HARD = Hard(
    artifact=Size(10**9), peak_ram=Size(10**9), latency_p95=Duration(1.0), accuracy_share=0.98,
    agreement=0.9, cosine=0.98,
)  # fmt: skip


def judged(losses: int, gains: int, n: int) -> Candidate:
    counts = PairedCounts(n - losses - gains, losses, gains, 0)
    interval = paired_drop_interval(counts)
    accuracy = AccuracyFinding(
        n=n, source=(n - gains) / n, candidate=(n - losses) / n, low=0.0, high=1.0,
        drop=counts.drop, drop_low=interval.low, drop_high=interval.high, losses=losses,
        gains=gains, p_value=0.5, detectable_drop=0.02,
    )  # fmt: skip
    return Candidate(
        id="r/x", runtime="r", recipe="x", recipe_key="x", compressed=True, accuracy=accuracy
    )


def test_rounds_grow_to_all_and_small_data_have_one() -> None:
    assert rounds(400) == (400,)
    assert rounds(2 * FIRST_ROUND - 1) == (2 * FIRST_ROUND - 1,)
    assert rounds(10_000) == (512, 2048, 10_000)
    assert all(rounds(n)[-1] == n for n in range(1, 3000, 97))


def test_order_is_by_seed_and_keeps_groups_together() -> None:
    assert sorted(shuffled(50, None, 1)) == list(range(50))
    assert shuffled(50, None, 1) == shuffled(50, None, 1) != shuffled(50, None, 2)
    groups = [f"photo{i // 5}" for i in range(50)]
    order = shuffled(50, groups, 0)
    assert sorted(order) == list(range(50))
    assert all(len({groups[i] for i in order[k : k + 5]}) == 1 for k in range(0, 50, 5))


def test_what_clearly_misses_is_stopped_and_what_may_pass_is_not() -> None:
    bad = clearly_misses(judged(100, 0, 512), HARD, looks=3)
    assert bad is not None
    assert bad.code == "accuracy-dropped"
    assert "19.5 points on 512 samples" in bad.text
    assert clearly_misses(judged(12, 0, 512), HARD, looks=3) is None
    assert clearly_misses(judged(0, 0, 512), HARD, looks=3) is None


def test_more_looks_ask_for_more() -> None:
    assert critical(1) == pytest.approx(1.645, abs=1e-3)
    assert critical(5) > critical(2) > critical(1)


def test_a_gate_at_its_margin_is_seldom_lost_by_looking_often() -> None:
    """The true drop is just what is allowed: at most 5 % of races may stop the candidate."""
    generator = np.random.default_rng(0)
    n, sizes = 2048, (256, 512, 1024, 2048)
    stopped, races = 0, 400
    for _ in range(races):
        lost = generator.random(n) < 0.02
        stopped += any(
            clearly_misses(judged(int(lost[:size].sum()), 0, size), HARD, len(sizes)) is not None
            for size in sizes
        )
    # The binomial's upper 99.9 % bound for a share of 0.05.
    assert stopped <= 36


def test_closeness_and_metrics_stop_as_well() -> None:
    close = FidelityFinding(
        data="d", n=512, units=512, agreement=0.5, agreement_low=0.45, agreement_high=0.55,
        cosine=0.5, cosine_low=0.45, cosine_high=0.55, cosine_min=0.0, max_abs=1.0, sqnr_db=3.0,
        sqnr_low=2.0, sqnr_high=4.0,
    )  # fmt: skip
    empty = Candidate(id="r/x", runtime="r", recipe="x", recipe_key="x", compressed=True)
    agreement = clearly_misses(replace(empty, fidelity=close), HARD, 2)
    assert agreement is not None
    assert agreement.code == "agreement-low"
    cosine = clearly_misses(replace(empty, fidelity=replace(close, agreement=None)), HARD, 2)
    assert cosine is not None
    assert cosine.code == "cosine-low"
    metric = MetricFinding(
        name="rmse", unit="m", higher_is_better=False, n=512, source=1.0, candidate=1.5, drop=0.5,
        drop_low=0.4, drop_high=0.6,
    )  # fmt: skip
    assert clearly_misses(replace(empty, metrics=(metric,)), HARD, 2) is not None
    near = replace(metric, drop=0.03, drop_low=-0.07, drop_high=0.13)
    assert clearly_misses(replace(empty, metrics=(near,)), HARD, 2) is None


def test_worse_means_beyond_doubt_and_on_the_same_samples() -> None:
    assert clearly_worse(judged(150, 0, 512), judged(5, 0, 512), 3)
    assert not clearly_worse(judged(8, 0, 512), judged(5, 0, 512), 3)
    assert not clearly_worse(judged(150, 0, 512), judged(5, 0, 256), 3)
