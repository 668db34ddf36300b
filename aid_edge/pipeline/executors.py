"""Where candidates are made: in worker processes here, or on a Dask or Ray cluster by joblib.

On a cluster the unit of work is one candidate. Its workers must see the same files as this
machine under the same paths (the step cache, the model, the data) and have the same tools; both
are looked at before any work. What is timed always runs on this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from aid_edge import isolate
from aid_edge.errors import HostError, MissingDependencyError, UsageError
from aid_edge.pipeline.cache import tool_versions
from aid_edge.pipeline.jobs import run_until
from device_agent.contract.errors import AidError

LOCAL = "local"
CONNECT_S = 30.0
_ADDRESS = re.compile(r"(dask|ray)://([A-Za-z0-9_.:\[\]-]+)")
_PROBE = ".probe-"

T = TypeVar("T")


class ExecutorError(HostError):
    """The cluster cannot be reached, or its workers cannot do the work."""

    code = "executor"


class Executor(Protocol):
    """Runs pieces of work; inside ``with`` only."""

    def __enter__(self) -> Self:
        """Connect, where there is something to connect to.

        Raises:
            ExecutorError: It cannot be reached or does not fit.
        """

    def __exit__(self, *_: object) -> None:
        """Let go."""

    def run(
        self, work: Sequence[Callable[[], T]], deadline_s: float | None = None
    ) -> list[T | None]:
        """Return the outcomes in order; None for what was not done in time."""


@dataclass(frozen=True)
class LocalExecutor:
    """Threads of this process, whose heavy steps are worker processes."""

    jobs: int

    def __enter__(self) -> Self:
        """Nothing is to be done."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be done."""

    def run(
        self, work: Sequence[Callable[[], T]], deadline_s: float | None = None
    ) -> list[T | None]:
        """See :func:`aid_edge.pipeline.jobs.run_until`."""
        return run_until(work, self.jobs, deadline_s)


class ClusterExecutor:
    """The workers of a Dask or Ray cluster, by joblib's backend for it."""

    def __init__(self, kind: str, address: str, jobs: int, cache: Path) -> None:
        """Use the cluster at ``address``, ``HOST:PORT``, or a new one of ``jobs`` workers here.

        Args:
            kind: ``dask`` or ``ray``.
            address: ``HOST:PORT``, or ``local``.
            jobs: Workers of a local cluster.
            cache: Folder of the step cache, which every worker must see.
        """
        self.kind, self.address, self.jobs, self.cache = kind, address, jobs, cache
        self._open = contextlib.ExitStack()
        self._workers = 0

    def __enter__(self) -> Self:
        """Connect and look whether all workers see the cache and have the same tools."""
        with contextlib.ExitStack() as opening:
            connect = _dask if self.kind == "dask" else _ray
            ask = opening.enter_context(connect(self.address, self.jobs))
            self._workers = _check_workers(ask, self.cache, f"{self.kind}://{self.address}")
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the cluster; one that was there before stays."""
        self._open.close()

    def run(
        self, work: Sequence[Callable[[], T]], deadline_s: float | None = None
    ) -> list[T | None]:
        """Return the outcomes in order; after the deadline no further piece is begun."""
        import joblib  # noqa: PLC0415 -- an extra's package

        found: list[T | None] = []
        size = len(work) if deadline_s is None else self._workers
        for start in range(0, len(work), max(1, size)):
            if deadline_s is not None and time.monotonic() > deadline_s:
                return found + [None] * (len(work) - len(found))
            part = work[start : start + max(1, size)]
            with joblib.parallel_config(backend=self.kind):
                parallel = joblib.Parallel(n_jobs=self._workers, batch_size=1, pre_dispatch="all")
                outcomes = parallel(joblib.delayed(_call)(piece) for piece in part)
            found += [_value(outcome) for outcome in outcomes]
        return found


def open_executor(address: str | None, jobs: int, cache: Path) -> Executor:
    """Return what runs the work: this machine when ``address`` is None.

    Raises:
        UsageError: The address is none of ``dask://HOST:PORT`` and ``ray://HOST:PORT``, where
            ``local`` may stand for host and port.
    """
    if address is None:
        return LocalExecutor(jobs)
    match = _ADDRESS.fullmatch(address)
    if match is None or not (match[2] == LOCAL or match[2].rpartition(":")[2].isdecimal()):
        raise UsageError(
            f"--executor: {address!r} is no address of a cluster",
            hint="Give dask://HOST:PORT or ray://HOST:PORT, or dask://local or ray://local.",
        )
    return ClusterExecutor(match[1], match[2], jobs, cache)


# --- in workers of the cluster ----------------------------------------------------------------


def _call(piece: Callable[[], Any]) -> tuple[str, Any]:
    """Return a piece's outcome, or its error as plain values: not all of ours can be pickled."""
    try:
        return "value", piece()
    except AidError as e:
        return "error", isolate.taken_apart(e)


