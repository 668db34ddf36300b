from __future__ import annotations

import random

from device_agent.transport import Backoff


def test_waits_are_between_zero_and_a_bound_that_doubles_up_to_the_cap() -> None:
    """M-3.5-1: full jitter."""
    waits = [
        [b.next_s() for _ in range(14)]
        for b in (Backoff(cap_s=600, base_s=1, rng=random.Random(seed)) for seed in range(300))
    ]
    for attempt in range(14):
        bound_s = min(600, 2**attempt)
        found = [w[attempt] for w in waits]
        assert all(0 <= w <= bound_s for w in found)
        assert min(found) < bound_s * 0.1
        assert max(found) > bound_s * 0.9


def test_reset_begins_anew() -> None:
    backoff = Backoff(cap_s=600, base_s=1, rng=random.Random(1))
    for _ in range(2000):
        assert backoff.next_s() <= 600
    backoff.reset()
    assert backoff.next_s() <= 1


def test_floor_is_always_waited() -> None:
    backoff = Backoff(cap_s=60, base_s=8, floor=0.5, rng=random.Random(1))
    assert 4 <= backoff.next_s() <= 8
