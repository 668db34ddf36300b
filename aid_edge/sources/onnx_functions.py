# ruff: noqa: ARG005 -- every function of the table takes the same three arguments
"""ONNX operators without weights as PyTorch functions. Imported only in worker processes.

Each takes the node's attributes, its inputs as tensors, and ``static``: the values of those inputs
that must be known beforehand (:data:`STATIC`), as arrays or None. Meanings are those of the ONNX
operator specification (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional

from aid_edge.sources.onnx_layers import Attributes, NotBridgedError

# torch is untyped to mypy here.
Tensor = Any
Static = Mapping[int, NDArray[Any] | None]
Function = Callable[[Attributes, Sequence[Any], Static], Any]

STATIC: dict[str, frozenset[int]] = {
    name: frozenset(int(digit) for digit in digits)
    for name, digits in {
        "Reshape": "1", "Resize": "123", "Slice": "1234", "Squeeze": "1",
        "Unsqueeze": "1", "Pad": "123", "Split": "1", "Tile": "1", "Clip": "12", "ReduceMean": "1",
        "ReduceSum": "1", "ReduceMax": "1", "ReduceMin": "1", "ReduceL2": "1", "ReduceProd": "1",
        "ReduceL1": "1", "ReduceSumSquare": "1", "ReduceLogSumExp": "1", "CumSum": "1", "TopK": "1",
        "Dropout": "12", "Expand": "1",
    }.items()
}  # fmt: skip
"""Inputs, by position, that must be constants of the graph."""

_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64,
}  # fmt: skip


def _ints(static: Static, position: int, what: str) -> list[int]:
    values = static.get(position)
    if values is None:
        raise NotBridgedError(f"{what} that is computed at run time")
    return [int(v) for v in values.reshape(-1)]


def _axes(attributes: Attributes, static: Static) -> list[int] | None:
    if static.get(1) is not None:
        return _ints(static, 1, "axes")
    found = attributes.get("axes")
    return list(found) if found is not None else None


def _number(static: Static, position: int, default: float | None) -> float | None:
    value = static.get(position)
    return default if value is None else float(value.reshape(-1)[0])


def _reshape(attributes: Attributes, x: Sequence[Any], static: Static) -> Tensor:
    sizes = _ints(static, 1, "a shape")
    if not attributes.get("allowzero", 0):
        sizes = [x[0].shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x[0].reshape(sizes)


def _flatten(attributes: Attributes, x: Sequence[Any], _: Static) -> Tensor:
    axis = attributes.get("axis", 1) % (x[0].dim() + 1)
    if axis == 0:
        return x[0].reshape(1, -1)
    return x[0].flatten(axis) if axis == 1 else x[0].flatten(0, axis - 1).flatten(1)


def _squeeze(attributes: Attributes, x: Sequence[Any], static: Static) -> Tensor:
    axes = _axes(attributes, static)
    return x[0].squeeze() if axes is None else x[0].squeeze(tuple(axes))


def _unsqueeze(attributes: Attributes, x: Sequence[Any], static: Static) -> Tensor:
    axes = _axes(attributes, static) or []
    rank = x[0].dim() + len(axes)
    out = x[0]
    for axis in sorted(a % rank for a in axes):
        out = out.unsqueeze(axis)
    return out


def _slice(attributes: Attributes, x: Sequence[Any], static: Static) -> Tensor:
    starts = static.get(1)
    begins = list(attributes["starts"]) if starts is None and "starts" in attributes else None
    begins = begins if begins is not None else _ints(static, 1, "a slice")
    ends = list(attributes["ends"]) if "ends" in attributes else _ints(static, 2, "a slice")
    axes = attributes.get("axes") or (
        _ints(static, 3, "axes") if static.get(3) is not None else range(len(begins))
    )
    steps = _ints(static, 4, "steps") if static.get(4) is not None else [1] * len(begins)
    out = x[0]
    for begin, end, axis, step in zip(begins, ends, axes, steps, strict=True):
        if step > 0:
            pick: list[Any] = [slice(None)] * (axis % out.dim())
            out = out[(*pick, slice(begin, None if end >= 2**31 - 1 else end, step))]
        elif step == -1 and begin == -1 and end <= -out.shape[axis]:
            out = out.flip(axis)
        else:
            raise NotBridgedError("a slice that goes backwards")
    return out


def _split(attributes: Attributes, x: Sequence[Any], static: Static) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if static.get(1) is not None:
        sizes = _ints(static, 1, "sizes")
    elif "split" in attributes:
        sizes = list(attributes["split"])
    else:
        # Its number is put there by who calls.
        each = -(-x[0].shape[axis] // attributes["outputs"])
        return tuple(x[0].split(each, axis))
    return tuple(x[0].split(sizes, axis))


def _pad(attributes: Attributes, x: Sequence[Any], static: Static) -> Tensor:
    mode = attributes.get("mode", b"constant").decode()
    pads = list(attributes["pads"]) if "pads" in attributes else _ints(static, 1, "padding")
    rank = x[0].dim()
    axes = _ints(static, 3, "axes") if static.get(3) is not None else list(range(rank))
    begin, end = [0] * rank, [0] * rank
    for number, axis in enumerate(axes):
        begin[axis], end[axis] = pads[number], pads[number + len(axes)]
    both = [size for axis in reversed(range(rank)) for size in (begin[axis], end[axis])]
    if mode == "constant":
        value = attributes.get("value", _number(static, 2, 0.0))
        return functional.pad(x[0], both, value=value)
    names = {"reflect": "reflect", "edge": "replicate"}
    while len(both) > 2 and not any(both[-2:]):
        both = both[:-2]
    # PyTorch pads the inner axes of an input with one or two outer ones.
    if mode not in names or rank - len(both) // 2 not in {1, 2}:
        raise NotBridgedError(f"padding in mode {mode}")
    return functional.pad(x[0], both, mode=names[mode])


def _resize(attributes: Attributes, x: Sequence[Any], static: Static) -> Tensor:
    mode = attributes.get("mode", b"nearest").decode()
    where = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    scales, sizes = static.get(2), static.get(3)
    rank = x[0].dim()
    spatial = list(x[0].shape[2:])
    if attributes.get("axes") or rank < 3:
        raise NotBridgedError("a resize of given axes")
    if sizes is not None and sizes.size:
        to = [int(s) for s in sizes[2:]]
    elif scales is not None and scales.size:
        if any(float(s) != 1.0 for s in scales[:2]):
            raise NotBridgedError("a resize of batch or channels")
        to = [math.floor(d * float(s)) for d, s in zip(spatial, scales[2:], strict=True)]
    else:
        raise NotBridgedError("a resize to a size that is computed at run time")
    if mode == "nearest":
        return functional.interpolate(
            x[0], size=to, mode="nearest" if where == "asymmetric" else "nearest-exact"
        )
    names = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear",
             ("cubic", 4): "bicubic"}  # fmt: skip
    known = {"half_pixel", "pytorch_half_pixel", "align_corners"}
    if (mode, rank) not in names or where not in known:
        raise NotBridgedError(f"a resize in mode {mode}, {where}")
    return functional.interpolate(
        x[0], size=to, mode=names[mode, rank], align_corners=where == "align_corners"
    )


def _pool(attributes: Attributes, x: Sequence[Any], *, largest: bool) -> Tensor:
    kernel = list(attributes["kernel_shape"])
    rank = len(kernel)
    strides = list(attributes.get("strides", [1] * rank))
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    if attributes.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"} or rank > 3:
        raise NotBridgedError("a pooling with automatic padding")
    begin, end = pads[:rank], pads[rank:]
    value, ceil = x[0], bool(attributes.get("ceil_mode", 0))
    counts_pad = bool(attributes.get("count_include_pad", 0))
    if begin != end or any(2 * b > k for b, k in zip(begin, kernel, strict=True)):
        if not largest and not counts_pad:
            raise NotBridgedError("an average pooling with uneven padding")
        uneven = [size for axis in reversed(range(rank)) for size in (begin[axis], end[axis])]
        value = functional.pad(value, uneven, value=-math.inf if largest else 0.0)
        begin = [0] * rank
    if largest:
        function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
        dilations = list(attributes.get("dilations", [1] * rank))
        return function(value, kernel, strides, begin, dilations, ceil)
    average = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    return average(value, kernel, strides, begin, ceil, counts_pad)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _reduce(function: Callable[..., Tensor]) -> Function:
    def run(attributes: Attributes, x: Sequence[Any], static: Static) -> Tensor:
        axes = _axes(attributes, static)
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return x[0]
            axes = list(range(x[0].dim()))
        return function(x[0], axes, keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _softmax(function: Callable[..., Tensor]) -> Function:
    def run(attributes: Attributes, x: Sequence[Any], _: Static) -> Tensor:
        return function(x[0], dim=attributes.get("axis", -1))

    return run


def _plain(function: Callable[..., Tensor]) -> Function:
    return lambda attributes, x, static: function(*x)


def _chained(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def run(_: Attributes, x: Sequence[Any], __: Static) -> Tensor:
        out = x[0]
        for other in x[1:]:
            out = function(out, other)
        return out

    return run


def _divide(a: Tensor, b: Tensor) -> Tensor:
    whole = not a.is_floating_point() and not b.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _clip(_: Attributes, x: Sequence[Any], static: Static) -> Tensor:
    low, high = _number(static, 1, None), _number(static, 2, None)
    if low == 0 and high is None:
        return functional.relu(x[0])
    if (low, high) == (0.0, 6.0):
        return functional.relu6(x[0])
    return x[0].clamp(low, high)


def _gather(attributes: Attributes, x: Sequence[Any], _: Static) -> Tensor:
    axis = attributes.get("axis", 0) % x[0].dim()
    indices = x[1].long()
    if indices.dim() == 0:
        return x[0].index_select(axis, indices.reshape(1)).squeeze(axis)
    if indices.dim() == 1:
        return x[0].index_select(axis, indices)
    pick: list[Any] = [slice(None)] * axis
    return x[0][(*pick, indices)]


def _topk(attributes: Attributes, x: Sequence[Any], static: Static) -> tuple[Tensor, ...]:
    count = _ints(static, 1, "a count")[0]
    found = x[0].topk(count, attributes.get("axis", -1), bool(attributes.get("largest", 1)))
    return found.values, found.indices


def _argmax(attributes: Attributes, x: Sequence[Any], _: Static) -> Tensor:
    return x[0].argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


def _depth_to_space(attributes: Attributes, x: Sequence[Any], _: Static) -> Tensor:
    size = attributes["blocksize"]
    if attributes.get("mode", b"DCR") == b"CRD":
        return functional.pixel_shuffle(x[0], size)
    b, c, h, w = x[0].shape
    blocks = x[0].reshape(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(b, c // size**2, h * size, w * size)


def _space_to_depth(attributes: Attributes, x: Sequence[Any], _: Static) -> Tensor:
    size = attributes["blocksize"]
    b, c, h, w = x[0].shape
    blocks = x[0].reshape(b, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(b, c * size**2, h // size, w // size)


def _gemm(attributes: Attributes, x: Sequence[Any], _: Static) -> Tensor:
    a = x[0].t() if attributes.get("transA", 0) else x[0]
    b = x[1].t() if attributes.get("transB", 0) else x[1]
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product + attributes.get("beta", 1.0) * x[2] if len(x) > 2 else product


def _cast(attributes: Attributes, x: Sequence[Any], _: Static) -> Tensor:
    dtype = _DTYPES.get(attributes["to"])
    if dtype is None:
        raise NotBridgedError(f"a cast to ONNX type {attributes['to']}")
    return x[0].to(dtype)


def _expand(_: Attributes, x: Sequence[Any], static: Static) -> Tensor:
    sizes = _ints(static, 1, "a shape")
    shape = torch.broadcast_shapes(tuple(x[0].shape), tuple(sizes))
    return x[0].expand(shape)


FUNCTIONS: dict[str, Function] = {
    "Add": _plain(torch.add), "Sub": _plain(torch.sub), "Mul": _plain(torch.mul),
    "Div": _plain(_divide), "Pow": _plain(torch.pow), "Max": _chained(torch.maximum),
    "Min": _chained(torch.minimum), "Sum": _chained(torch.add), "Sqrt": _plain(torch.sqrt),
    "Exp": _plain(torch.exp), "Log": _plain(torch.log), "Neg": _plain(torch.neg),
    "Abs": _plain(torch.abs), "Reciprocal": _plain(torch.reciprocal), "Erf": _plain(torch.erf),
    "Floor": _plain(torch.floor), "Ceil": _plain(torch.ceil), "Round": _plain(torch.round),
    "Sin": _plain(torch.sin), "Cos": _plain(torch.cos), "Sign": _plain(torch.sign),
    "Not": _plain(torch.logical_not), "And": _plain(torch.logical_and),
    "Or": _plain(torch.logical_or), "Equal": _plain(torch.eq), "Greater": _plain(torch.gt),
    "Less": _plain(torch.lt), "GreaterOrEqual": _plain(torch.ge), "LessOrEqual": _plain(torch.le),
    "Where": _plain(torch.where), "MatMul": _plain(torch.matmul),
    "Gemm": _gemm,
    "Identity": lambda a, x, s: x[0], "Dropout": lambda a, x, s: x[0], "Cast": _cast,
    "Relu": _plain(functional.relu), "Sigmoid": _plain(torch.sigmoid), "Tanh": _plain(torch.tanh),
    "Softplus": _plain(functional.softplus), "Softsign": _plain(functional.softsign),
    "HardSwish": _plain(functional.hardswish), "Mish": _plain(functional.mish),
    "LeakyRelu": lambda a, x, s: functional.leaky_relu(x[0], a.get("alpha", 0.01)),
    "Elu": lambda a, x, s: functional.elu(x[0], a.get("alpha", 1.0)),
    "Selu": _plain(functional.selu),
    "HardSigmoid": lambda a, x, s: (
        functional.hardsigmoid(x[0]) if abs(a.get("alpha", 0.2) - 1 / 6) < 1e-6
        and a.get("beta", 0.5) == 0.5
        else (x[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0.0, 1.0)
    ),
    "Gelu": lambda a, x, s: functional.gelu(
        x[0], approximate=a.get("approximate", b"none").decode()
    ),
    "LRN": lambda a, x, s: functional.local_response_norm(
        x[0], a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0)
    ),
    "Clip": _clip, "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
    "MaxPool": lambda a, x, s: _pool(a, x, largest=True),
    "AveragePool": lambda a, x, s: _pool(a, x, largest=False),
    "GlobalAveragePool": lambda a, x, s: x[0].mean(_spatial(x[0]), keepdim=True),
    "GlobalMaxPool": lambda a, x, s: x[0].amax(_spatial(x[0]), keepdim=True),
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Transpose": lambda a, x, s: x[0].permute(*a.get("perm", range(x[0].dim() - 1, -1, -1))),
    "Concat": lambda a, x, s: torch.cat(tuple(x), a["axis"]), "Split": _split, "Slice": _slice,
    "Pad": _pad, "Resize": _resize, "Gather": _gather, "Expand": _expand,
    "Tile": lambda a, x, s: x[0].repeat(_ints(s, 1, "repeats")), "TopK": _topk, "ArgMax": _argmax,
    "GatherElements": lambda a, x, s: x[0].gather(a.get("axis", 0), x[1].long()),
    "CumSum": lambda a, x, s: x[0].cumsum(_ints(s, 1, "an axis")[0]),
    "Einsum": lambda a, x, s: torch.einsum(a["equation"].decode(), *x),
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ReduceMean": _reduce(torch.mean), "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim).sqrt()),
    "ReduceL1": _reduce(lambda x, axes, keepdim: x.abs().sum(axes, keepdim=keepdim)),
    "ReduceSumSquare": _reduce(lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim)),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
}  # fmt: skip
"""Operator type to its function."""
