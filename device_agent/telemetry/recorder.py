"""Counts what happens to inference requests, per release and reporting window."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

from device_agent.contract.messages import ModelWindow, Outcomes, ReleaseRef
from device_agent.contract.sketch import Sketch, bucket_of

Outcome = Literal["ok", "error", "deadline", "rejected"]

CONFIDENCE_BINS = 10
MAX_CLASSES = 2000
"""Different classes counted per window; answers of further classes count in no class."""


@dataclass
class _Latency:
    counts: dict[int, int] = field(default_factory=dict)
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        index = bucket_of(seconds)
        self.counts[index] = self.counts.get(index, 0) + 1
        self.total_s += seconds


@dataclass
class _Window:
    start_unix_s: float
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    latency: dict[str, _Latency] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    confidence: list[int] = field(default_factory=list)
    rss_bytes: int = 0
    restarts: int = 0


class Recorder:
    """Statistics of all releases since their windows were last taken; safe from any thread.

    Args:
        now_unix_s: When the first window begins, in Unix seconds.
    """

    def __init__(self, now_unix_s: float) -> None:
        self._lock = threading.Lock()
        self._start_unix_s = now_unix_s
        self._windows: dict[ReleaseRef, _Window] = {}
        self._requests = 0

    @property
    def requests(self) -> int:
        """Requests that were counted since the start."""
        return self._requests

    def record(
        self,
        release: ReleaseRef,
        outcome: Outcome,
        *,
        queue_s: float | None = None,
        compute_s: float | None = None,
        total_s: float | None = None,
        top_class: int | None = None,
        confidence: float | None = None,
    ) -> None:
        """Count one request.

        Args:
            release: The release that was asked.
            outcome: How it ended.
            queue_s: Time it waited for the worker, in seconds; None when it never got there.
            compute_s: Time in the runtime, in seconds; None when there was no answer.
            total_s: From the request's arrival to its answer, in seconds.
            top_class: Class index of a classification's best class.
            confidence: Its probability, 0 to 1.
        """
        with self._lock:
            self._requests += 1
            window = self._window(release)
            window.outcomes[outcome] = window.outcomes.get(outcome, 0) + 1
            for phase, seconds in (("queue", queue_s), ("compute", compute_s), ("total", total_s)):
                if seconds is not None:
                    window.latency.setdefault(phase, _Latency()).add(seconds)
            if top_class is not None:
                name = str(top_class)
                if name in window.classes or len(window.classes) < MAX_CLASSES:
                    window.classes[name] = window.classes.get(name, 0) + 1
            if confidence is not None:
                window.confidence = window.confidence or [0] * CONFIDENCE_BINS
                window.confidence[_bin_of(confidence)] += 1

    def observe_rss(self, release: ReleaseRef, rss_bytes: int) -> None:
        """Keep the largest resident set, in bytes, of the release's worker."""
        with self._lock:
            window = self._window(release)
            window.rss_bytes = max(window.rss_bytes, rss_bytes)

    def count_restart(self, release: ReleaseRef) -> None:
        """Count that the release's worker had to be started again."""
        with self._lock:
            self._window(release).restarts += 1

    def take_windows(self, now_unix_s: float) -> tuple[ModelWindow, ...]:
        """Return the window of every release that had one, and begin new ones at ``now_unix_s``."""
        with self._lock:
            windows, self._windows = self._windows, {}
            self._start_unix_s = now_unix_s
        return tuple(
            ModelWindow(
                release=release,
                start_unix_s=window.start_unix_s,
                duration_s=max(0.0, now_unix_s - window.start_unix_s),
                outcomes=Outcomes(**window.outcomes),
                latency={
                    phase: Sketch(counts=latency.counts, total_s=latency.total_s)
                    for phase, latency in window.latency.items()
                },
                classes=window.classes,
                confidence=tuple(window.confidence),
                rss_bytes=window.rss_bytes,
                restarts=window.restarts,
            )
            for release, window in windows.items()
        )

    def _window(self, release: ReleaseRef) -> _Window:
        window = self._windows.get(release)
        if window is None:
            window = self._windows[release] = _Window(self._start_unix_s)
        return window


def _bin_of(confidence: float) -> int:
    return min(CONFIDENCE_BINS - 1, max(0, int(confidence * CONFIDENCE_BINS)))
