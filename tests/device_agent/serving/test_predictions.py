"""The memory of recent predictions and the ids that it is asked by."""

from __future__ import annotations

import pytest

from device_agent.contract.messages import ReleaseRef
from device_agent.contract.names import digest_of
from device_agent.serving.predictions import Prediction, Predictions, new_inference_id

RELEASE = ReleaseRef("tiny", "1.0.0", digest_of(b"1"))


def prediction(name: str) -> Prediction:
    return Prediction(name, RELEASE, 1.0, "bee", 0.5, 0.01)


def test_oldest_is_forgotten_first() -> None:
    ring = Predictions(max_predictions=2)
    for name in ("a", "b", "c"):
        ring.remember(prediction(name))
    assert ring.find("a") is None
    assert ring.find("b") == prediction("b")
    assert [p.id for p in ring.newest(5)] == ["c", "b"]
    assert [p.id for p in ring.newest(1)] == ["c"]


def test_ring_of_none_remembers_nothing() -> None:
    ring = Predictions(max_predictions=0)
    ring.remember(prediction("a"))
    assert ring.find("a") is None


def test_ids_differ_and_sort_by_time() -> None:
    ids = [new_inference_id(1_700_000_000 + n) for n in range(100)]
    assert ids == sorted(ids)
    assert len({new_inference_id(1.0) for _ in range(1000)}) == 1000
    assert all(len(i) == 26 for i in ids)


@pytest.mark.parametrize(
    ("now_unix_s", "prefix"), [(0, "0000000000"), (1469918176.385, "01ARYZ6S41")]
)
def test_id_begins_with_the_time(now_unix_s: float, prefix: str) -> None:
    """The second is the example of the ULID specification."""
    assert new_inference_id(now_unix_s).startswith(prefix)
