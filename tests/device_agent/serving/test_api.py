"""The Open Inference Protocol as plain clients speak it, over real connections."""

from __future__ import annotations

import json
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping

import httpx
import numpy as np
import pytest

from device_agent.contract.messages import MAX_TEXT_CHARACTERS
from device_agent.errors import (
    LimitExceededError,
    SpoolError,
    WorkerCrashedError,
    WorkerTimeoutError,
)
from device_agent.serving.models import ServedModel
from device_agent.serving.predictions import FeedbackGiven
from device_agent.worker.handle import MissedDeadlineError, RequestRefusedError
from tests.support.local_api import NOW, EchoWorker, Served, echo_model, json_body

INFER = "/v2/models/tiny/infer"
HEADER = "Inference-Header-Content-Length"


def binary_body(
    values: np.ndarray, name: str = "image", **more: object
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request by the binary tensor data extension."""
    tensor = {
        "name": name,
        "datatype": "FP32",
        "shape": list(values.shape),
        "parameters": {"binary_data_size": values.nbytes},
    }
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + values.tobytes(), {HEADER: str(len(head))}


def refused(response: httpx.Response, status: int, code: str) -> str:
    """Check that ``response`` is a clear refusal; return its message and hint."""
    document = response.json()
    assert (response.status_code, document["code"]) == (status, code), document
    assert document["error"]
    return document["error"] + " | " + document.get("hint", "")


# --- what works, with a real worker ----------------------------------------------------------


def test_json_in_and_out(served: Served, real: ServedModel) -> None:
    with served.client() as client:
        response = client.post(INFER, json=json_body([1, 5, 2, 0], id="mine"))
    document = response.json()
    assert response.status_code == 200
    assert (document["model_name"], document["model_version"]) == ("tiny", "1.0.0")
    assert document["id"] == "mine"
    assert document["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": [1, 5, 2]}
    ]
    parameters = document["parameters"]
    assert (parameters["class"], parameters["label"]) == (1, "bee")
    assert parameters["probability"] == pytest.approx(0.936, abs=0.001)
    assert parameters["release"] == real.release.digest
    assert parameters["compute_ms"] <= parameters["latency_ms"]
    assert served.predictions.find(parameters["inference_id"]) is not None
    assert served.outcomes() == {"ok": 1}


def test_binary_in_and_out_by_the_standard_library(served: Served, real: ServedModel) -> None:
    image = np.array([[9, 5, 2, 0]], "f4")
    body, headers = binary_body(image, parameters={"binary_data_output": True})
    request = urllib.request.Request(served.url + INFER, body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        length = int(response.headers[HEADER])
        data = response.read()
    document = json.loads(data[:length])
    (output,) = document["outputs"]
    assert output["parameters"] == {"binary_data_size": 12}
    assert "data" not in output
    assert np.frombuffer(data[length:], "<f4").tolist() == [9, 5, 2]
    assert document["parameters"]["label"] == "ant"


def test_unix_socket_serves_the_same(served: Served, real: ServedModel) -> None:
    with served.unix_client() as client:
        assert client.post(INFER, json=json_body()).json()["parameters"]["label"] == "bee"
        assert client.get("/v2/health/ready").status_code == 200


def test_runtime_refusal_is_a_bad_request(served: Served, echo: EchoWorker) -> None:
    echo.failure = RequestRefusedError("ONNX Runtime cannot run these inputs: no")
    with served.client() as client:
        assert "cannot run" in refused(client.post(INFER, json=json_body()), 400, "bad-request")
    assert served.outcomes() == {"error": 1}


# --- metadata and health ---------------------------------------------------------------------


def test_metadata(served: Served, echo: EchoWorker) -> None:
    with served.client() as client:
        server = client.get("/v2").json()
        assert server == {
            "name": "aid-agent", "version": "0.1.0", "extensions": ["binary_tensor_data"],
        }  # fmt: skip
        for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1.0.0"):
            document = client.get(path).json()
            assert document["versions"] == ["1.0.0"]
            assert document["platform"] == "onnx_onnxv1"
            assert document["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 4]}]
        assert client.get("/v1/models/tiny/labels").json()["labels"] == ["ant", "bee", "cat"]
        assert client.get("/v1/status").json() == {"device": "d1"}


def test_health_follows_the_worker(served: Served) -> None:
    with served.client() as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        model = echo_model()
        served.models.activate(model)
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
        model.worker.close()
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/tiny/ready").status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v2/models/other", 404, "unknown-model"),
        ("GET", "/v2/models/tiny/versions/9.9", 404, "unknown-model"),
        ("GET", "/v2/models/tiny/config", 404, "not-found"),
        ("POST", "/v2/models/other/infer", 404, "unknown-model"),
        ("GET", INFER, 405, "method"),
        ("POST", "/v2", 405, "method"),
    ],
)
def test_wrong_paths(  # noqa: PLR0917 - given by name
    served: Served, echo: EchoWorker, method: str, path: str, status: int, code: str
) -> None:
    with served.client() as client:
        refused(client.request(method, path, json={} if method == "POST" else None), status, code)
    assert served.outcomes() == {}


# --- requests that do not fit the model ------------------------------------------------------

GOOD = json_body()["inputs"][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "picture"}, "no input 'picture' | The model takes image FP32 [-1, 4]"),
        ({"datatype": "FP64"}, "datatype 'FP64'; it takes FP32"),
        ({"shape": [1, 5]}, "shape [1, 5]; it takes [-1, 4]"),
        ({"shape": [4]}, "shape [4]; it takes [-1, 4]"),
        ({"shape": [0, 4]}, "shape [0, 4]"),
        ({"shape": [-1, 4]}, "shape [-1, 4]"),
        ({"shape": [2, 4]}, "has 4 values; shape [2, 4] takes 8"),
        ({"shape": [10**18, 4]}, "values; shape"),
        ({"shape": "1,4"}, "not an inference request"),
        ({"data": [1, 2, 3]}, "has 3 values"),
        ({"data": [1, "x", 3, 4]}, "data that is not valid"),
        ({"data": [[1, 2], [3, 4]]}, "not nested as shape [1, 4]"),
        ({"data": [[1, 2, 3]]}, "rows that are not of length 4"),
        ({"data": [[1, 2, 3, [4]]]}, "data that is not valid"),
        ({"data": None}, "data that is not valid"),
        ({"parameters": {"binary_data_size": 16}, "data": [1]}, "both data and binary_data_size"),
        ({"parameters": {"binary_data_size": 15}}, "binary_data_size 15; FP32 [1, 4] takes 16"),
    ],
)
def test_input_that_does_not_fit(
    served: Served, echo: EchoWorker, change: Mapping[str, object], said: str
) -> None:
    with served.client() as client:
        response = client.post(INFER, json={"inputs": [{**GOOD, **change}]})
        assert said in refused(response, 400, "bad-request")
        assert client.post(INFER, json=json_body()).status_code == 200
    assert echo.calls == 1
    assert served.outcomes() == {"rejected": 1, "ok": 1}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"inputs": []}, "input 'image' is missing"),
        ({"inputs": [GOOD, GOOD]}, "given twice"),
        ({}, "not an inference request"),
        ([], "not an inference request"),
        ({"inputs": [GOOD] * 65}, "at most 64"),
        ({"inputs": [GOOD], "outputs": [{"name": "logits"}]}, "no output 'logits' | It has scores"),
        ({"inputs": [GOOD], "id": "x" * 129}, "128 characters"),
        (
            {
                "inputs": [GOOD],
                "outputs": [{"name": "scores", "parameters": {"classification": 3}}],
            },
            "classification extension",
        ),
    ],
)
def test_request_that_does_not_fit(
    served: Served, echo: EchoWorker, document: object, said: str
) -> None:
    with served.client() as client:
        assert said in refused(client.post(INFER, json=document), 400, "bad-request")
    assert echo.calls == 0


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"inputs":' * 50_000])
def test_body_that_is_no_json(served: Served, echo: EchoWorker, body: bytes) -> None:
    with served.client() as client:
        refused(client.post(INFER, content=body), 400, "bad-request")
        assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize("depth", [2, 8, 5000])
def test_data_that_is_nested_too_deeply(served: Served, echo: EchoWorker, depth: int) -> None:
    data = "[" * (depth + 1) + "1" + "]" * (depth + 1)
    body = json.dumps({"inputs": [{**GOOD, "data": "@"}]}).replace('"@"', data)
    with served.client() as client:
        refused(client.post(INFER, content=body), 400, "bad-request")
        assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize("length", ["0", "-1", "9999999", "x", "", "9" * 40])
def test_wrong_inference_header_length(served: Served, echo: EchoWorker, length: str) -> None:
    body, _ = binary_body(np.zeros((1, 4), "f4"))
    with served.client() as client:
        refused(client.post(INFER, content=body, headers={HEADER: length}), 400, "bad-request")
    assert echo.calls == 0


def test_binary_data_that_is_cut_or_too_long(served: Served, echo: EchoWorker) -> None:
    body, headers = binary_body(np.zeros((1, 4), "f4"))
    with served.client() as client:
        cut = client.post(INFER, content=body[:-1], headers=headers)
        assert "ends within input 'image': 15 of 16" in refused(cut, 400, "bad-request")
        long = client.post(INFER, content=body + b"xy", headers=headers)
        assert "2 bytes of binary data belong to no input" in refused(long, 400, "bad-request")


def test_nested_and_flat_data_are_the_same(served: Served, echo: EchoWorker) -> None:
    nested = {"inputs": [{**GOOD, "shape": [2, 4], "data": [[1, 2, 3, 4], [5, 6, 7, 8]]}]}
    with served.client() as client:
        outputs = client.post(INFER, json=nested).json()["outputs"]
        flat = {"inputs": [{**GOOD, "shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 8]}]}
        assert outputs == client.post(INFER, json=flat).json()["outputs"]
        assert outputs[0]["data"] == [1, 2, 3, 5, 6, 7]


def test_one_output_may_be_binary(served: Served, echo: EchoWorker) -> None:
    wish = {"name": "scores", "parameters": {"binary_data": True}}
    with served.client() as client:
        response = client.post(INFER, json=json_body(outputs=[wish]))
        length = int(response.headers[HEADER])
        assert struct.unpack("<3f", response.content[length:]) == (1, 5, 2)


def test_not_a_number_is_null_in_json(served: Served, echo: EchoWorker) -> None:
    body, headers = binary_body(np.array([[1, np.nan, np.inf, 0]], "f4"))
    with served.client() as client:
        document = client.post(INFER, content=body, headers=headers).json()
    assert document["outputs"][0]["data"] == [1, None, None]


# --- deadlines -------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [0, -1, "soon", 1e9, True, None, "nan", [1]])
def test_deadline_that_is_none(served: Served, echo: EchoWorker, deadline: object) -> None:
    with served.client() as client:
        response = client.post(INFER, json=json_body(parameters={"deadline_ms": deadline}))
        refused(response, 400, "bad-request")
    assert echo.calls == 0


def test_deadline_header_that_is_none(served: Served, echo: EchoWorker) -> None:
    with served.client() as client:
        response = client.post(INFER, json=json_body(), headers={"X-Deadline-Ms": "-5"})
        assert "'-5'" in refused(response, 400, "bad-request")


@pytest.mark.parametrize(
    ("parameters", "headers"),
    [
        ({"deadline_ms": 30}, {}),
        ({}, {"X-Deadline-Ms": "30"}),
        ({"timeout": 30_000}, {}),
        ({"deadline_ms": 30}, {"X-Deadline-Ms": "3600000"}),
    ],
)
def test_late_answer_is_a_clear_error(
    served: Served, echo: EchoWorker, parameters: dict[str, object], headers: dict[str, str]
) -> None:
    echo.failure = MissedDeadlineError("no answer within 0.03 s", limit_s=0.03)
    with served.client() as client:
        response = client.post(INFER, json=json_body(parameters=parameters), headers=headers)
        refused(response, 504, "deadline")
    assert served.outcomes() == {"deadline": 1}


def test_manifest_deadline_is_the_default(served: Served) -> None:
    model = echo_model(deadline_s=0.05)
    worker = model.worker
    assert isinstance(worker, EchoWorker)
    served.models.activate(model)
    worker.gate.clear()
    with served.client() as client, httpx.Client(base_url=served.url, timeout=30) as other:
        # The first one holds the worker; the second one's time ends while it waits.
        first = _in_thread(lambda: client.post(INFER, json=json_body()))
        assert worker.entered.acquire(timeout=30)
        refused(other.post(INFER, json=json_body()), 504, "deadline")
        worker.gate.set()
        refused(first(), 504, "deadline")
    assert worker.calls == 1
    assert served.outcomes() == {"deadline": 2}


def test_refusal_before_the_work_when_the_queue_is_too_long(
    served: Served, echo: EchoWorker
) -> None:
    echo.compute_s = 10.0
    with served.client() as client, httpx.Client(base_url=served.url, timeout=30) as other:
        slow = json_body(parameters={"deadline_ms": 60_000})
        assert client.post(INFER, json=slow).status_code == 200
        echo.gate.clear()
        first = _in_thread(lambda: client.post(INFER, json=slow))
        assert echo.entered.acquire(timeout=30)
        assert echo.entered.acquire(timeout=30)
        response = other.post(INFER, json=json_body(parameters={"deadline_ms": 5000}))
        assert "1 requests are ahead" in refused(response, 503, "rejected")
        echo.gate.set()
        assert first().status_code == 200
    assert echo.calls == 2
    assert served.outcomes() == {"ok": 2, "rejected": 1}


def test_refusals_do_not_make_a_model_look_faster(served: Served, echo: EchoWorker) -> None:
    with served.client() as client:
        for _ in range(5):
            assert client.post(INFER, json={"inputs": []}).status_code == 400
        assert client.post(INFER, json=json_body()).status_code == 200
    (window,) = served.recorder.take_windows(NOW)
    assert window.outcomes.rejected == 5
    assert sum(window.latency["total"].counts.values()) == echo.calls == 1


def _in_thread(ask):
    """Start ``ask`` in a thread; return what waits for its result."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    future = pool.submit(ask)
    pool.shutdown(wait=False)
    return lambda: future.result(30)


# --- a worker that fails ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "status", "code", "outcome"),
    [
        (WorkerCrashedError("was ended by SIGSEGV"), 503, "worker-crashed", "error"),
        (LimitExceededError("memory", 100, "bytes"), 503, "limit-exceeded", "error"),
        (WorkerTimeoutError("hung", limit_s=5), 504, "deadline", "deadline"),
        (ZeroDivisionError("ours"), 500, "bug", "error"),
    ],
)
def test_worker_that_fails(  # noqa: PLR0917 - given by name
    served: Served, echo: EchoWorker, failure: Exception, status: int, code: str, outcome: str
) -> None:
    echo.failure = failure
    with served.client() as client:
        refused(client.post(INFER, json=json_body()), status, code)
        echo.failure = None
        assert client.post(INFER, json=json_body()).status_code == 200
    assert served.outcomes() == {outcome: 1, "ok": 1}


