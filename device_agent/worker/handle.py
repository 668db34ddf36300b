"""The supervisor's side of one worker process: start, infer, prove, kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from select import POLLIN, poll
from types import TracebackType
from typing import Self

import msgspec

from device_agent.contract.errors import ContractError
from device_agent.contract.manifest import Manifest, Softmax
from device_agent.contract.tensors import Tensor
from device_agent.errors import (
    LimitExceededError,
    SandboxError,
    WorkerCrashedError,
    WorkerTimeoutError,
)
from device_agent.worker import limits
from device_agent.worker.wire import (
    Channel,
    Fault,
    Infer,
    Inferred,
    Load,
    Loaded,
    Measure,
    Measured,
    Proof,
    Prove,
    Proved,
    body_of,
)

PROVE_TIMEOUT_S = 120.0
"""Longest that running the golden vectors may take."""

HANG_MIN_S = 5.0
"""A worker that is busy with one request for longer than this, and for longer than
``HANG_DEADLINES`` deadlines of its release, hangs, and is killed."""

HANG_DEADLINES = 4
WATCH_INTERVAL_S = 0.25
STDERR_MAX_BYTES = 4096
"""What is kept of the end of a worker's standard error, to explain its death."""

CLOSE_WAIT_S = 2.0


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker serves.

    Attributes:
        folder: The release folder, with ``model``, ``golden`` and ``labels`` in it.
        manifest: Its manifest.
        scratch: A folder that the worker may write to; made when it is not there.
    """

    folder: Path
    manifest: Manifest
    scratch: Path


@dataclass(frozen=True)
class InferenceResult:
    """One answer of a worker.

    Attributes:
        outputs: In the order and with the names, types and shapes of the manifest.
        compute_s: Time that the runtime took, in seconds.
        top_class: Index of the best class of a classification of one example, else None.
        confidence: Its probability, where the outputs are probabilities, else None.
    """

    outputs: tuple[Tensor, ...]
    compute_s: float
    top_class: int | None
    confidence: float | None


class RequestRefusedError(SandboxError):
    """The runtime refused this one request; the worker serves on."""

    code = "request-refused"


class ModelLoadError(SandboxError):
    """The runtime cannot load the release's model, or its tensors are not the manifest's."""

    code = "model-load"


class MissedDeadlineError(WorkerTimeoutError):
    """The answer did not come in time; unlike its parent, the worker lives on."""

    code = "deadline"


class Worker:
    """A worker process that holds one model; killed to unload it.

    All methods may be called from any thread; one request is in work at a time.
    """

    def __init__(self, spec: WorkerSpec, on_death: Callable[[SandboxError], None] | None) -> None:
        manifest = spec.manifest
        self._spec = spec
        self._on_death = on_death
        self._lock = threading.Lock()
        self._seq = 0
        self._stale = False
        self._busy_until_s: float | None = None
        self._hang_s = max(HANG_MIN_S, HANG_DEADLINES * manifest.limits.deadline_s)
        self._closing = False
        self._death: SandboxError | None = None
        self._death_lock = threading.Lock()
        self._drained = threading.Event()
        self._stderr = b""
        self._peak_rss_bytes = 0
        self.loaded: Loaded | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            self._channel = Channel(ours)
            self._process = _spawn(spec, theirs)
        self._watcher = threading.Thread(
            target=self._watch, name=f"worker-{manifest.name}", daemon=True
        )
        self._watcher.start()

    @classmethod
    def start(
        cls,
        spec: WorkerSpec,
        *,
        start_timeout_s: float,
        on_death: Callable[[SandboxError], None] | None = None,
    ) -> Self:
        """Return a worker that has loaded the release's model.

        Args:
            spec: What it serves.
            start_timeout_s: Longest that starting and loading may take.
            on_death: Called once, from the worker's own thread, with the cause when the process
                dies before ``close``.

        Raises:
            ModelLoadError: The runtime is missing or cannot load the model, or the model's
                tensors are not the manifest's.
            LimitExceededError: Loading needs more than the release's memory limit.
            WorkerTimeoutError: It was not ready in time.
            WorkerCrashedError: It died while loading.
            SandboxError: The process could not be started.
        """
        try:
            spec.scratch.mkdir(parents=True, exist_ok=True)
            worker = cls(spec, on_death)
        except OSError as e:
            raise SandboxError(f"the worker process cannot be started: {e}") from e
        try:
            worker._load(start_timeout_s)
        except BaseException:
            worker.close()
            raise
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._death is None and not self._closing and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the worker itself, also where a sandbox program stands around it."""
        return self.loaded.pid if self.loaded else self._process.pid

    @property
    def peak_rss_bytes(self) -> int:
        """Largest resident set that was seen, in bytes."""
        return max(self._peak_rss_bytes, self.rss_bytes())

    def rss_bytes(self) -> int:
        """Return the worker's resident set in bytes; 0 once it is gone."""
        return limits.rss_bytes(self.pid) if self.alive else 0

    def infer(self, inputs: Sequence[Tensor], *, deadline_s: float) -> InferenceResult:
        """Return the model's answer to ``inputs``.

        Raises:
            MissedDeadlineError: No answer within ``deadline_s`` seconds; the worker lives on.
            RequestRefusedError: The runtime refused the inputs; the worker lives on.
            LimitExceededError: The memory limit was reached.
            WorkerTimeoutError: The worker hung and was killed.
            WorkerCrashedError: The worker is dead.
        """
        until_s = time.monotonic() + deadline_s
        if not self._lock.acquire(timeout=deadline_s):
            raise _missed(deadline_s)
        try:
            tensors, meta = self._ask(Infer, inputs, until_s, deadline_s, self._hang_s)
        finally:
            self._lock.release()
        answer = body_of(meta, Inferred)
        if answer is None:
            raise WorkerCrashedError("the worker answered an inference with something else")
        return InferenceResult(
            tuple(tensors), answer.compute_s, answer.top_class, answer.confidence
        )

    def prove(self, *, timeout_s: float = PROVE_TIMEOUT_S) -> Proof:
        """Run the release's golden vectors in the worker and return what they showed.

        Raises:
            RequestRefusedError: The golden blob cannot be used with this model.
            LimitExceededError: The memory limit was reached.
            WorkerTimeoutError: It took longer than ``timeout_s`` seconds and was killed.
            WorkerCrashedError: The worker is dead.
        """
        until_s = time.monotonic() + timeout_s
        with self._lock:
            try:
                _, meta = self._ask(Prove, (), until_s, timeout_s, timeout_s)
            except MissedDeadlineError as e:
                raise self._kill(
                    WorkerTimeoutError(
                        f"the golden vectors did not run within {timeout_s:g} s", limit_s=timeout_s
                    )
                ) from e
        answer = body_of(meta, Proved)
        if answer is None:
            raise WorkerCrashedError("the worker answered a proof with something else")
        return answer.proof

    def measure(self, runs: int, warmup: int, *, timeout_s: float) -> Measured:
        """Time the model on its golden inputs in the worker.

        Args:
            runs: Measured inferences.
            warmup: Inferences before them that are not measured.
            timeout_s: The worker is killed when it takes longer.

        Raises:
            RequestRefusedError: The golden blob cannot be used with this model.
            LimitExceededError: The memory limit was reached.
            WorkerTimeoutError: It took longer than ``timeout_s`` seconds and was killed.
            WorkerCrashedError: The worker is dead.
        """
        until_s = time.monotonic() + timeout_s

        def request(seq: int) -> Measure:
            return Measure(seq, runs, warmup)

        with self._lock:
            try:
                _, meta = self._ask(request, (), until_s, timeout_s, timeout_s)
            except MissedDeadlineError as e:
                raise self._kill(
                    WorkerTimeoutError(
                        f"{warmup + runs} inferences did not run within {timeout_s:g} s",
                        limit_s=timeout_s,
                    )
                ) from e
        answer = body_of(meta, Measured)
        if answer is None:
            raise WorkerCrashedError("the worker answered a measurement with something else")
        return answer

    def close(self) -> None:
        """End the process and wait until it is gone; may be called twice."""
        self._closing = True
        with self._death_lock:
            self._death = self._death or SandboxError("the worker was closed")
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if threading.current_thread() is not self._watcher:
            self._watcher.join(CLOSE_WAIT_S)
        with self._lock:
            self._channel.close()

    def _load(self, start_timeout_s: float) -> None:
        manifest = self._spec.manifest
        order = Load(
            folder=str(self._spec.folder.resolve()),
            scratch=str(self._spec.scratch.resolve()),
            runtime=manifest.runtime,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            is_classification=manifest.task == "classification",
            has_softmax=any(isinstance(step, Softmax) for step in manifest.postprocess),
            limits=manifest.limits,
        )
        until_s = time.monotonic() + start_timeout_s
        try:
            self._channel.send(order, until_s=until_s)
            _, meta = self._channel.receive(until_s=until_s)
        except TimeoutError as e:
            raise WorkerTimeoutError(
                f"the worker was not ready within {start_timeout_s:g} s", limit_s=start_timeout_s
            ) from e
        except (EOFError, OSError) as e:
            raise self._cause_of_death() from e
        self._raise_fault(meta, ModelLoadError)
        self.loaded = body_of(meta, Loaded)
        if self.loaded is None:
            raise WorkerCrashedError("the worker's first message was not that it is ready")

    def _ask(
        self,
        kind: Callable[[int], Infer | Prove | Measure],
        inputs: Sequence[Tensor],
        until_s: float,
        deadline_s: float,
        hang_s: float,
    ) -> tuple[list[Tensor], dict[str, msgspec.Raw]]:
        """Exchange one request for its answer; the caller holds the lock."""
        try:
            while self._stale:
                # The answer to a request whose deadline was missed comes first.
                self._receive(until_s)
            if self._death:
                raise self._death
            self._seq += 1
            self._busy_until_s, self._stale = time.monotonic() + hang_s, True
            # Once begun, a request is sent whole: half of one would cost the worker.
            self._channel.send(kind(self._seq), inputs, until_s=self._busy_until_s)
            tensors, meta = self._receive(until_s)
        except TimeoutError as e:
            raise self._death or _missed(deadline_s) from e
        except ContractError as e:
            raise self._kill(WorkerCrashedError("the worker spoke nonsense", cause=str(e))) from e
        except (EOFError, OSError) as e:
            raise self._cause_of_death() from e
        self._raise_fault(meta, RequestRefusedError)
        return tensors, meta

    def _receive(self, until_s: float) -> tuple[list[Tensor], dict[str, msgspec.Raw]]:
        answer = self._channel.receive(until_s=until_s)
        self._busy_until_s, self._stale = None, False
        return answer

    def _raise_fault(self, meta: dict[str, msgspec.Raw], kind: type[SandboxError]) -> None:
        fault = body_of(meta, Fault)
        if fault is None:
            return
        if fault.code == "memory":
            raise LimitExceededError(
                "memory", self._spec.manifest.limits.memory_bytes, "bytes", cause=fault.message
            )
        raise kind(fault.message, hint=fault.hint)

    def _kill(self, cause: SandboxError) -> SandboxError:
        """End the process because of ``cause``; return the cause that stands."""
        with self._death_lock:
            self._death = self._death or cause
        self._process.kill()
        return self._death

    def _cause_of_death(self) -> SandboxError:
        try:
            returncode: int | None = self._process.wait(CLOSE_WAIT_S)
        except subprocess.TimeoutExpired:
            # It closed its end and lives on: not a worker any more.
            self._process.kill()
            returncode = self._process.wait()
        self._drained.wait(CLOSE_WAIT_S)
        with self._death_lock:
            self._death = self._death or _crash(returncode, self._stderr)
        return self._death

    def _watch(self) -> None:
        """Keep the end of standard error, bound memory and time, and tell of the death."""
        stream = self._process.stderr
        if stream is None:
            raise SandboxError("the worker's standard error is not a pipe")
        events = poll()
        events.register(stream, POLLIN)
        with stream:
            while True:
                if events.poll(WATCH_INTERVAL_S * 1000):
                    tail = os.read(stream.fileno(), STDERR_MAX_BYTES)
                    if not tail:
                        break
                    self._stderr = (self._stderr + tail)[-STDERR_MAX_BYTES:]
                self._check()
        self._drained.set()
        if not self._closing:
            cause = self._cause_of_death()
            if self._on_death and not self._closing and self.loaded:
                self._on_death(cause)

    def _check(self) -> None:
        rss = limits.rss_bytes(self.pid)
        self._peak_rss_bytes = max(self._peak_rss_bytes, rss)
        limit = self._spec.manifest.limits.memory_bytes
        if rss > limit:
            self._kill(LimitExceededError("memory", limit, "bytes", cause=f"it held {rss} bytes"))
        busy_until_s = self._busy_until_s
        if busy_until_s is not None and time.monotonic() > busy_until_s:
            hang_s = self._hang_s
            self._kill(WorkerTimeoutError(f"the worker hung for over {hang_s:g} s", limit_s=hang_s))


def _missed(deadline_s: float) -> MissedDeadlineError:
    return MissedDeadlineError(f"no answer within {deadline_s:g} s", limit_s=deadline_s)


def _crash(returncode: int | None, stderr: bytes) -> WorkerCrashedError:
    if returncode is not None and returncode < 0:
        name = signal.Signals(-returncode).name
        how = f"was ended by {name}"
        if -returncode == signal.SIGKILL:
            how += ", which may be the kernel's, out of memory"
    else:
        how = f"ended with code {returncode}"
    lines = stderr.decode(errors="replace").strip().splitlines()
    return WorkerCrashedError(
        f"the worker {how}", returncode=returncode, cause=lines[-1][:500] if lines else ""
    )


def _spawn(spec: WorkerSpec, end: socket.socket) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-B", "-m", "device_agent.worker.process", str(end.fileno())]
    return subprocess.Popen(
        [*limits.wrapping(spec.scratch), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        bufsize=0,
        pass_fds=(end.fileno(),),
        env=limits.environment(spec.scratch, spec.manifest.limits.threads),
        cwd=spec.scratch,
        start_new_session=True,
    )
