"""Where candidates are made: here and on real clusters of two workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aid_edge import isolate
from aid_edge.errors import UsageError
from aid_edge.pipeline import executors
from aid_edge.pipeline.cache import tool_versions
from aid_edge.pipeline.executors import ExecutorError, LocalExecutor, open_executor

CLUSTER = Path(__file__).parents[2] / "support" / "cluster_work.py"


def test_without_an_address_work_is_done_here(tmp_path: Path) -> None:
    with open_executor(None, 2, tmp_path) as executor:
        assert isinstance(executor, LocalExecutor)
        assert executor.run([partial(int, n) for n in ("1", "2")]) == [1, 2]


def test_what_is_not_done_in_time_is_none(tmp_path: Path) -> None:
    with open_executor(None, 1, tmp_path) as executor:
        assert executor.run([partial(int, "1")], time.monotonic() + 100) == [1]
        assert executor.run([partial(int, "1")], time.monotonic() - 1) == [None]
        slow = partial(isolate.run, time.sleep, 600)
        assert executor.run([slow], time.monotonic() + 1) == [None], "its process was ended"


@pytest.mark.parametrize(
    "address", ["", "dask", "dask://", "spark://h:1", "ray://host", "dask://h:x"]
)
def test_other_addresses_are_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="no address of a cluster") as caught:
        open_executor(address, 1, tmp_path)
    assert "dask://HOST:PORT" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": ""}, "does not see the step cache"),
        ({"writable": False}, "cannot write the step cache"),
        ({"tools": {**tool_versions(), "torch": "1.0"}}, "other tools: .*torch 1.0"),
    ],
)
def test_workers_that_do_not_fit_are_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    def ask(describe: Any) -> list[dict[str, Any]]:
        found = describe()
        return [found, {**found, "where": "far-away", **change}]

    with pytest.raises(ExecutorError, match=f"worker on far-away.*{words}"):
        executors._check_workers(ask, tmp_path, "dask://x:1")
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_without_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="no workers"):
        executors._check_workers(lambda _: [], tmp_path, "ray://x:1")


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "CONNECT_S", 1.0)
    with pytest.raises(ExecutorError, match="no scheduler answers"):
        open_executor("dask://127.0.0.1:9", 1, tmp_path).__enter__()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_real_cluster_of_two_workers_makes_the_same(tmp_path: Path, kind: str) -> None:
    """In a process of its own: Dask and Ray leave threads, handlers and warnings behind."""
    pytest.importorskip("distributed" if kind == "dask" else "ray")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    outcomes = []
    for where in ("local", kind):
        done = subprocess.run(
            [sys.executable, str(CLUSTER), where, str(tmp_path / where)],
            capture_output=True, text=True, env=environment, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        outcomes.append(json.loads(done.stdout.splitlines()[-1]))
    local, cluster = outcomes
    assert cluster["candidates"] == local["candidates"]
    assert cluster["chosen"] == local["chosen"] is not None
    assert cluster["error"] == local["error"] == ["dask", "convert"]
    assert local["made_in"] == 1
    # Ray begins each wave of work with new processes.
    assert cluster["made_in"] >= 2, "both workers took part"
    assert cluster["timed_in"] == 1
