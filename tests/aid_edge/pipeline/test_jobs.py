from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from aid_edge import isolate
from aid_edge.pipeline.cache import Cache
from aid_edge.pipeline.jobs import default_jobs, one_at_a_time, run_all


def test_outcomes_keep_the_order_of_the_work() -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(number: int) -> int:
        both.wait()  # passes only when two run at once
        return number

    assert run_all([partial(meet, n) for n in range(4)], 2) == [0, 1, 2, 3]
    assert run_all([], 2) == []


def test_one_job_runs_in_the_callers_thread() -> None:
    mine = threading.current_thread
    assert run_all([mine, mine], 1) == [mine(), mine()]
    assert 1 <= default_jobs() <= 2


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_the_first_error_ends_all_workers_and_leaves_nothing(
    tmp_path: Path, problem: type[BaseException]
) -> None:
    cache, begun = Cache(tmp_path), threading.Event()

    def fail() -> None:
        begun.wait(30)
        raise problem

    def step(name: str) -> Path:
        return cache.get("step", {"name": name}, partial(_sleep_in_worker, begun))[0]

    before = set(psutil.Process().children(recursive=True))
    work: list[Callable[[], object]] = [partial(step, "a"), fail, partial(step, "never begun")]
    with pytest.raises(problem):
        run_all(work, 2)
    assert set(psutil.Process().children(recursive=True)) <= before
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_stopped_crew_starts_nobody() -> None:
    with isolate.Crew() as crew:
        crew.stop()
        with pytest.raises(isolate.StoppedError):
            isolate.run(time.time)
    assert isolate.run(time.time).value > 0


def _sleep_in_worker(begun: threading.Event, folder: Path) -> None:
    (folder / "half").write_text("half")
    begun.set()
    isolate.run(time.sleep, 600)


def test_progress_is_told_by_one_thread_at_a_time() -> None:
    inside, most = 0, 0

    def tell(_task: str, _share: float, _what: str) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1

    told = one_at_a_time(tell)
    run_all([partial(told, "task", 0.5, "what") for _ in range(20)], 4)
    assert most == 1
