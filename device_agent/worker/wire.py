"""What supervisor and worker say to each other: contract tensor frames over a Unix socket pair.

Every message is an 8-byte big-endian length followed by a tensor frame (contract §7.1). The
frame's meta holds one of the structs below under the key that is its tag.
"""

from __future__ import annotations

import functools
import socket
import struct
import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from device_agent.contract.errors import MalformedMessageError, MessageTooLargeError
from device_agent.contract.manifest import Limits, RuntimeRef
from device_agent.contract.tensors import Tensor, TensorInfo, decode_frame, encode_frame

MAX_FRAME_BYTES = 512 * 2**20
"""Bound on one message between supervisor and worker."""

_LENGTH = struct.Struct("!Q")
_S = TypeVar("_S", bound=msgspec.Struct)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """First message to a worker: what to load, and under which limits.

    Attributes:
        folder: The release folder, with ``model`` and ``golden`` in it.
        scratch: The only folder that the worker may write to.
        is_classification: Top-1 class and confidence are wanted.
        has_softmax: Outputs are scores; softmax makes them probabilities.
    """

    folder: str
    scratch: str
    runtime: RuntimeRef
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    is_classification: bool
    has_softmax: bool
    limits: Limits


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's answer to :class:`Load`: it serves from now on.

    Attributes:
        protections: Those that the worker turned on for itself.
    """

    pid: int
    runtime_version: str
    load_s: float
    protections: tuple[str, ...] = ()


class Infer(msgspec.Struct, frozen=True):
    """Asks for one inference on the tensors of the frame."""

    seq: int


class Inferred(msgspec.Struct, frozen=True, kw_only=True):
    """One inference's outcome; the outputs are the tensors of the frame."""

    seq: int
    compute_s: float
    top_class: int | None = None
    confidence: float | None = None


class Prove(msgspec.Struct, frozen=True):
    """Asks the worker to run the release's golden vectors."""

    seq: int


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What running the golden vectors showed.

    Attributes:
        vectors: Golden vectors that were run.
        min_cosine: Smallest cosine similarity of any output to its golden output; -1 when an
            output has another shape or is not finite.
        agreement: Share of vectors whose arg-max of the first output is the golden one.
        p50_s: Median time of one inference, in seconds.
        p95_s: 95th percentile, in seconds.
        peak_rss_bytes: Largest resident set of the worker process so far.
        runs: Inferences that the times are of.
    """

    vectors: int
    min_cosine: float
    agreement: float
    p50_s: float
    p95_s: float
    peak_rss_bytes: int
    runs: int = 0


class Proved(msgspec.Struct, frozen=True):
    """The outcome of :class:`Prove`."""

    seq: int
    proof: Proof


class Measure(msgspec.Struct, frozen=True):
    """Asks the worker to time the model on its golden inputs, one inference after another."""

    seq: int
    runs: int = 100
    warmup: int = 10


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of :class:`Measure`.

    Attributes:
        latencies_s: Of the runtime's call alone, one per run, warm-up runs left out, in order.
        peak_rss_bytes: Largest resident set of the worker process so far.
    """

    seq: int
    latencies_s: tuple[float, ...]
    peak_rss_bytes: int


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """The worker could not do what was asked; it serves on unless it was loading.

    Attributes:
        seq: The request; 0 while loading.
        code: ``memory``, ``runtime``, ``model`` or ``request``.
    """

    seq: int
    code: str
    message: str
    hint: str = ""


class Channel:
    """One end of the socket pair; not for use by two threads at once.

    A receive that times out in the middle of a message goes on where it stopped the next time, so
    a missed deadline does not cost the connection.

    Args:
        end: The socket, which the channel owns from now on.
        reuse: Receive every message into the same memory: for a side that is done with one
            message's tensors before it asks for the next message.
    """

    def __init__(self, end: socket.socket, *, reuse: bool = False) -> None:
        self._end = end
        self._reuse = reuse
        self._memory = bytearray()
        self._prefix = bytearray(_LENGTH.size)
        self._rest = memoryview(self._prefix)
        self._message: memoryview | None = None

    def fileno(self) -> int:
        """Return the file descriptor, for polling."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end; the other one reads its end of file."""
        self._end.close()

    def send(self, body: msgspec.Struct, tensors: Sequence[Tensor] = (), *, until_s: float) -> None:
        """Send ``body`` and ``tensors`` as one message before the monotonic time ``until_s``.

        Raises:
            MessageTooLargeError: The message is over ``MAX_FRAME_BYTES``; nothing was sent.
            TimeoutError: The other side does not read; the channel cannot be used any more.
            OSError: The other side is gone.
        """
        infos = [Tensor(t.name, t.datatype, t.shape, b"") for t in tensors]
        head = encode_frame(infos, {type(body).__name__: body})
        size = len(head) + sum(len(t.data) for t in tensors)
        if size > MAX_FRAME_BYTES:
            raise MessageTooLargeError("worker message", size, MAX_FRAME_BYTES)
        parts = [_LENGTH.pack(size), head, *(t.data for t in tensors)]
        views = [memoryview(p).cast("B") for p in parts if len(p)]
        while views:
            self._end.settimeout(_left_s(until_s))
            sent = self._end.sendmsg(views)
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def receive(self, *, until_s: float | None) -> tuple[list[Tensor], dict[str, msgspec.Raw]]:
        """Return the next message's tensors and meta.

        Args:
            until_s: Monotonic time at which to give up; None waits for ever.

        Raises:
            TimeoutError: Nothing, or not all, came in time.
            EOFError: The other side is gone.
            ContractError: The message is not one.
        """
        if self._message is None:
            self._fill(until_s)
            (size,) = _LENGTH.unpack(self._prefix)
            if size > MAX_FRAME_BYTES:
                raise MessageTooLargeError("worker message", size, MAX_FRAME_BYTES)
            if not self._reuse or len(self._memory) < size:
                self._memory = bytearray(size)
            self._message = memoryview(self._memory)[:size]
            self._rest = self._message
        self._fill(until_s)
        message, self._message, self._rest = self._message, None, memoryview(self._prefix)
        return decode_frame(message, max_bytes=MAX_FRAME_BYTES)

    def _fill(self, until_s: float | None) -> None:
        while len(self._rest):
            self._end.settimeout(None if until_s is None else _left_s(until_s))
            count = self._end.recv_into(self._rest)
            if not count:
                raise EOFError("the other side closed the channel")
            self._rest = self._rest[count:]


def _left_s(until_s: float) -> float:
    left = until_s - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


@functools.cache
def _decoder(kind: type[_S]) -> msgspec.json.Decoder[_S]:
    return msgspec.json.Decoder(kind)


def body_of(meta: dict[str, msgspec.Raw], kind: type[_S]) -> _S | None:
    """Return the ``kind`` in a message's meta, or None when it holds another.

    Raises:
        MalformedMessageError: It is there, and not valid.
    """
    raw = meta.get(kind.__name__)
    if raw is None:
        return None
    try:
        decoded: _S = _decoder(kind).decode(raw)
    except msgspec.DecodeError as e:
        raise MalformedMessageError(f"worker message {kind.__name__}: {e}") from e
    return decoded
