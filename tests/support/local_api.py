"""A running local API over a worker's double, and requests to it."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from device_agent.contract.tensors import Tensor
from device_agent.serving.api import Api
from device_agent.serving.http import Bounds, HttpServer
from device_agent.serving.models import ModelTable, ServedModel
from device_agent.serving.predictions import FeedbackGiven, Predictions
from device_agent.telemetry.recorder import Recorder
from device_agent.worker.handle import InferenceResult
from tests.support import tiny_releases as tiny

NOW = 1_700_000_000.0


class EchoWorker:
    """Implements the table's ``Answering``: gives back the first three inputs as scores.

    Attributes:
        gate: Cleared, every inference waits for it.
        failure: Raised by every inference.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.compute_s = 0.001
        self.is_closed = False
        self.calls = 0

    @property
    def alive(self) -> bool:
        return not self.is_closed

    def infer(self, inputs: Sequence[Tensor], *, deadline_s: float) -> InferenceResult:
        self.calls += 1
        self.entered.release()
        assert self.gate.wait(30)
        assert not self.is_closed, "used after it was closed"
        if self.failure:
            raise self.failure
        rows = inputs[0].shape[0]
        scores = b"".join(bytes(inputs[0].data[16 * r : 16 * r + 12]) for r in range(rows))
        values = struct.unpack(f"<{3 * rows}f", scores)
        best = max(range(3), key=lambda i: values[i])
        output = Tensor("scores", "FP32", (rows, 3), scores)
        return InferenceResult((output,), self.compute_s, best, 0.75)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Served:
    """All parts of a running local API."""

    server: HttpServer
    models: ModelTable
    recorder: Recorder
    predictions: Predictions
    socket_path: Path
    feedback: list[FeedbackGiven] = field(default_factory=list)
    feedback_taker: Callable[[FeedbackGiven], None] | None = None

    def take_feedback(self, given: FeedbackGiven) -> None:
        (self.feedback_taker or self.feedback.append)(given)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def unix_client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.socket_path))
        return httpx.Client(transport=transport, base_url="http://agent", timeout=30)

    def outcomes(self) -> dict[str, int]:
        """Return the outcomes so far that are not zero, and begin a new window."""
        counts: dict[str, int] = {}
        for window in self.recorder.take_windows(NOW):
            for name, n in msgspec.structs.asdict(window.outcomes).items():
                counts[name] = counts.get(name, 0) + n
        return {name: n for name, n in counts.items() if n}


def serve(tmp_path: Path, bounds: Bounds | None = None, queue_max_requests: int = 16) -> Served:
    models = ModelTable(queue_max_requests)
    recorder = Recorder(NOW)
    predictions = Predictions(max_predictions=3)
    taken: list[Served] = []
    api = Api(
        models=models,
        recorder=recorder,
        predictions=predictions,
        status=lambda: {"device": "d1"},
        on_feedback=lambda given: taken[0].take_feedback(given),  # noqa: PLW0108 - not there yet
        agent_version="0.1.0",
        now_unix_s=lambda: NOW,
    )
    path = tmp_path / "run" / "api.sock"
    server = HttpServer(api.answer, port=0, socket_path=path, bounds=bounds)
    taken.append(Served(server, models, recorder, predictions, path))
    return taken[0]


def echo_model(**kwargs: object) -> ServedModel:
    declared = tiny.manifest(**kwargs)
    return ServedModel(declared, tiny.release_ref(declared), EchoWorker(), tiny.LABELS)


def json_body(*rows: Sequence[float], **more: object) -> dict[str, object]:
    """Return an inference request with JSON data."""
    flat = [v for row in rows or [(1.0, 5.0, 2.0, 0.0)] for v in row]
    tensor = {"name": "image", "datatype": "FP32", "shape": [len(rows) or 1, 4], "data": flat}
    return {"inputs": [tensor], **more}
