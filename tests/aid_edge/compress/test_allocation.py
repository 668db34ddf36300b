from __future__ import annotations

import pytest

from aid_edge.compress.allocation import Layer, by_rank, by_sensitivity, per_layer, rounded

WIDE, NARROW = Layer("wide", 64), Layer("narrow", 16)


@pytest.mark.parametrize(
    ("width", "expected"), [(64, 64), (45, 48), (44, 40), (36, 32), (3, 8), (0, 8)]
)
def test_a_width_is_rounded_to_the_nearest_multiple_and_never_to_nothing(
    width: float, expected: int
) -> None:
    assert rounded(WIDE, width, 8) == expected


@pytest.mark.parametrize("channels", [5, 8])
def test_a_layer_no_wider_than_the_multiple_stays_whole(channels: int) -> None:
    assert rounded(Layer("tiny", channels), 1, 8) == channels


def test_heads_share_the_multiple() -> None:
    four_heads = Layer("attention", 64, groups=4)
    assert rounded(four_heads, 7, 8) * 4 % 8 == 0
    assert rounded(four_heads, 7, 8) == 6


def test_per_layer_takes_the_same_share_of_each() -> None:
    assert per_layer([WIDE, NARROW], 0.5, 8) == [32, 8]


def test_by_rank_takes_the_least_important_of_all() -> None:
    scores = [[1.0] * 64, [9.0] * 16]
    assert by_rank([WIDE, NARROW], scores, 0.5, 8) == [24, 16]


def test_by_rank_leaves_a_tenth_of_a_layer_that_matters_to_nobody() -> None:
    assert by_rank([WIDE, NARROW], [[0.0] * 64, [9.0] * 16], 0.9, 1)[0] == 7


def test_by_sensitivity_spares_the_layer_that_bears_it_badly() -> None:
    damages = [[0.01, 0.02, 0.03], [1.0, 2.0, 3.0]]
    wide, narrow = by_sensitivity([WIDE, Layer("other", 64)], damages, 0.4, 8)
    assert wide < narrow
    assert 64 <= wide + narrow <= 88


def test_by_sensitivity_keeps_every_layer_alive() -> None:
    assert min(by_sensitivity([WIDE, NARROW], [[0.0] * 3, [0.0] * 3], 0.95, 1)) >= 1
