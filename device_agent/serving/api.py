"""The local API: what each path answers (Open Inference Protocol v2, status, feedback)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from device_agent.contract.errors import AidError
from device_agent.contract.messages import MAX_TEXT_CHARACTERS, Verdict
from device_agent.errors import WorkerTimeoutError
from device_agent.serving import oip
from device_agent.serving.http1 import Head, Response, json_response
from device_agent.serving.models import Lease, ModelTable, ServedModel
from device_agent.serving.predictions import (
    FeedbackGiven,
    Prediction,
    Predictions,
    new_inference_id,
)
from device_agent.serving.refusals import (
    BadRequestError,
    DeadlineError,
    MethodError,
    NotFoundError,
    NotReadyError,
    RefusalError,
    UnknownInferenceError,
)
from device_agent.telemetry.recorder import Outcome, Recorder
from device_agent.worker.handle import InferenceResult, MissedDeadlineError, RequestRefusedError

_log = logging.getLogger(__name__)
_MODEL = re.compile(
    r"/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?(?P<verb>/ready|/infer)?"
)
_LABELS = re.compile(r"/v1/models/(?P<name>[^/]+)/labels")
_JSON_LENGTH = "Inference-Header-Content-Length"
MAX_FEEDBACK_BYTES = 64 * 1024

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS)]


class FeedbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``POST /v1/feedback`` takes.

    Attributes:
        label: What the person says it is, for ``wrong``.
    """

    inference_id: Annotated[str, msgspec.Meta(max_length=64)]
    verdict: Verdict
    label: Text = ""
    comment: Text = ""


_feedback_decoder = msgspec.json.Decoder(FeedbackBody)


@dataclass
class _Timing:
    """What is known of a request when it is recorded."""

    arrived_s: float
    queue_s: float | None = None
    result: InferenceResult | None = None

    @property
    def total_s(self) -> float:
        return time.monotonic() - self.arrived_s


