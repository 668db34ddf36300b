"""The worker: a child process that holds one model and answers its supervisor until it closes.

Run as ``python -m device_agent.worker.process FD`` with one end of a Unix socket pair.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.contract.errors import AidError
from device_agent.contract.tensors import Tensor
from device_agent.worker import sandbox
from device_agent.worker.wire import (
    Channel,
    Fault,
    Infer,
    Inferred,
    Load,
    Loaded,
    Measure,
    Measured,
    Prove,
    Proved,
    body_of,
)

if TYPE_CHECKING:
    from device_agent.worker.engine import Engine

ANSWER_TIMEOUT_S = 60.0
"""A supervisor that does not read an answer for this long is lost; the worker ends."""


def main(arguments: Sequence[str]) -> int:
    """Serve one model; return the exit code when the supervisor closes its end."""
    end = socket.socket(fileno=int(arguments[0]))
    threading.Thread(target=_end_with, args=(end.fileno(),), daemon=True).start()
    channel = Channel(end, reuse=True)
    # A disk that is full, or a file over its limit, is an error of the write.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, meta = channel.receive(until_s=None)
        load = body_of(meta, Load)
        if load is None:
            return 2
        engine = _start(channel, load)
        if engine is None:
            return 3
        while True:
            tensors, meta = channel.receive(until_s=None)
            request = body_of(meta, Infer) or body_of(meta, Prove) or body_of(meta, Measure)
            if request:
                _answer(channel, engine, request, tensors)
    except (EOFError, ConnectionError, TimeoutError):
        return 0


def _end_with(descriptor: int) -> None:
    """End this process as soon as the other end closes, even in the middle of an inference."""
    hangup = select.poll()
    hangup.register(descriptor, 0)
    hangup.poll()
    os._exit(0)


def _start(channel: Channel, load: Load) -> Engine | None:
    """Confine this process and load the model; None when the supervisor was told why not."""
    began_s = time.monotonic()
    try:
        protections = sandbox.confine(Path(load.folder), Path(load.scratch), load.limits)
        # Only now: what runs when they are imported is confined already.
        from device_agent.worker.engine import Engine  # noqa: PLC0415

        engine = Engine(load)
    except AidError as e:
        _tell(channel, Fault(seq=0, code=e.code, message=str(e), hint=e.hint))
    except MemoryError as e:
        _tell(channel, Fault(seq=0, code="memory", message=f"loading the model: {e}"))
    except (OSError, ImportError) as e:
        _tell(channel, Fault(seq=0, code="runtime", message=f"the worker cannot start: {e}"))
    else:
        loaded = Loaded(
            pid=os.getpid(),
            runtime_version=engine.runtime_version,
            load_s=time.monotonic() - began_s,
            protections=protections,
        )
        _tell(channel, loaded)
        return engine
    return None


def _answer(
    channel: Channel, engine: Engine, request: Infer | Prove | Measure, given: list[Tensor]
) -> None:
    outputs: list[Tensor] = []
    answer: Inferred | Proved | Measured | Fault
    try:
        if isinstance(request, Infer):
            answer, outputs = engine.infer(request.seq, given)
        elif isinstance(request, Prove):
            answer = Proved(request.seq, engine.prove())
        else:
            answer = engine.measure(request)
    except AidError as e:
        answer = Fault(seq=request.seq, code=e.code, message=str(e), hint=e.hint)
    except MemoryError as e:
        answer = Fault(seq=request.seq, code="memory", message=str(e) or "out of memory")
    _tell(channel, answer, outputs)


def _tell(
    channel: Channel,
    body: Fault | Inferred | Loaded | Proved | Measured,
    tensors: Sequence[Tensor] = (),
) -> None:
    channel.send(body, tensors, until_s=time.monotonic() + ANSWER_TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
