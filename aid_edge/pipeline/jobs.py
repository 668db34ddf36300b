"""Independent pieces of work side by side, with worker processes that an interrupt ends."""

from __future__ import annotations

import contextvars
import os
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
    crew = isolate.Crew()
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="job") as pool, crew:
        # Each in a context of its own: one cannot be entered by two threads.
        futures: list[Future[T]] = [
            pool.submit(contextvars.copy_context().run, piece) for piece in work
        ]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future in done:
                    future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            crew.stop()
            raise
    return [future.result() for future in futures]


def one_at_a_time(on_progress: Progress) -> Progress:
    """Return ``on_progress`` for several threads to call."""
    lock = Lock()

    def tell(task: str, share: float, what: str) -> None:
        with lock:
            on_progress(task, share, what)

    return tell
