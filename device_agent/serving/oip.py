"""The Open Inference Protocol v2 over REST, and its binary tensor data extension: pure.

Specification: github.com/kserve/open-inference-protocol, ``inference_rest.md``; the extension is
Triton's ``extension_binary_data.md``. In JSON, a number that is not finite is ``null``.
"""

from __future__ import annotations

import array
import itertools
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from device_agent.contract.manifest import Manifest
from device_agent.contract.tensors import (
    MAX_RANK,
    Tensor,
    TensorInfo,
    size_bytes,
)
from device_agent.serving.refusals import BadRequestError

SERVER_NAME = "aid-agent"
EXTENSIONS = ("binary_tensor_data",)
MAX_DEADLINE_S = 3600.0
MAX_ID_CHARACTERS = 128
MAX_TENSORS = 64
PLATFORMS = {"onnx_runtime": "onnx_onnxv1", "litert": "tensorflow_litert"}

_TYPE_CODES = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
    "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip

Parameters = dict[str, str | int | float | bool | None]


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: Parameters = {}


class _Request(msgspec.Struct, frozen=True):
    inputs: list[_Input]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[_Output] = []


_request_decoder = msgspec.json.Decoder(_Request)
_nested_decoder = msgspec.json.Decoder(list[Any])
_JSON_TYPES: dict[str, type] = {"BOOL": bool, "FP16": float, "FP32": float, "FP64": float}
"""What a JSON value of an element type is; int where nothing is said."""

_LIST_TYPES: dict[type, object] = {bool: list[bool], int: list[int], float: list[float]}
_flat_decoders: dict[type, msgspec.json.Decoder[list[Any]]] = {
    bool: msgspec.json.Decoder(list[bool]),
    int: msgspec.json.Decoder(list[int]),
    float: msgspec.json.Decoder(list[float]),
}


