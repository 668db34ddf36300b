from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aid_edge.hub.queries import histogram_of
from aid_edge.hub.rows import Bucket
from aid_edge.hub.web.charts import (
    LEFT,
    MAX_BARS,
    RIGHT,
    WIDTH,
    latency_chart,
    merge_buckets,
    share_chart,
)
from device_agent.contract.sketch import MAX_VALUE_S, MIN_VALUE_S, Sketch, bucket_of

durations = st.floats(MIN_VALUE_S, MAX_VALUE_S)


def buckets_of(values: list[float]) -> tuple[Bucket, ...]:
    counts: dict[int, int] = {}
    for value in values:
        counts[bucket_of(value)] = counts.get(bucket_of(value), 0) + 1
    return histogram_of(Sketch(counts))


@given(st.lists(durations, min_size=1, max_size=60))
def test_no_answer_is_lost_and_every_bar_is_inside(values: list[float]) -> None:
    buckets = buckets_of(values)
    merged = merge_buckets(buckets, MAX_BARS)
    assert sum(b.count for b in merged) == len(values)
    assert len(merged) <= MAX_BARS
    chart = latency_chart(buckets, [("p50", values[0]), ("p95", None)])
    assert chart is not None
    for bar in chart.bars:
        assert bar.x >= LEFT - 0.01
        assert bar.x + bar.width <= WIDTH - RIGHT + 0.01
        assert chart.top - 0.01 <= bar.y
        assert bar.width > 0
        assert abs(bar.y + bar.height - chart.base) < 0.02
    assert len(chart.marks) == 1
    assert len(chart.x_ticks) >= 2
    places = [tick.at for tick in chart.x_ticks]
    assert places == sorted(places)


@given(st.lists(st.integers(0, 10**9), min_size=10, max_size=10).filter(any))
def test_axis_of_counts_is_of_whole_numbers_and_holds_the_largest(counts: list[int]) -> None:
    chart = share_chart(counts)
    assert chart is not None
    assert 2 <= len(chart.y_ticks) <= 6
    assert min(bar.y for bar in chart.bars) >= chart.top - 0.01
    assert [bar.count for bar in chart.bars] == counts


def test_nothing_is_no_chart() -> None:
    assert latency_chart([]) is None
    assert share_chart([]) is None
    assert share_chart([0] * 10) is None


def test_one_bucket_is_a_chart_with_two_labels() -> None:
    chart = latency_chart(buckets_of([0.01]))
    assert chart is not None
    assert len(chart.bars) == 1
    assert len({tick.label for tick in chart.x_ticks}) == 2


def test_round_places_are_labelled() -> None:
    chart = latency_chart(buckets_of([0.0009, 0.004, 0.03, 0.2]))
    assert chart is not None
    assert {"10 ms", "100 ms"} <= {tick.label for tick in chart.x_ticks}


@given(st.lists(durations, min_size=1, max_size=20), durations)
def test_every_mark_is_inside_however_far_from_the_answers(
    values: list[float], deadline_s: float
) -> None:
    chart = latency_chart(buckets_of(values), [("p50", values[0]), ("deadline", deadline_s)])
    assert chart is not None
    at = {mark.label.split()[0]: mark.at for mark in chart.marks}
    assert all(LEFT < place < WIDTH - RIGHT for place in at.values())
    # Bars have a width that can be seen, whatever the width of their bucket.
    if deadline_s > 1.5 * max(values):
        assert at["deadline"] > max(bar.x + bar.width for bar in chart.bars) - 1
    assert at["p50"] <= at["deadline"] or values[0] > deadline_s
    for bar in chart.bars:
        assert bar.x + bar.width <= WIDTH - RIGHT + 0.01
