"""Inference through the agent's HTTP and Unix socket against the bare runtime in process."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contract.manifest import Manifest, decode_manifest
from examples.local_fleet import Device
from tests.bench.figures import Bench, Figure, alternate, median

ROUNDS = 200
WARM_UP = 20
TIMEOUT_S = 30.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def serving(bench: Bench, device: Device) -> None:
    """Compare for whatever the device serves now."""
    folder = device.home / "slots" / "active"
    manifest = decode_manifest((folder / "manifest.json").read_bytes())
    info = manifest.inputs[0]
    shape = tuple(1 if d < 0 else d for d in info.shape)
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    bare = bare_runtime(folder, manifest, array)
    api = device.api()
    tcp = http.client.HTTPConnection("127.0.0.1", api["port"], timeout=TIMEOUT_S)
    tcp.connect()
    tcp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    doors: dict[str, http.client.HTTPConnection] = {
        "HTTP": tcp,
        "Unix socket": _UnixConnection(str(Path(api["socket"]))),
    }
    for door, connection in doors.items():
        ask = _request(connection, manifest, info.name, array)
        for _ in range(WARM_UP):
            ask()
            bare()
        through, alone = alternate(partial(_timed, ask), partial(_timed, bare), ROUNDS)
        added_ms = (median(through) - median(alone)) * 1e3
        bench.add(
            Figure(
                f"{manifest.name}: p50 through the agent, {door}",
                median(through) * 1e3,
                median(alone) * 1e3,
                "ms",
                f"bare {manifest.runtime.name} in process (adds {added_ms:.2f} ms)",
                "at most 1.05x over 10 ms, at most 0.5 ms added below",
                ROUNDS,
            )
        )
        connection.close()


def bare_runtime(folder: Path, manifest: Manifest, array: NDArray[Any]) -> Callable[[], object]:
    """Return a call of the release's model without anything around it."""
    if manifest.runtime.name == "onnx_runtime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = manifest.limits.threads
        session = onnxruntime.InferenceSession(
            str(folder / "model"), options, providers=["CPUExecutionProvider"]
        )
        feed = {manifest.inputs[0].name: array}
        return lambda: session.run(None, feed)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        model_content=(folder / "model").read_bytes(), num_threads=manifest.limits.threads
    )
    interpreter.allocate_tensors()
    where = interpreter.get_input_details()[0]
    scale, zero = where["quantization"]
    data = array if where["dtype"] is np.float32 else np.round(array / scale + zero).astype(np.int8)
    output = interpreter.get_output_details()[0]["index"]

    def call() -> object:
        interpreter.set_tensor(where["index"], data)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return call


def _request(
    connection: http.client.HTTPConnection, manifest: Manifest, name: str, array: NDArray[Any]
) -> Callable[[], bytes]:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": array.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = header + array.tobytes()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }

    def ask() -> bytes:
        connection.request("POST", f"/v2/models/{manifest.name}/infer", body, headers)
        reply = connection.getresponse()
        data = reply.read()
        if reply.status != 200:
            raise RuntimeError(data[:500])
        return data

    return ask


def _timed(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s