@dataclass(frozen=True)
class Api:
    """Answers requests, whichever connection they came by; safe from any thread.

    Attributes:
        models: What is served.
        recorder: Told of every inference request.
        predictions: Memory that verdicts are bound by.
        status: Gives the document of ``GET /v1/status``; anything that msgspec encodes.
        on_feedback: Takes a verdict; may raise an ``AidError``, which the person is shown.
        agent_version: Shown by ``GET /v2``.
    """

    models: ModelTable
    recorder: Recorder
    predictions: Predictions
    status: Callable[[], object]
    on_feedback: Callable[[FeedbackGiven], None]
    agent_version: str
    now_unix_s: Callable[[], float] = field(default=time.time)

    def answer(self, head: Head, body: memoryview, arrived_s: float) -> Response:
        """Return the answer to one request.

        Args:
            head: Request line and headers.
            body: The whole body.
            arrived_s: Monotonic time at which the head was read.
        """
        try:
            return self._route(head, body, arrived_s)
        except AidError as e:
            return refusal(e)
        except Exception:  # noqa: BLE001 - the last resort of a server
            # A bug of ours: told with its trace, and no reason to stop serving.
            _log.exception("%s %s", head.method, head.path[:100])
            return json_response(500, {"error": "the agent has a bug", "code": "bug"})

    def _route(self, head: Head, body: memoryview, arrived_s: float) -> Response:
        model = _MODEL.fullmatch(head.path)
        if model and model["verb"] == "/infer":
            _demand(head, "POST")
            return self._infer(head, body, model["name"], model["version"], arrived_s)
        if head.path == "/v1/feedback":
            _demand(head, "POST")
            return self._feedback(body)
        _demand(head, "GET")
        status, document = self._about_model(model) if model else self._about(head.path)
        return json_response(status, document)

    def _about_model(self, path: re.Match[str]) -> tuple[int, object]:
        served = self._model(path["name"], path["version"])
        if path["verb"] is None:
            return 200, oip.model_metadata(served.manifest)
        is_ready = served.worker.alive
        return 200 if is_ready else 503, {"name": path["name"], "ready": is_ready}

    def _about(self, path: str) -> tuple[int, object]:
        if labels := _LABELS.fullmatch(path):
            served = self._model(labels["name"], None)
            return 200, {"name": labels["name"], "labels": served.labels}
        match path.rstrip("/"):
            case "/v2":
                return 200, oip.server_metadata(self.agent_version)
            case "/v2/health/live":
                return 200, {"live": True}
            case "/v2/health/ready":
                served_all = self.models.served()
                is_ready = bool(served_all) and all(m.worker.alive for m in served_all)
                return 200 if is_ready else 503, {"ready": is_ready}
            case "/v1/status":
                return 200, self.status()
        raise NotFoundError(
            f"there is nothing at {path[:100]}",
            hint="The API is that of the Open Inference Protocol v2, under /v2; "
            "see also /v1/status and /v1/feedback.",
        )

    def _model(self, name: str, version: str | None) -> ServedModel:
        with self.models.lease(name, version) as lease:
            return lease.model

    def _feedback(self, body: memoryview) -> Response:
        if len(body) > MAX_FEEDBACK_BYTES:
            raise BadRequestError(f"feedback has at most {MAX_FEEDBACK_BYTES} bytes")
        try:
            given = _feedback_decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise BadRequestError(
                f"the body is not feedback: {e}",
                hint='It needs {"inference_id": ..., "verdict": "right"|"wrong"|"unclear"}.',
            ) from e
        # contract M-4.6-1: what was predicted comes from memory, never from the person.
        prediction = self.predictions.find(given.inference_id)
        if prediction is None:
            raise UnknownInferenceError(f"inference {given.inference_id!r} is not remembered")
        self.on_feedback(FeedbackGiven(prediction, given.verdict, given.label, given.comment))
        accepted = {"inference_id": prediction.id, "predicted": prediction.predicted}
        return json_response(202, accepted)

    def _infer(
        self, head: Head, body: memoryview, name: str, version: str | None, arrived_s: float
    ) -> Response:
        with self.models.lease(name, version) as lease:
            timing = _Timing(arrived_s)
            outcome: Outcome = "error"
            try:
                response = self._infer_with(lease, head, body, timing)
                outcome = "ok"
            except (DeadlineError, MissedDeadlineError) as e:
                outcome = "deadline"
                raise DeadlineError(f"{name}: {e}", hint="Ask with a later deadline.") from e
            except RequestRefusedError as e:
                raise BadRequestError(f"{name}: {e}", hint=e.hint) from e
            except RefusalError:
                outcome = "rejected"
                raise
            except WorkerTimeoutError as e:
                outcome = "deadline"
                raise DeadlineError(f"{name}: {e}", cause=e.cause) from e
            finally:
                self._record(lease.model, outcome, timing)
        return response

    def _infer_with(self, lease: Lease, head: Head, body: memoryview, timing: _Timing) -> Response:
        served = lease.model
        request = oip.decode_request(body, _json_bytes(head), served.manifest)
        deadline_s = request.deadline_s
        if deadline_s is None and "x-deadline-ms" in head.headers:
            deadline_s = oip.parse_deadline_ms(head.headers["x-deadline-ms"])
        until_s = timing.arrived_s + (deadline_s or served.manifest.limits.deadline_s)
        result, timing.queue_s = lease.infer(request.inputs, until_s=until_s)
        if timing.total_s > until_s - timing.arrived_s:
            raise DeadlineError(f"the answer came after {timing.total_s:.3g} s")
        timing.result = result
        prediction = self._remember(served, result, timing.total_s)
        parts, json_length = oip.encode_response(
            served.manifest,
            request.id or prediction.id,
            result.outputs,
            request.outputs,
            _parameters(served, prediction, timing),
        )
        if json_length is None:
            return Response(200, parts)
        return Response(
            200, parts, "application/octet-stream", headers={_JSON_LENGTH: str(json_length)}
        )

    def _remember(
        self, served: ServedModel, result: InferenceResult, latency_s: float
    ) -> Prediction:
        now_s = self.now_unix_s()
        best = result.top_class
        prediction = Prediction(
            id=new_inference_id(now_s),
            release=served.release,
            at_unix_s=now_s,
            predicted="" if best is None else served.label(best),
            confidence=result.confidence,
            latency_s=latency_s,
        )
        self.predictions.remember(prediction)
        return prediction

    def _record(self, served: ServedModel, outcome: Outcome, timing: _Timing) -> None:
        result = timing.result
        self.recorder.record(
            served.release,
            outcome,
            queue_s=timing.queue_s,
            compute_s=result.compute_s if result else None,
            # A refusal takes no time, and would make the model look faster than it is.
            total_s=None if outcome == "rejected" else timing.total_s,
            top_class=result.top_class if result else None,
            confidence=result.confidence if result else None,
        )


def _parameters(served: ServedModel, prediction: Prediction, timing: _Timing) -> dict[str, object]:
    result = timing.result
    parameters: dict[str, object] = {
        "inference_id": prediction.id,
        "release": served.release.digest,
        "latency_ms": round(timing.total_s * 1000, 3),
        "queue_ms": round((timing.queue_s or 0.0) * 1000, 3),
    }
    if result:
        parameters["compute_ms"] = round(result.compute_s * 1000, 3)
        if result.top_class is not None:
            parameters["class"] = result.top_class
            parameters["label"] = prediction.predicted
        if result.confidence is not None:
            parameters["probability"] = round(result.confidence, 6)
    return parameters


def _json_bytes(head: Head) -> int | None:
    given = head.headers.get(_JSON_LENGTH.lower())
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 16):
        raise BadRequestError(f"{_JSON_LENGTH} is {given[:40]!r}", hint="It is a number of bytes.")
    return int(given)


def _demand(head: Head, method: str) -> None:
    if head.method != method:
        raise MethodError(f"{head.path[:100]} takes {method}, not {head.method}")


def refusal(error: AidError) -> Response:
    """Return ``error`` as the answer that tells of it."""
    status = error.status if isinstance(error, RefusalError) else NotReadyError.default_status
    document = {
        "error": str(error), "code": error.code, "hint": error.hint, "cause": error.cause,
    }  # fmt: skip
    is_closing = isinstance(error, RefusalError) and error.is_closing
    return json_response(status, {k: v for k, v in document.items() if v}, is_closing=is_closing)
