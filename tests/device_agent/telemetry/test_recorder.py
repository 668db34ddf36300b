"""What the recorder counts, per release and window."""

from __future__ import annotations

import threading

import pytest

from device_agent.contract.messages import Outcomes, ReleaseRef, Telemetry, decode, encode
from device_agent.contract.names import digest_of
from device_agent.telemetry import recorder
from device_agent.telemetry.recorder import Recorder

OLD = ReleaseRef("tiny", "1.0.0", digest_of(b"1"))
NEW = ReleaseRef("tiny", "1.1.0", digest_of(b"2"))


def test_every_request_counts_once_in_one_outcome() -> None:
    """M-4.5-1."""
    counts = Recorder(100.0)
    counts.record(OLD, "ok", queue_s=0.001, compute_s=0.01, total_s=0.02, top_class=3,
                  confidence=0.95)  # fmt: skip
    counts.record(OLD, "ok", queue_s=0.001, compute_s=0.03, total_s=0.04, top_class=3,
                  confidence=1.0)  # fmt: skip
    counts.record(OLD, "deadline", queue_s=0.5, total_s=1.0)
    counts.record(OLD, "rejected", total_s=0.0001)
    counts.record(NEW, "error")
    windows = {w.release: w for w in counts.take_windows(110.0)}
    old = windows[OLD]
    assert (old.start_unix_s, old.duration_s) == (100.0, 10.0)
    assert old.outcomes == Outcomes(ok=2, deadline=1, rejected=1)
    assert {phase: s.count for phase, s in old.latency.items()} == {
        "queue": 3, "compute": 2, "total": 4,
    }  # fmt: skip
    assert old.latency["compute"].total_s == pytest.approx(0.04)
    assert old.latency["compute"].quantile(0) == pytest.approx(0.01, rel=0.025)
    assert old.classes == {"3": 2}
    assert old.confidence == (0, 0, 0, 0, 0, 0, 0, 0, 0, 2)
    assert windows[NEW].outcomes == Outcomes(error=1)
    assert windows[NEW].latency == {}


def test_windows_follow_one_another_without_gap() -> None:
    counts = Recorder(0.0)
    counts.record(OLD, "ok")
    assert [w.outcomes.ok for w in counts.take_windows(10.0)] == [1]
    assert counts.take_windows(20.0) == ()
    counts.record(OLD, "ok")
    (window,) = counts.take_windows(30.0)
    assert (window.start_unix_s, window.duration_s) == (20.0, 10.0)


def test_clock_that_steps_back_gives_no_negative_window() -> None:
    counts = Recorder(100.0)
    counts.record(OLD, "ok")
    (window,) = counts.take_windows(50.0)
    assert window.duration_s == 0


def test_largest_resident_set_and_restarts() -> None:
    counts = Recorder(0.0)
    for size in (10, 30, 20):
        counts.observe_rss(OLD, size)
    counts.count_restart(OLD)
    (window,) = counts.take_windows(1.0)
    assert (window.rss_bytes, window.restarts) == (30, 1)
    assert window.outcomes == Outcomes()


def test_number_of_classes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_CLASSES", 2)
    counts = Recorder(0.0)
    for top_class in (5, 6, 7, 5, 8):
        counts.record(OLD, "ok", top_class=top_class)
    (window,) = counts.take_windows(1.0)
    assert window.classes == {"5": 2, "6": 1}
    assert window.outcomes.ok == 5


@pytest.mark.parametrize(("confidence", "index"), [(-1.0, 0), (0.0, 0), (0.55, 5), (7.0, 9)])
def test_confidence_bins(confidence: float, index: int) -> None:
    counts = Recorder(0.0)
    counts.record(OLD, "ok", confidence=confidence)
    (window,) = counts.take_windows(1.0)
    assert [i for i, n in enumerate(window.confidence) if n] == [index]


def test_windows_travel_as_telemetry() -> None:
    counts = Recorder(0.0)
    for seconds in (0.0, 1e-9, 0.1, 1e9):
        counts.record(OLD, "ok", queue_s=seconds, compute_s=seconds, total_s=seconds)
    message = Telemetry(boot_id="0" * 32, seq=1, windows=counts.take_windows(1.0))
    assert decode(encode(message)) == message


def test_many_threads_lose_nothing() -> None:
    counts = Recorder(0.0)

    def work() -> None:
        for _ in range(500):
            counts.record(OLD, "ok", total_s=0.01, top_class=1, confidence=0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken = [*counts.take_windows(1.0)]
    for thread in threads:
        thread.join()
    taken += counts.take_windows(2.0)
    assert sum(w.outcomes.ok for w in taken) == 2000
    assert sum(w.latency["total"].count for w in taken) == 2000
