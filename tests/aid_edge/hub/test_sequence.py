from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aid_edge.hub.sequence import MAX_RUNS, Stream


def _stored(*arrivals: tuple[int, int]) -> Stream:
    stream = Stream()
    for seq, floor in arrivals:
        stream = stream.store(seq, floor)
    return stream


def test_record_beyond_a_gap_is_stored_but_not_acknowledged() -> None:
    """M-4.9-6: ack.seq is the end of the unbroken run."""
    stream = _stored((1, 1), (3, 1))
    assert stream.through == 1
    assert stream.holds(3)
    assert not stream.holds(2)
    assert stream.store(2, 1).through == 3


def test_nobody_waits_below_the_floor() -> None:
    """M-4.9-6: what the device dropped does not hold up what it has."""
    stream = _stored((1, 1), (5, 4), (4, 4))
    assert stream.through == 5
    assert not stream.holds(2)


def test_late_copy_of_a_dropped_record_is_still_new_once() -> None:
    stream = _stored((4, 4))
    assert stream.through == 4
    assert not stream.holds(2)
    stream = stream.store(2, 2)
    assert stream.holds(2)
    assert not stream.holds(1)
    assert not stream.holds(3)


def test_gaps_are_bounded() -> None:
    stream = Stream()
    for seq in range(3, 3 + 2 * MAX_RUNS, 2):
        assert not stream.is_full(seq)
        stream = stream.store(seq, 1)
    assert stream.is_full(10**6)
    assert not stream.is_full(1)
    assert len(stream.runs) == MAX_RUNS


@given(st.lists(st.integers(1, 40), max_size=120), st.data())
def test_every_order_stores_each_record_once(arrivals: list[int], data: st.DataObject) -> None:
    """M-4.9-7, against a set: whatever order, repetition and dropping."""
    held: set[int] = set()
    floor = 1
    stream = Stream()
    for seq in arrivals:
        floor = max(floor, data.draw(st.integers(1, seq)))
        own_floor = min(floor, seq)
        assert stream.holds(seq) == (seq in held)
        stream = stream.store(seq, own_floor)
        held.add(seq)
        assert {s for s in range(1, 41) if stream.holds(s)} == held
        # Everything up to the acknowledgement is stored, or below what the device still has.
        assert all(s in held or s < floor for s in range(1, stream.through + 1))
        first_missing = next(s for s in range(own_floor, 99) if s not in held)
        assert stream.through >= first_missing - 1