# --- feedback --------------------------------------------------------------------------------


def infer_id(client: httpx.Client) -> str:
    return str(client.post(INFER, json=json_body()).json()["parameters"]["inference_id"])


def test_verdict_is_bound_to_the_prediction(served: Served, echo: EchoWorker) -> None:
    """M-4.6-1: release, prediction and confidence come from the agent's memory."""
    with served.client() as client:
        inference_id = infer_id(client)
        given = {"inference_id": inference_id, "verdict": "wrong", "label": "cat", "comment": "!"}
        response = client.post("/v1/feedback", json=given)
        assert response.status_code == 202
        assert response.json() == {"inference_id": inference_id, "predicted": "bee"}
    (feedback,) = served.feedback
    assert (feedback.verdict, feedback.label, feedback.comment) == ("wrong", "cat", "!")
    prediction = feedback.prediction
    assert (prediction.predicted, prediction.confidence, prediction.at_unix_s) == ("bee", 0.75, NOW)
    assert prediction.release.name == "tiny"


def test_verdict_on_an_unknown_inference(served: Served, echo: EchoWorker) -> None:
    """M-4.6-1: an unknown id is refused; so is one that was forgotten for newer ones."""
    with served.client() as client:
        first = infer_id(client)
        for _ in range(3):
            infer_id(client)
        for unknown in (first, "01HXXXX", ""):
            given = {"inference_id": unknown, "verdict": "right"}
            refused(client.post("/v1/feedback", json=given), 404, "unknown-inference")
    assert served.feedback == []


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "bad"},
        {"verdict": None},
        {"inference_id": 5},
        {"inference_id": "x" * 65},
        {"label": "x" * (MAX_TEXT_CHARACTERS + 1)},
        {"predicted": "cat"},
        {"comment": "x" * 70_000},
    ],
)
def test_feedback_that_is_none(
    served: Served, echo: EchoWorker, change: Mapping[str, object]
) -> None:
    with served.client() as client:
        given = {"inference_id": infer_id(client), "verdict": "right", **change}
        refused(client.post("/v1/feedback", json=given), 400, "bad-request")
    assert served.feedback == []


def test_feedback_that_cannot_be_kept_is_told(served: Served, echo: EchoWorker) -> None:
    def fail(_: FeedbackGiven) -> None:
        raise SpoolError("the spool cannot be written: disk full")

    served.feedback_taker = fail
    with served.client() as client:
        given = {"inference_id": infer_id(client), "verdict": "right"}
        assert "disk full" in refused(client.post("/v1/feedback", json=given), 503, "spool")


def test_stock_client_error_is_json(served: Served, echo: EchoWorker) -> None:
    request = urllib.request.Request(served.url + INFER, b"{}")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=30)
    with raised.value as error:
        assert error.code == 400
        assert error.headers["Content-Type"] == "application/json"
        assert "error" in json.loads(error.read())