def _describe(probe: Path) -> dict[str, Any]:
    """Return what a worker sees of the cache, and with which tools it would work."""
    try:
        token = probe.read_text()
    except OSError:
        token = ""
    writable = os.access(probe.parent, os.W_OK)
    return {
        "where": socket.gethostname(), "token": token, "writable": writable,
        "tools": tool_versions(),
    }  # fmt: skip


# --- here -------------------------------------------------------------------------------------


def _value(outcome: tuple[str, Any]) -> Any:
    kind, value = outcome
    if kind == "error":
        raise isolate.rebuilt(value)
    return value


Ask = Callable[[Callable[[], dict[str, Any]]], Sequence[dict[str, Any]]]
"""Runs a function on every worker."""


def _check_workers(ask: Ask, cache: Path, address: str) -> int:
    """Return how many workers there are, all of which share the cache and have our tools.

    Raises:
        ExecutorError: There are none, or one does not; names it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    probe, token = cache.resolve() / f"{_PROBE}{secrets.token_hex(8)}", secrets.token_hex(16)
    probe.write_text(token)
    try:
        found = ask(partial(_describe, probe))
    finally:
        probe.unlink(missing_ok=True)
    if not found:
        raise ExecutorError(f"{address}: has no workers", hint="Start some, or leave --executor.")
    for one in found:
        if one["token"] != token or not one["writable"]:
            how = "cannot write" if one["token"] == token else "does not see"
            raise ExecutorError(
                f"{address}: the worker on {one['where']} {how} the step cache {probe.parent}",
                hint="Name a folder on a shared file system with --cache; model and data must "
                "lie on one, too.",
            )
        if differing := _differing(one["tools"], tool_versions()):
            raise ExecutorError(
                f"{address}: the worker on {one['where']} has other tools: {differing}",
                hint="Install the same versions there: artifacts would differ.",
            )
    return len(found)


def _differing(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    names = sorted(n for n in {*theirs, *ours} if theirs.get(n) != ours.get(n))
    shown = [f"{n} {theirs.get(n, 'missing')} ({ours.get(n, 'missing')} here)" for n in names[:5]]
    return ", ".join(shown)


@contextlib.contextmanager
def _dask(address: str, jobs: int) -> Iterator[Ask]:
    try:
        from distributed import Client, LocalCluster  # noqa: PLC0415 -- an extra's package
    except ModuleNotFoundError as e:
        raise MissingDependencyError("--executor dask://", e.name or "dask", "dask") from e
    with contextlib.ExitStack() as stack:
        where = f"tcp://{address}"
        if address == LOCAL:
            cluster = LocalCluster(
                n_workers=jobs, threads_per_worker=1, processes=True, dashboard_address=None
            )
            where = stack.enter_context(cluster).scheduler_address
        try:
            client = stack.enter_context(Client(where, timeout=CONNECT_S))
        except (OSError, TimeoutError) as e:
            raise ExecutorError(
                f"dask://{address}: no scheduler answers", hint="Start one with `dask scheduler`."
            ) from e
        yield lambda function: list(client.run(function).values())


@contextlib.contextmanager
def _ray(address: str, jobs: int) -> Iterator[Ask]:
    try:
        import ray  # noqa: PLC0415 -- an extra's package
        from ray.util.joblib import register_ray  # noqa: PLC0415
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise MissingDependencyError("--executor ray://", e.name or "ray", "ray") from e
    ours = not ray.is_initialized()
    if ours:
        try:
            if address == LOCAL:
                ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False)
            else:
                ray.init(f"ray://{address}", log_to_driver=False)
        except (ConnectionError, OSError, TimeoutError) as e:
            raise ExecutorError(
                f"ray://{address}: no Ray cluster answers",
                hint="Start its head with `ray start --head --ray-client-server-port PORT`.",
            ) from e
    try:
        register_ray()

        def ask(function: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
            remote = ray.remote(num_cpus=1)(function_of(function))
            asked = [
                remote.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ).remote()
                for node in ray.nodes()
                if node["Alive"]
                for _ in range(int(node["Resources"].get("CPU", 0)))
            ]
            found: list[dict[str, Any]] = ray.get(asked)
            return found

        yield ask
    finally:
        if ours:
            ray.shutdown()


def function_of(piece: Callable[[], T]) -> Callable[[], T]:
    """Return ``piece`` as a plain function, which is what Ray's decorator takes."""

    def call() -> T:
        return piece()

    return call