@dataclass(frozen=True)
class OutputWish:
    """An output that the client wants, and whether as binary."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class InferenceRequest:
    """A request that fits its model.

    Attributes:
        id: The client's own id; empty when it gave none.
        inputs: In the order of the manifest.
        outputs: In the order of the response.
        deadline_s: When the answer is due, in seconds from the request's arrival, or None.
    """

    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[OutputWish, ...]
    deadline_s: float | None


def decode_request(
    body: bytes | memoryview, json_bytes: int | None, manifest: Manifest
) -> InferenceRequest:
    """Return the inference request in ``body``.

    Args:
        body: The whole HTTP body; the tensors are views into it.
        json_bytes: Value of the header ``Inference-Header-Content-Length``, if there is one.
        manifest: The model that is asked.

    Raises:
        BadRequestError: It is not one, or does not fit the model; says what was expected.
    """
    view = memoryview(body)
    if json_bytes is not None and not 0 < json_bytes <= len(view):
        raise BadRequestError(
            f"Inference-Header-Content-Length is {json_bytes}, the body has {len(view)} bytes"
        )
    try:
        request = _request_decoder.decode(view[:json_bytes])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadRequestError(
            f"the body is not an inference request: {e}",
            hint='It needs {"inputs": [{"name", "shape", "datatype", "data"}]}.',
        ) from e
    if len(request.inputs) > MAX_TENSORS or len(request.outputs) > MAX_TENSORS:
        raise BadRequestError(f"a request has at most {MAX_TENSORS} inputs and outputs")
    if len(request.id) > MAX_ID_CHARACTERS:
        raise BadRequestError(f"id has over {MAX_ID_CHARACTERS} characters")
    binary = view[json_bytes:] if json_bytes is not None else view[:0]
    return InferenceRequest(
        request.id,
        _inputs(request.inputs, binary, manifest),
        _outputs(request, manifest),
        _deadline_s(request.parameters),
    )


def parse_deadline_ms(value: object) -> float:
    """Return a deadline given in milliseconds as seconds.

    Raises:
        BadRequestError: It is not a number over 0 and up to an hour.
    """
    try:
        deadline_s = float(cast("str", value)) / 1000
    except (TypeError, ValueError, OverflowError):
        deadline_s = math.nan
    if isinstance(value, bool) or not 0 < deadline_s <= MAX_DEADLINE_S:
        raise BadRequestError(
            f"deadline_ms is {str(value)[:40]!r}",
            hint=f"It is a number over 0 and up to {MAX_DEADLINE_S * 1000:g}.",
        )
    return deadline_s


def _deadline_s(parameters: Parameters) -> float | None:
    if "deadline_ms" in parameters:
        return parse_deadline_ms(parameters["deadline_ms"])
    timeout_us = parameters.get("timeout")
    if timeout_us:
        # What stock clients send: Triton's request timeout, in microseconds.
        if isinstance(timeout_us, (str, bool)):
            raise BadRequestError("parameter timeout is not a number of microseconds")
        return parse_deadline_ms(
            timeout_us // 1000 if abs(timeout_us) > 1e15 else timeout_us / 1000
        )
    return None


def _inputs(given: list[_Input], binary: memoryview, manifest: Manifest) -> tuple[Tensor, ...]:
    expected = {info.name: info for info in manifest.inputs}
    tensors: dict[str, Tensor] = {}
    offset = 0
    for tensor in given:
        info = expected.get(tensor.name)
        if info is None:
            raise BadRequestError(
                f"the model has no input {tensor.name[:64]!r}", hint=_declared(manifest.inputs)
            )
        if tensor.name in tensors:
            raise BadRequestError(f"input {tensor.name!r} is given twice")
        _check(tensor, info)
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            data: bytes | memoryview = _from_json(tensor, info)
        else:
            data, offset = _from_binary(tensor, size, binary, offset)
        tensors[tensor.name] = Tensor(info.name, info.datatype, tuple(tensor.shape), data)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise BadRequestError(f"input {missing[0]!r} is missing", hint=_declared(manifest.inputs))
    if offset != len(binary):
        raise BadRequestError(f"{len(binary) - offset} bytes of binary data belong to no input")
    return tuple(tensors[info.name] for info in manifest.inputs)


def _check(tensor: _Input, info: TensorInfo) -> None:
    if tensor.datatype != info.datatype:
        raise BadRequestError(
            f"input {info.name!r} has datatype {tensor.datatype[:16]!r}; it takes {info.datatype}",
            hint=_declared([info]),
        )
    shape = tensor.shape
    fits = len(shape) == len(info.shape) <= MAX_RANK and all(
        d >= 1 and e in (-1, d) for d, e in zip(shape, info.shape, strict=True)
    )
    if not fits:
        raise BadRequestError(
            f"input {info.name!r} has shape {shape[: MAX_RANK + 1]}; it takes {list(info.shape)}",
            hint=_declared([info]),
        )


def _from_binary(
    tensor: _Input, size: object, binary: memoryview, offset: int
) -> tuple[memoryview, int]:
    expected = size_bytes(tensor.datatype, tensor.shape)
    if size != expected or isinstance(size, bool):
        raise BadRequestError(
            f"input {tensor.name!r} has binary_data_size {str(size)[:20]}; {tensor.datatype} "
            f"{tensor.shape} takes {expected} bytes"
        )
    if len(tensor.data):
        raise BadRequestError(f"input {tensor.name!r} has both data and binary_data_size")
    end = offset + expected
    if end > len(binary):
        raise BadRequestError(
            f"the binary data ends within input {tensor.name!r}: {len(binary) - offset} of "
            f"{expected} bytes are there",
            hint="Inference-Header-Content-Length is the length of the JSON in front.",
        )
    return binary[offset:end], end


def _from_json(tensor: _Input, info: TensorInfo) -> bytes:
    count = math.prod(tensor.shape)
    try:
        values = _flat(tensor)
        if len(values) != count:
            raise BadRequestError(
                f"input {info.name!r} has {len(values)} values; shape {tensor.shape} takes {count}"
            )
        return _packed(values, info.datatype)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        what = "has no data" if not len(tensor.data) else f"has data that is not valid: {e}"
        raise BadRequestError(f"input {info.name!r} {what}", hint=_declared([info])) from e
    except (OverflowError, TypeError, ValueError, struct.error) as e:
        raise BadRequestError(
            f"input {info.name!r} has a value that is not {info.datatype}: {e}"
        ) from e


def _flat(tensor: _Input) -> list[Any]:
    """Return the values of a flat list, or of nested lists of the declared shape."""
    item: type = _JSON_TYPES.get(tensor.datatype, int)
    if b"".join(bytes(memoryview(tensor.data)[:64]).split())[:2] != b"[[":
        return _flat_decoders[item].decode(tensor.data)
    values: list[Any] = _nested_decoder.decode(tensor.data)
    for depth in range(1, len(tensor.shape)):
        outer = math.prod(tensor.shape[:depth])
        if len(values) != outer or not all(isinstance(v, list) for v in values):
            raise BadRequestError(
                f"input {tensor.name!r} is not nested as shape {tensor.shape} says",
                hint="Nest the values exactly so, or give them as one flat list.",
            )
        if any(len(v) != tensor.shape[depth] for v in values):
            raise BadRequestError(
                f"input {tensor.name!r} has rows that are not of length {tensor.shape[depth]}"
            )
        values = list(itertools.chain.from_iterable(values))
    return cast("list[Any]", msgspec.convert(values, _LIST_TYPES[item]))


def _packed(values: list[Any], datatype: str) -> bytes:
    if datatype == "BOOL":
        return bytes(values)
    if datatype == "FP16":
        return struct.pack(f"<{len(values)}e", *values)
    packed = array.array(_TYPE_CODES[datatype], values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _declared(infos: Sequence[TensorInfo]) -> str:
    said = ", ".join(f"{i.name} {i.datatype} {list(i.shape)}" for i in infos)
    return f"The model takes {said}; -1 is any size."


def _outputs(request: _Request, manifest: Manifest) -> tuple[OutputWish, ...]:
    is_binary = request.parameters.get("binary_data_output") is True
    known = [info.name for info in manifest.outputs]
    if not request.outputs:
        return tuple(OutputWish(name, is_binary) for name in known)
    wishes = []
    for output in request.outputs:
        if output.name not in known:
            raise BadRequestError(
                f"the model has no output {output.name[:64]!r}", hint=f"It has {', '.join(known)}."
            )
        if "classification" in output.parameters:
            raise BadRequestError(
                "the classification extension is not served",
                hint="The response's parameters hold label and probability of the best class.",
            )
        wishes.append(
            OutputWish(output.name, output.parameters.get("binary_data", is_binary) is True)
        )
    return tuple(wishes)


def encode_response(
    manifest: Manifest,
    response_id: str,
    outputs: Sequence[Tensor],
    wishes: Sequence[OutputWish],
    parameters: Mapping[str, object],
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of the body, and the length of its JSON where binary data follows."""
    by_name = {tensor.name: tensor for tensor in outputs}
    described = []
    binary: list[bytes | memoryview] = []
    for wish in wishes:
        tensor = by_name[wish.name]
        entry: dict[str, object] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape,
        }  # fmt: skip
        if wish.is_binary:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            binary.append(tensor.data)
        else:
            entry["data"] = values_of(tensor)
        described.append(entry)
    head = msgspec.json.encode(
        {
            "model_name": manifest.name,
            "model_version": manifest.version,
            "id": response_id,
            "parameters": parameters,
            "outputs": described,
        }
    )
    return [head, *binary], len(head) if binary else None


def values_of(tensor: Tensor) -> list[Any]:
    """Return the values of ``tensor`` as one flat list of Python numbers."""
    if tensor.datatype == "BOOL":
        return [bool(v) for v in tensor.data]
    if tensor.datatype == "FP16":
        return [v for (v,) in struct.iter_unpack("<e", tensor.data)]
    values = array.array(_TYPE_CODES[tensor.datatype])
    values.frombytes(tensor.data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def server_metadata(version: str) -> dict[str, object]:
    """Return the document of ``GET /v2``."""
    return {"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS}


def model_metadata(manifest: Manifest) -> dict[str, object]:
    """Return the document of ``GET /v2/models/<name>``."""
    runtime = manifest.runtime.name
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": PLATFORMS.get(runtime, runtime),
        "inputs": manifest.inputs,
        "outputs": manifest.outputs,
    }
