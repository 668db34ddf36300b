"""Worker processes of the host: a fresh interpreter per step, with memory and time limits.

Not ``multiprocessing``: a spawned process there runs the caller's main script again, which breaks
scripts without a guard and code typed into an interpreter. Here the child is a plain
``python -c``, told over its stdin which function to call.

Memory is limited by watching resident memory. An address-space limit does not work: torch and the
runtimes reserve tens of gigabytes that they never touch.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Generic, ParamSpec, Self, TypeVar

from aid_edge.errors import MissingDependencyError, StepCrashedError
from device_agent.contract.errors import AidError

DEFAULT_MEMORY_BYTES = 8 * 2**30
DEFAULT_TIME_S = 1800.0
LOG_TAIL_BYTES = 4000
_MAX_MESSAGE_BYTES = 8 * 2**30
# Each look lists every process of the machine, which costs milliseconds.
_WATCH_INTERVAL_S = 0.2
_LENGTH = struct.Struct("!Q")
_CHILD = "from aid_edge.isolate import child_main; child_main()"

P = ParamSpec("P")
T = TypeVar("T")

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Limits:
    """What a worker process may use.

    Attributes:
        memory_bytes: Resident memory of the process with its children.
        time_s: Wall time.
    """

    memory_bytes: int = DEFAULT_MEMORY_BYTES
    time_s: float = DEFAULT_TIME_S


@dataclass(frozen=True)
class StepOutcome(Generic[T]):
    """What a function that ran in a worker process gave back, and what it took.

    Attributes:
        seconds: Wall time, with the start of the process.
        peak_rss_bytes: Of the worker process itself.
        log: Tail of what the function's libraries printed.
    """

    value: T
    seconds: float
    peak_rss_bytes: int
    log: str


class StoppedError(Exception):
    """The step was ended because its :class:`Crew` was stopped; nobody waits for its outcome."""


class Crew:
    """Worker processes that can be ended together.

    Those that are started inside ``with crew`` belong to it, also in threads that run in a copy
    of the context.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self.is_stopped = False

    def __enter__(self) -> Self:
        """Make this the crew of every worker process from now on."""
        self._token = _crew.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it to those who were before."""
        _crew.reset(self._token)

    def stop(self) -> None:
        """End all of its processes and let it start no more: ``StoppedError`` is raised there."""
        with self._lock:
            self.is_stopped = True
            for process in self._processes:
                _kill(process)

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Take in ``process``.

        Raises:
            StoppedError: It is too late.
        """
        with self._lock:
            if self.is_stopped:
                raise StoppedError
            self._processes.add(process)

    def remove(self, process: subprocess.Popen[bytes]) -> None:
        """Let go of ``process``, which ended."""
        with self._lock:
            self._processes.discard(process)


_crew: contextvars.ContextVar[Crew | None] = contextvars.ContextVar("crew", default=None)


