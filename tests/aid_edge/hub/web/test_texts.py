from __future__ import annotations

import math

import pytest

from aid_edge.hub.rows import STATUSES
from aid_edge.hub.web import texts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "\u2013"), (0.000012, "12.0 µs"), (0.0123, "12.3 ms"), (0.999, "999 ms"), (1, "1 s"),
     (75.25, "75.2 s"), (3600, "3600 s"), (math.nan, "\u2013")],
)  # fmt: skip
def test_durations_have_three_digits_and_a_unit(seconds: float | None, text: str) -> None:
    assert texts.duration(seconds) == text


def test_counts_are_grouped_and_sizes_have_a_unit() -> None:
    assert texts.count(1234567) == "1\u202f234\u202f567"
    assert texts.count(None) == "\u2013"
    assert [texts.size(n) for n in (None, 0, 900, 2048, 5 << 20, 3 << 30)] == [
        "\u2013", "0 B", "900 B", "2 KiB", "5 MiB", "3 GiB",
    ]  # fmt: skip


def test_shares_never_round_something_to_nothing() -> None:
    assert texts.share(1, 4) == "25.0 %"
    assert texts.share(1, 100_000) == "<0.1 %"
    assert texts.share(0, 10) == "0.0 %"
    assert texts.share(0, 0) == "\u2013"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (-3, "just now"), (25, "20 s ago"), (61, "1 min ago"), (7300, "2 h ago"),
     (200_000, "2 d ago"), (-7200, "in 2 h")],
)  # fmt: skip
def test_times_are_relative(seconds: float, text: str) -> None:
    assert texts.ago(1_000_000 - seconds, 1_000_000) == text


def test_a_devices_clock_may_say_anything() -> None:
    assert texts.moment(1e300) == "\u2013"
    assert texts.iso(1e300) == ""
    assert texts.moment(0) == "1970-01-01 00:00:00 UTC"
    assert texts.iso(0) == "1970-01-01T00:00:00Z"
    assert texts.ago(None, 0) == "never"


def test_every_status_has_its_own_shape_and_meaning() -> None:
    assert len({texts.sign(s) for s in STATUSES}) == len(STATUSES)
    assert set(texts.STATUS_MEANINGS) == set(STATUSES)
