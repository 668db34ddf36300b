"""The table of served models: swapped atomically, each with a bounded queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from device_agent.contract.manifest import Manifest
from device_agent.contract.messages import ReleaseRef
from device_agent.contract.tensors import Tensor
from device_agent.serving.refusals import (
    DeadlineError,
    QueueFullError,
    RejectedError,
    UnknownModelError,
)
from device_agent.worker.handle import InferenceResult

QUEUE_MAX_REQUESTS = 16
DRAIN_MAX_S = 30.0
"""Longest that a replaced worker is kept for the requests that it has already."""

_SMOOTHING = 0.2
"""Weight of the newest compute time in the estimate."""


class Answering(Protocol):
    """What the table needs of a worker."""

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        ...

    def infer(self, inputs: Sequence[Tensor], *, deadline_s: float) -> InferenceResult:
        """Return the answer to ``inputs``; see :class:`device_agent.worker.handle.Worker`."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True)
class ServedModel:
    """A release that is served, by a worker that has loaded it.

    Attributes:
        labels: Name of each class, by index; empty when the release has none.
    """

    manifest: Manifest
    release: ReleaseRef
    worker: Answering
    labels: tuple[str, ...] = ()

    def label(self, index: int) -> str:
        """Return the name of class ``index``, or the index as text."""
        return self.labels[index] if 0 <= index < len(self.labels) else str(index)


class Lease:
    """The right to ask one served model, which stays until the lease ends."""

    def __init__(self, model: ServedModel, queue_max_requests: int) -> None:
        self.model = model
        self._queue_max_requests = queue_max_requests
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._users = 0
        self._waiting = 0
        self._compute_s = 0.0

    def infer(self, inputs: Sequence[Tensor], *, until_s: float) -> tuple[InferenceResult, float]:
        """Return the answer and the seconds that the request waited for its turn.

        Args:
            inputs: As the manifest declares them.
            until_s: Monotonic time at which the answer is due.

        Raises:
            QueueFullError: Too many wait already.
            RejectedError: By the times of recent requests, it could not be answered in time.
            DeadlineError: Its time was over before its turn came.
            SandboxError: As ``Worker.infer``.
        """
        began_s = time.monotonic()
        with self._changed:
            if self._waiting >= self._queue_max_requests:
                raise QueueFullError(
                    f"{self._waiting} requests wait for {self.model.manifest.name} already"
                )
            # A model that is idle is always tried, so a wrong estimate corrects itself.
            ahead_s = self._waiting * self._compute_s
            if self._waiting and began_s + ahead_s + self._compute_s > until_s:
                left_s = max(0.0, until_s - began_s)
                raise RejectedError(
                    f"an answer in {left_s:.3g} s cannot be had: {self._waiting} requests are "
                    f"ahead, {ahead_s:.3g} s of work"
                )
            self._waiting += 1
        try:
            if not self._turn.acquire(timeout=max(0.0, until_s - began_s)):
                raise DeadlineError("the deadline passed while the request waited for its turn")
            try:
                now_s = time.monotonic()
                if now_s >= until_s:
                    raise DeadlineError("the deadline passed before the work began")
                result = self.model.worker.infer(inputs, deadline_s=until_s - now_s)
            finally:
                self._turn.release()
        finally:
            with self._changed:
                self._waiting -= 1
        with self._changed:
            known_s = self._compute_s or result.compute_s
            self._compute_s = known_s + _SMOOTHING * (result.compute_s - known_s)
        return result, now_s - began_s

    def _enter(self) -> None:
        with self._changed:
            self._users += 1

    def _leave(self) -> None:
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def _retire(self) -> None:
        """Close the worker once nobody uses it, or after ``DRAIN_MAX_S``."""
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0, DRAIN_MAX_S)
        self.model.worker.close()


class ModelTable:
    """What is served, by name; one version of a name at a time.

    Args:
        queue_max_requests: Requests that may be in work or wait, per model.
    """

    def __init__(self, queue_max_requests: int = QUEUE_MAX_REQUESTS) -> None:
        self._queue_max_requests = queue_max_requests
        self._lock = threading.Lock()
        self._leases: dict[str, Lease] = {}
        self._retiring: list[threading.Thread] = []

    def activate(self, model: ServedModel) -> None:
        """Serve ``model`` from now on.

        Requests that another version of it has already are answered by that version's worker,
        which is then closed, in the background.
        """
        lease = Lease(model, self._queue_max_requests)
        with self._lock:
            old = self._leases.get(model.manifest.name)
            self._leases[model.manifest.name] = lease
        if old is not None and old.model.worker is not model.worker:
            self._close_later(old)

    def remove(self, name: str) -> None:
        """Serve ``name`` no more; its worker is closed as in :meth:`activate`."""
        with self._lock:
            old = self._leases.pop(name, None)
        if old is not None:
            self._close_later(old)

    def get(self, name: str, version: str | None = None) -> ServedModel | None:
        """Return the served model, or None when that name, or version of it, is not served."""
        with self._lock:
            lease = self._leases.get(name)
        if lease is None or version not in (None, lease.model.manifest.version):
            return None
        return lease.model

    def served(self) -> tuple[ServedModel, ...]:
        """Return all served models, by name."""
        with self._lock:
            return tuple(self._leases[name].model for name in sorted(self._leases))

    @contextmanager
    def lease(self, name: str, version: str | None = None) -> Iterator[Lease]:
        """Hold the served model: its worker is not closed before the block ends.

        Raises:
            UnknownModelError: That name, or version of it, is not served.
        """
        with self._lock:
            lease = self._leases.get(name)
            if lease is None or version not in (None, lease.model.manifest.version):
                raise self._unknown(name, version)
            lease._enter()  # noqa: SLF001 - table and lease are one mechanism
        try:
            yield lease
        finally:
            lease._leave()  # noqa: SLF001

    def close(self) -> None:
        """Close all workers and wait until they are gone."""
        for model in self.served():
            self.remove(model.manifest.name)
        with self._lock:
            retiring, self._retiring = self._retiring, []
        for thread in retiring:
            thread.join()

    def _close_later(self, lease: Lease) -> None:
        name = f"retire-{lease.model.manifest.name}"
        thread = threading.Thread(target=lease._retire, name=name)  # noqa: SLF001
        thread.start()
        with self._lock:
            self._retiring = [t for t in self._retiring if t.is_alive()] + [thread]

    def _unknown(self, name: str, version: str | None) -> UnknownModelError:
        served = [f"{m.model.manifest.name} {m.model.manifest.version}"
                  for m in self._leases.values()]  # fmt: skip
        asked = f"{name[:64]!r} version {version[:64]!r}" if version else f"{name[:64]!r}"
        return UnknownModelError(
            f"model {asked} is not served",
            hint=f"Served: {', '.join(sorted(served)) or 'none'}.",
        )