class Meter:
    """What the worker processes that are started inside ``with meter`` took, one after the other.

    Attributes:
        seconds: Wall time of all of them.
        peak_rss_bytes: Of the largest.
    """

    def __init__(self) -> None:
        """Begin at nothing."""
        self.seconds = 0.0
        self.peak_rss_bytes = 0

    def __enter__(self) -> Self:
        """Meter every worker process from now on; an outer meter does not see them."""
        self._token = _meter.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it to the outer one."""
        _meter.reset(self._token)


_meter: contextvars.ContextVar[Meter | None] = contextvars.ContextVar("meter", default=None)


def run(
    function: Callable[P, T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> StepOutcome[T]:
    """Call ``function`` in a worker process with the default limits; see :func:`run_with`."""
    return run_with(Limits(), None, function, *args, **kwargs)


def run_with(
    limits: Limits,
    on_progress: Progress | None,
    function: Callable[P, T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> StepOutcome[T]:
    """Call a module-level ``function`` in a fresh process and return its outcome.

    Arguments and result are pickled. What the function prints goes to a log, of which the tail is
    in the outcome or the error. An interrupt kills the process and everything it started.

    Raises:
        AidError: The function raised it; the same type with the same fields.
        StepCrashedError: The process died, ran out of memory or time, or raised anything else.
        StoppedError: Its crew was stopped.
    """
    step = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    header = {
        "path": [p or os.getcwd() for p in sys.path],  # noqa: PTH109 -- sys.path holds strings
        "module": function.__module__,
        "function": function.__qualname__,
    }
    payload = pickle.dumps((args, kwargs), protocol=5)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log, _child(log) as (process, results):
        watch = _Watch(process, limits, started)
        try:
            _send_request(process, header, payload)
            kind, value = _receive(results, on_progress, watch)
        except EOFError:
            process.wait()
            if (crew := _crew.get()) is not None and crew.is_stopped:
                raise StoppedError from None
            raise _died(step, process.returncode, watch, _tail(log)) from None
        tail = _tail(log)
    if kind == "error":
        raise rebuilt(value, tail)
    if kind == "crash":
        raise StepCrashedError(f"{step}: {value}", cause=_last_lines(tail))
    result, peak_rss_bytes = value
    seconds = time.monotonic() - started
    if (meter := _meter.get()) is not None:
        meter.seconds += seconds
        meter.peak_rss_bytes = max(meter.peak_rss_bytes, peak_rss_bytes)
    return StepOutcome(result, seconds, peak_rss_bytes, tail)


def progress(share: float, text: str) -> None:
    """Report progress from inside a worker process; elsewhere, nothing happens."""
    if _results is not None:
        _send(_results, ("progress", (min(max(share, 0.0), 1.0), text)))


# --- parent ----------------------------------------------------------------------------------


class _Watch:
    """Kills the process when it goes over its limits, and remembers why."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits, started: float) -> None:
        try:
            import psutil  # noqa: PLC0415 -- an extra's package, named when it is missing
        except ModuleNotFoundError as e:
            _kill(process)
            raise MissingDependencyError("watching worker processes", "psutil", "convert") from e
        self.reason = ""
        self.peak_rss_bytes = 0
        self._process, self._limits, self._started = process, limits, started
        self._psutil = psutil
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="step-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            watched = self._psutil.Process(self._process.pid)
        except self._psutil.NoSuchProcess:
            return
        while not self._over.wait(_WATCH_INTERVAL_S):
            used = self._rss(watched)
            self.peak_rss_bytes = max(self.peak_rss_bytes, used)
            if used > self._limits.memory_bytes:
                limit_mb = self._limits.memory_bytes // 2**20
                self.reason = f"needed more than its {limit_mb} MiB of memory"
            elif time.monotonic() - self._started > self._limits.time_s:
                self.reason = f"did not finish in its {self._limits.time_s:g} s"
            if self.reason:
                _kill(self._process)
                return

    def _rss(self, watched: Any) -> int:
        used = 0
        # A process may end between being listed and being read.
        with contextlib.suppress(self._psutil.Error):
            used = watched.memory_info().rss
            for child in watched.children(recursive=True):
                with contextlib.suppress(self._psutil.Error):
                    used += child.memory_info().rss
        return int(used)


