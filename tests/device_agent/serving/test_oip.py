"""The Open Inference Protocol's encoding of every element type, without any I/O."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract.tensors import ITEM_BYTES, Tensor, TensorInfo
from device_agent.serving import oip
from device_agent.serving.refusals import BadRequestError, RefusalError
from tests.support import tiny_releases as tiny

NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def extremes(datatype: str) -> list[object]:
    kind = np.dtype(NUMPY[datatype])
    if datatype == "BOOL":
        return [True, False, False, True]
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        return [int(bounds.min), 0, 1, int(bounds.max)]
    largest = np.finfo(kind)
    return [float(largest.min), 0.0, -1.5, float(largest.max)]


def echo_manifest(datatype: str) -> object:
    info = (TensorInfo("x", datatype, (2, -1)),)
    return tiny.manifest(inputs=info, outputs=info)


@pytest.mark.parametrize("datatype", ITEM_BYTES)
def test_values_go_in_and_come_out(datatype: str) -> None:
    values = extremes(datatype)
    declared = echo_manifest(datatype)
    tensor = {"name": "x", "datatype": datatype, "shape": [2, 2], "data": values}
    request = oip.decode_request(json.dumps({"inputs": [tensor]}).encode(), None, declared)
    (decoded,) = request.inputs
    expected = np.array(values, NUMPY[datatype])
    assert bytes(decoded.data) == expected.tobytes()
    parts, length = oip.encode_response(declared, "id", [decoded], request.outputs, {})
    assert length is None
    assert json.loads(b"".join(parts))["outputs"][0]["data"] == values


@pytest.mark.parametrize("datatype", ITEM_BYTES)
def test_binary_passes_unchanged(datatype: str) -> None:
    raw = np.array(extremes(datatype), NUMPY[datatype]).tobytes()
    declared = echo_manifest(datatype)
    tensor = {
        "name": "x", "datatype": datatype, "shape": [2, 2],
        "parameters": {"binary_data_size": len(raw)},
    }  # fmt: skip
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(document).encode()
    request = oip.decode_request(head + raw, len(head), declared)
    assert bytes(request.inputs[0].data) == raw
    parts, length = oip.encode_response(declared, "id", request.inputs, request.outputs, {})
    body = b"".join(parts)
    assert length is not None
    assert body[length:] == raw
    entry = json.loads(body[:length])["outputs"][0]
    assert entry["parameters"] == {"binary_data_size": len(raw)}


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("UINT8", 256), ("UINT8", -1), ("INT8", 128), ("INT32", 2**31), ("UINT64", -1),
        ("UINT64", 2**64), ("INT64", 2**63), ("INT64", 1.5), ("INT64", True), ("BOOL", 1),
        ("FP32", True), ("FP32", "1"), ("FP16", 1e6), ("FP32", None),
    ],
)  # fmt: skip
def test_value_that_is_not_of_its_type(datatype: str, value: object) -> None:
    tensor = {"name": "x", "datatype": datatype, "shape": [2, 1], "data": [value, value]}
    with pytest.raises(BadRequestError, match="input 'x' has"):
        oip.decode_request(json.dumps({"inputs": [tensor]}).encode(), None, echo_manifest(datatype))


def test_inputs_come_in_the_manifests_order() -> None:
    infos = (TensorInfo("a", "UINT8", (1,)), TensorInfo("b", "UINT8", (1,)))
    tensors = [
        {"name": n, "datatype": "UINT8", "shape": [1], "data": [v]} for n, v in (("b", 2), ("a", 1))
    ]
    request = oip.decode_request(
        json.dumps({"inputs": tensors}).encode(), None, tiny.manifest(inputs=infos)
    )
    assert [(t.name, bytes(t.data)) for t in request.inputs] == [("a", b"\1"), ("b", b"\2")]


def test_scalar() -> None:
    info = (TensorInfo("x", "FP32", ()),)
    tensor = {"name": "x", "datatype": "FP32", "shape": [], "data": [2.5]}
    request = oip.decode_request(
        json.dumps({"inputs": [tensor]}).encode(), None, tiny.manifest(inputs=info)
    )
    assert tiny.values_of(request.inputs[0]) == 2.5


@pytest.mark.parametrize("value", [1, 0.5, "250", 3_600_000])
def test_deadline(value: object) -> None:
    assert oip.parse_deadline_ms(value) == float(value) / 1000


@pytest.mark.parametrize(
    "value", [0, -3, math.inf, math.nan, "1e99", "", "1,5", False, None, 10**400, -(10**400)]
)
def test_deadline_that_is_none(value: object) -> None:
    with pytest.raises(BadRequestError, match="deadline_ms"):
        oip.parse_deadline_ms(value)


@pytest.mark.parametrize("name", ["deadline_ms", "timeout"])
def test_deadline_beyond_all_floats_is_refused(name: str) -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    body = json.dumps({"inputs": [tensor], "parameters": {name: 10**400}}).encode()
    with pytest.raises(BadRequestError, match="deadline_ms"):
        oip.decode_request(body, None, tiny.manifest())


@given(st.binary(max_size=400), st.one_of(st.none(), st.integers(-5, 500)))
def test_any_bytes_are_a_request_or_a_clear_refusal(body: bytes, length: int | None) -> None:
    with pytest.raises(RefusalError):
        oip.decode_request(body, length, tiny.manifest())


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {
            "name": st.just("image") | _json,
            "datatype": st.just("FP32") | _json,
            "shape": st.just([1, 4]) | _json,
            "data": st.just([1, 2, 3, 4]) | _json,
            "parameters": st.just({}) | _json,
        }
    )
)
def test_any_json_is_a_request_or_a_clear_refusal(tensor: dict[str, object]) -> None:
    body = json.dumps({"inputs": [tensor]}).encode()
    try:
        request = oip.decode_request(body, None, tiny.manifest())
    except RefusalError:
        return
    assert isinstance(request.inputs[0], Tensor)


def test_serving_loads_no_numpy_and_no_runtime() -> None:
    code = (
        "import sys, device_agent.serving.http, device_agent.serving.api, "
        "device_agent.worker.handle\n"
        "print({'numpy', 'onnxruntime', 'ai_edge_litert', 'http.server', 'email'}"
        " & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
