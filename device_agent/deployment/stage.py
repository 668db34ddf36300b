"""The workers behind a deployment: one candidate, one that serves, started again when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_agent.contract.desired import Trial
from device_agent.contract.messages import ReleaseRef
from device_agent.deployment.parts import LocalRelease, Tried
from device_agent.deployment.proving import judge
from device_agent.errors import ProvingError, SandboxError
from device_agent.serving.models import ModelTable, ServedModel
from device_agent.telemetry.recorder import Recorder
from device_agent.worker.handle import Worker, WorkerSpec
from device_agent.worker.wire import Proof

MAX_CRASHES = 5
"""A serving worker that died this often within ``CRASH_WINDOW_S`` is not started again."""

CRASH_WINDOW_S = 600.0
RESTART_BASE_S = 0.2
RESTART_MAX_S = 30.0
MAX_LABELS_BYTES = 4 * 2**20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerTeller:
    """Who is told of the serving worker's life.

    Attributes:
        event: ``event(release, detail)`` for the audit trail.
        gave_up: ``gave_up(digest, reason)`` when it died once too often.
    """

    event: Callable[[ReleaseRef, str], None]
    gave_up: Callable[[str, str], None]


class WorkerStage:
    """A :class:`~device_agent.deployment.parts.Stage` with real worker processes.

    Args:
        table: Where what serves is swapped.
        recorder: Told of restarts.
        scratch: Folder below which every worker has one of its own.
        tell: Who is told.
        start_s: Longest that starting a worker may take, in seconds.
    """

    def __init__(
        self,
        table: ModelTable,
        recorder: Recorder,
        scratch: Path,
        tell: WorkerTeller,
        *,
        start_s: float,
    ) -> None:
        self._table, self._recorder, self._scratch = table, recorder, scratch
        self._tell, self._start_s = tell, start_s
        self._lock = threading.RLock()
        self._candidate: tuple[LocalRelease, Worker] | None = None
        self._serving: tuple[LocalRelease, Worker] | None = None
        self._crashes: list[float] = []
        self._closed = threading.Event()

    def prepare(self, release: LocalRelease) -> None:
        """Load a release as the candidate.

        Raises:
            SandboxError: It cannot be loaded within its limits.
        """
        self.discard()
        worker = self._start(release)
        with self._lock:
            self._candidate = (release, worker)
        if self._closed.is_set():
            self.discard()

    def prove(self, timeout_s: float) -> Proof:
        """Run the candidate's golden vectors.

        Raises:
            SandboxError: The worker could not do it.
            ProvingError: There is no candidate.
        """
        with self._lock:
            candidate = self._candidate
        if candidate is None:
            raise ProvingError("there is no candidate to prove")
        return candidate[1].prove(timeout_s=timeout_s)

    def try_out(self, release: LocalRelease, trial: Trial, timeout_s: float) -> Tried:
        """Prove and time a release in a worker of its own; what serves is not touched.

        Raises:
            SandboxError: It cannot be loaded, proven or measured within its limits.
            ProvingError: It did not prove itself.
        """
        before = self._recorder.requests
        with self._start(release) as worker:
            until_s = time.monotonic() + timeout_s
            judge(worker.prove(timeout_s=timeout_s), release.manifest)
            left_s = max(1.0, until_s - time.monotonic())
            measured = worker.measure(trial.runs, trial.warmup, timeout_s=left_s)
            loaded = worker.loaded
        return Tried(
            latencies_s=measured.latencies_s,
            peak_rss_bytes=measured.peak_rss_bytes,
            load_s=loaded.load_s if loaded else 0.0,
            runtime_version=loaded.runtime_version if loaded else "",
            served=self._recorder.requests - before,
        )

    @property
    def candidate(self) -> LocalRelease | None:
        """The candidate, if there is one that lives."""
        with self._lock:
            if self._candidate is None or not self._candidate[1].alive:
                return None
            return self._candidate[0]

    def promote(self) -> None:
        """Let the candidate serve; the one before answers what it has begun, and ends.

        Raises:
            SandboxError: The candidate is gone.
        """
        with self._lock:
            if self._candidate is None:
                raise SandboxError("there is no candidate to serve")
            before, self._serving = self._serving, self._candidate
            self._candidate = None
            self._crashes = []
            release, worker = self._serving
            self._table.activate(_served(release, worker))
            if before is not None and before[0].manifest.name != release.manifest.name:
                self._table.remove(before[0].manifest.name)
        if not worker.alive:
            # It died between loading and now, when nobody watched over it.
            self._revive(release, worker, SandboxError("the worker died before it served"))

    def discard(self) -> None:
        """End the candidate, if there is one."""
        with self._lock:
            candidate, self._candidate = self._candidate, None
        if candidate is not None:
            candidate[1].close()

    def clear(self) -> None:
        """End what serves, if anything does."""
        with self._lock:
            serving, self._serving = self._serving, None
        if serving is not None:
            self._table.remove(serving[0].manifest.name)

    def observe(self) -> None:
        """Tell the recorder how much memory the serving worker holds."""
        with self._lock:
            serving = self._serving
        if serving is not None and serving[1].alive:
            self._recorder.observe_rss(serving[0].reference, serving[1].rss_bytes())

    def close(self) -> None:
        """End all workers, also one that is being proved; may be called twice."""
        self._closed.set()
        self.discard()
        self.clear()
        self._table.close()

    def _start(self, release: LocalRelease) -> Worker:
        spec = WorkerSpec(
            folder=release.folder,
            manifest=release.manifest,
            scratch=self._scratch / release.folder.name[:16],
        )
        return Worker.start(
            spec,
            start_timeout_s=self._start_s,
            on_death=lambda cause: self._died(release, cause),
        )

    def _died(self, release: LocalRelease, cause: SandboxError) -> None:
        with self._lock:
            serving = self._serving
        if serving is not None and serving[0] is release and not serving[1].alive:
            self._revive(release, serving[1], cause)

    def _revive(self, release: LocalRelease, dead: Worker, cause: SandboxError) -> None:
        threading.Thread(
            target=self._restart, args=(release, dead, cause), name="revive", daemon=True
        ).start()

    def _restart(self, release: LocalRelease, dead: Worker, cause: SandboxError) -> None:
        """Start the serving worker again, waiting longer each time, or give it up."""
        while self._is_wanted(dead):
            self._recorder.count_restart(release.reference)
            said = f"{cause} ({cause.cause})" if cause.cause else str(cause)
            wait_s = self._count_crash()
            if wait_s is None:
                self._tell.gave_up(
                    release.reference.digest, f"its worker died {MAX_CRASHES} times: {said}"
                )
                return
            _log.warning("worker died: %s; started again in %.1f s", said, wait_s)
            self._tell.event(release.reference, f"worker died: {said}")
            if self._closed.wait(wait_s):
                return
            try:
                worker = self._start(release)
            except SandboxError as e:
                cause = e
                continue
            if self._take_over(release, dead, worker):
                return
            worker.close()

    def _count_crash(self) -> float | None:
        """Return how long to wait before the next start, in seconds; None for no more."""
        now_s = time.monotonic()
        with self._lock:
            self._crashes = [t for t in self._crashes if now_s - t < CRASH_WINDOW_S] + [now_s]
            count = len(self._crashes)
        if count >= MAX_CRASHES:
            return None
        return min(RESTART_BASE_S * 2.0 ** (count - 1), RESTART_MAX_S)

    def _is_wanted(self, dead: Worker) -> bool:
        with self._lock:
            is_serving = self._serving is not None and self._serving[1] is dead
        return is_serving and not self._closed.is_set()

    def _take_over(self, release: LocalRelease, dead: Worker, worker: Worker) -> bool:
        with self._lock:
            if not self._is_wanted(dead):
                return False
            self._serving = (release, worker)
            self._table.activate(_served(release, worker))
        self._tell.event(release.reference, "worker started again")
        if not worker.alive:
            self._revive(release, worker, SandboxError("the worker died at once"))
        return True


def _served(release: LocalRelease, worker: Worker) -> ServedModel:
    return ServedModel(
        manifest=release.manifest,
        release=release.reference,
        worker=worker,
        labels=read_labels(release.folder / "labels"),
    )


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the name of each class, one a line; empty when the release has none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LABELS_BYTES)
    except OSError:
        return ()
    return tuple(data.decode(errors="replace").splitlines())