@contextlib.contextmanager
def _child(log: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Start the child; whatever happens, it and all it started are gone at the end."""
    read_end, write_end = os.pipe()
    environment = os.environ | _ENVIRONMENT | {"AID_EDGE_RESULTS_FD": str(write_end)}
    with os.fdopen(read_end, "rb") as results:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write_end,),
                env=environment | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                # Its own group: an interrupt reaches the parent alone, which kills the group.
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        crew = _crew.get()
        try:
            if crew is not None:
                crew.add(process)
            yield process, results
        finally:
            _kill(process)
            process.wait()
            if crew is not None:
                crew.remove(process)
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # NNCF reports its use over the network otherwise.
    "NNCF_CI": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Sums of more threads round differently: the same bytes on every machine. And several workers
    # run at once. The runtimes have their own threads, as many as they are told.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Sets and dicts of strings are iterated by exporters: the same order every time.
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
}


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _send_request(process: subprocess.Popen[bytes], header: dict[str, Any], payload: bytes) -> None:
    if process.stdin is None:
        raise EOFError
    try:
        _send(process.stdin, header)
        process.stdin.write(_LENGTH.pack(len(payload)))
        process.stdin.write(payload)
        process.stdin.flush()
    except BrokenPipeError as e:
        raise EOFError from e


def _receive(results: IO[bytes], on_progress: Progress | None, watch: _Watch) -> tuple[str, Any]:
    try:
        while True:
            kind, value = _read(results)
            if kind != "progress":
                return kind, value
            if on_progress is not None:
                on_progress(*value)
    finally:
        watch.stop()


def _died(step: str, code: int, watch: _Watch, tail: str) -> StepCrashedError:
    peak = f"; its memory peaked at {watch.peak_rss_bytes // 2**20} MiB"
    if watch.reason:
        return StepCrashedError(
            f"{step} {watch.reason} and was ended{peak}",
            cause=_last_lines(tail),
            hint="Use fewer or smaller samples, or allow more: aid_edge.isolate.Limits.",
        )
    if code < 0:
        name = signal.Signals(-code).name
        killed = " (by the system, perhaps for lack of memory)" if code == -signal.SIGKILL else ""
        return StepCrashedError(
            f"{step} was ended by {name}{killed}{peak}", cause=_last_lines(tail)
        )
    return StepCrashedError(f"{step} ended with exit code {code}{peak}", cause=_last_lines(tail))


def _tail(log: IO[bytes]) -> str:
    end = log.seek(0, os.SEEK_END)
    log.seek(max(0, end - LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip()


def _last_lines(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return " | ".join(lines[-3:])


# --- both ------------------------------------------------------------------------------------


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    if size > _MAX_MESSAGE_BYTES:
        raise EOFError
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    # Both ends are this program; the pipe is inherited and nobody else has it.
    return pickle.loads(data)  # noqa: S301


def taken_apart(error: AidError) -> tuple[str, str, str, dict[str, Any]]:
    """Return an error as plain values: our errors have constructors that pickle cannot call."""
    fields = {k: v for k, v in vars(error).items() if not k.startswith("__")}
    return type(error).__module__, type(error).__qualname__, str(error), fields


def rebuilt(parts: tuple[str, str, str, dict[str, Any]], tail: str = "") -> AidError:
    """Return the error that :func:`taken_apart` took apart, in another process perhaps."""
    module, name, message, fields = parts
    kind: type[AidError] = getattr(importlib.import_module(module), name)
    error = kind.__new__(kind, message)
    Exception.__init__(error, message)
    vars(error).update(fields)
    if not error.cause and tail and issubclass(kind, StepCrashedError):
        error.cause = _last_lines(tail)
    return error


# --- child -----------------------------------------------------------------------------------

_results: IO[bytes] | None = None


def child_main() -> None:
    """Serve one call: read it from stdin, send the outcome, end. Not for direct use."""
    global _results  # noqa: PLW0603 -- one worker, one pipe
    results = os.fdopen(int(os.environ.pop("AID_EDGE_RESULTS_FD")), "wb")
    # The function must neither read our stdin nor hand our pipe to processes that it starts.
    requests = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.set_inheritable(results.fileno(), False)
    _limit_core_dumps()
    header = _read(requests)
    sys.path[:] = header["path"]
    _results = results
    try:
        function = importlib.import_module(header["module"])
        for part in header["function"].split("."):
            function = getattr(function, part)
        args, kwargs = _read(requests)
        threading.Thread(target=_end_with_parent, args=(requests,), daemon=True).start()
        value = function(*args, **kwargs)  # type: ignore[operator]
    except AidError as e:
        traceback.print_exc()
        _send(results, ("error", taken_apart(e)))
    except BaseException as e:  # noqa: BLE001 -- the seam: whatever it is, the parent must hear it
        traceback.print_exc()
        _send(results, ("crash", f"raised {type(e).__name__}: {str(e).strip()[:500]}"))
    else:
        _send_value(results, value)
    sys.stdout.flush()
    sys.stderr.flush()
    # Runtimes' exit handlers have been seen to crash or hang; there is nothing left to do.
    os._exit(0)


def _send_value(results: IO[bytes], value: Any) -> None:
    try:
        data = pickle.dumps(("result", (value, peak_rss_bytes())), protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError) as e:
        _send(results, ("crash", f"returned what cannot be sent back: {e}"))
        return
    results.write(_LENGTH.pack(len(data)))
    results.write(data)
    results.flush()


def _end_with_parent(requests: IO[bytes]) -> None:
    requests.read()
    os._exit(1)


def _limit_core_dumps() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process.

    ``ru_maxrss`` would not do on Linux: it is inherited over fork and exec from a larger parent.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
