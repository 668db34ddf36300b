from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract.messages import MAX_WINDOW_CHUNKS, BlobRequest, decode, encode
from device_agent.contract.names import digest_of
from device_agent.transfer.window import (
    FIRST_WINDOW_CHUNKS,
    MAX_PATIENCE_S,
    Window,
    masks_of,
)


def test_window_starts_small_and_grows_to_its_cap() -> None:
    window = Window(range(200), cap_chunks=16, now_s=0)
    assert window.next_chunks(0) == list(range(FIRST_WINDOW_CHUNKS))
    now_s = 0.0
    on_their_way = list(range(FIRST_WINDOW_CHUNKS))
    while on_their_way:
        now_s += 0.01
        assert window.arrived(on_their_way.pop(0), now_s)
        on_their_way += window.next_chunks(now_s)
        assert len(on_their_way) <= window.size_chunks <= 16
    assert window.is_done
    assert window.size_chunks == 16


def test_nothing_is_asked_for_while_half_of_the_window_is_on_its_way() -> None:
    window = Window(range(100), cap_chunks=4, now_s=0)
    assert len(window.next_chunks(0)) == 4
    window.arrived(0, 0.1)
    assert window.next_chunks(0.1) == []
    window.arrived(1, 0.2)
    assert window.next_chunks(0.2) == [4, 5]


def test_lost_chunks_are_asked_for_again_with_a_smaller_window_and_more_patience() -> None:
    window = Window(range(8), cap_chunks=8, now_s=0)
    first = window.next_chunks(0)
    patience_s = window.patience_left_s(0)
    window.give_up(patience_s)
    assert window.size_chunks == FIRST_WINDOW_CHUNKS // 2
    assert window.next_chunks(patience_s) == first[:2]
    assert window.patience_left_s(patience_s) == 2 * patience_s
    for _ in range(10):
        window.give_up(patience_s)
    assert window.size_chunks == 1
    assert window.patience_left_s(patience_s) == MAX_PATIENCE_S


def test_chunk_that_comes_after_it_was_given_up_counts() -> None:
    window = Window([0], cap_chunks=4, now_s=0)
    assert window.next_chunks(0) == [0]
    window.give_up(1)
    assert window.arrived(0, 1.5)
    assert window.is_done
    assert not window.arrived(0, 1.6)


def test_broken_chunk_is_wanted_again() -> None:
    window = Window([0], cap_chunks=4, now_s=0)
    window.next_chunks(0)
    window.refuse(0)
    assert not window.is_done
    assert window.next_chunks(0.1) == [0]


def test_chunks_that_nobody_asked_for_are_not_taken() -> None:
    window = Window([3, 5], cap_chunks=4, now_s=0)
    window.next_chunks(0)
    assert not window.arrived(4, 0.1)


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=300))
def test_masks_ask_for_exactly_the_chunks(chunks: set[int]) -> None:
    asked: list[int] = []
    for first, missing in masks_of(sorted(chunks), max_chunks=MAX_WINDOW_CHUNKS):
        request = BlobRequest(request_id=1, digest=digest_of(b""), first=first, missing=missing)
        assert decode(encode(request)) == request
        mask = int.from_bytes(bytes.fromhex(missing), "little")
        asked += [first + i for i in range(mask.bit_length()) if mask >> i & 1]
    assert asked == sorted(chunks)
