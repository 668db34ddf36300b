"""Independent pieces of work side by side, with worker processes that an interrupt ends."""

from __future__ import annotations

import contextvars
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import TypeVar

from aid_edge import isolate
from aid_edge.pipeline.request import Progress

DEFAULT_JOBS = 2
"""More gain little: a conversion holds gigabytes, and most have few independent pieces."""

T = TypeVar("T")


def default_jobs() -> int:
    """Return how many pieces of work run at once when nobody says it."""
    return min(DEFAULT_JOBS, os.cpu_count() or 1)


def run_all(work: Sequence[Callable[[], T]], jobs: int) -> list[T]:
    """Return the outcomes of ``work`` in its order, at most ``jobs`` of them running at a time.

    The first exception, an interrupt among them, ends all worker processes, and is raised when
    every piece of work has cleared up behind itself.
    """
    if jobs == 1 or len(work) == 1:
        return [piece() for piece in work]
    done = _run(work, jobs, None)
    return [outcome for outcome in done if not isinstance(outcome, _Cut)]


def run_until(
    work: Sequence[Callable[[], T]], jobs: int, deadline_s: float | None
) -> list[T | None]:
    """Return the outcomes of ``work`` in its order; None for what was not done in time.

    What runs at the deadline is ended with its worker processes and leaves nothing behind.

    Args:
        work: Pieces, none of which returns None.
        jobs: How many run at a time.
        deadline_s: As ``time.monotonic`` counts; None means there is no hurry.
    """
    if deadline_s is None:
        return list(run_all(work, jobs))
    if time.monotonic() >= deadline_s:
        return [None] * len(work)
    done = _run(work, jobs, deadline_s)
    return [None if isinstance(outcome, _Cut) else outcome for outcome in done]


class _Cut:
    """Stands for the outcome of a piece of work that was not done in time."""


def _run(work: Sequence[Callable[[], T]], jobs: int, deadline_s: float | None) -> list[T | _Cut]:
    crew = isolate.Crew()
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="job") as pool, crew:
        # Each in a context of its own: one cannot be entered by two threads.
        futures: list[Future[T]] = [
            pool.submit(contextvars.copy_context().run, piece) for piece in work
        ]
        left = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        try:
            done, running = wait(futures, left, FIRST_EXCEPTION)
            for future in futures:
                if future in done:
                    future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            crew.stop()
            raise
        if running:
            for future in running:
                future.cancel()
            crew.stop()
    outcomes: list[T | _Cut] = []
    for future in futures:
        try:
            outcomes.append(_Cut() if future.cancelled() else future.result())
        except isolate.StoppedError:
            outcomes.append(_Cut())
    return outcomes


def one_at_a_time(on_progress: Progress) -> Progress:
    """Return ``on_progress`` for several threads to call."""
    lock = Lock()

    def tell(task: str, share: float, what: str) -> None:
        with lock:
            on_progress(task, share, what)

    return tell
