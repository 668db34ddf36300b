"""The memory of recent predictions, so that a person's verdict can be bound to one."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from device_agent.contract.messages import ReleaseRef, Verdict

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True)
class Prediction:
    """One answer that was given.

    Attributes:
        id: The inference id that the response carried.
        predicted: Label or class index of the best class; empty when the model has none.
        latency_s: From the request's arrival to its answer, in seconds.
    """

    id: str
    release: ReleaseRef
    at_unix_s: float
    predicted: str
    confidence: float | None
    latency_s: float


@dataclass(frozen=True)
class FeedbackGiven:
    """A person's verdict on a remembered prediction."""

    prediction: Prediction
    verdict: Verdict
    label: str
    comment: str


class Predictions:
    """The newest predictions; safe from any thread.

    Args:
        max_predictions: How many are remembered.
    """

    def __init__(self, max_predictions: int) -> None:
        self._max = max_predictions
        self._lock = threading.Lock()
        self._ring: OrderedDict[str, Prediction] = OrderedDict()

    def remember(self, prediction: Prediction) -> None:
        """Keep ``prediction``, and forget the oldest where there is no room."""
        with self._lock:
            self._ring[prediction.id] = prediction
            while len(self._ring) > self._max:
                self._ring.popitem(last=False)

    def find(self, inference_id: str) -> Prediction | None:
        """Return the prediction of that id, or None when it is not remembered."""
        with self._lock:
            return self._ring.get(inference_id)

    def newest(self, count: int) -> tuple[Prediction, ...]:
        """Return up to ``count`` predictions, newest first."""
        with self._lock:
            return tuple(list(reversed(self._ring.values()))[:count])


def new_inference_id(now_unix_s: float) -> str:
    """Return a ULID: 26 characters that sort by time (github.com/ulid/spec)."""
    number = (int(now_unix_s * 1000) << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
