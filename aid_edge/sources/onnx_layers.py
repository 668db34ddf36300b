"""ONNX operators with weights as PyTorch layers, such as training and pruning know them.

Imported only in worker processes. Meanings are those of the ONNX operator specification
(https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

Attributes = Mapping[str, Any]
Weights = Sequence[NDArray[Any] | None]
"""The constant inputs of a node, in its order; None is one that is computed or left out."""


class NotBridgedError(Exception):
    """An operator, or a use of it, that has no equal in PyTorch here; says which."""


class Padded(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A layer behind zero padding that differs between the sides of an axis."""

    def __init__(self, pads: Sequence[int], layer: nn.Module) -> None:
        super().__init__()
        self.pads = list(pads)
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's answer to ``x`` with zeros around it."""
        return self.layer(functional.pad(x, self.pads))


class Recurrent(nn.Module):  # type: ignore[misc]
    """An LSTM or GRU with ONNX' inputs and outputs; time is the first axis, then the batch."""

    def __init__(self, inner: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.inner = inner
        self.directions = 2 if inner.bidirectional else 1

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return Y [time, directions, batch, hidden] and states [directions, batch, hidden]."""
        steps, batch = x.shape[0], x.shape[1]
        is_lstm = isinstance(self.inner, nn.LSTM)
        state: Any = None
        if states:
            state = tuple(states) if is_lstm else states[0]
        y, last = self.inner(x, state)
        y = y.reshape(steps, batch, self.directions, self.inner.hidden_size).permute(0, 2, 1, 3)
        return (y, *last) if is_lstm else (y, last)


def convolution(attributes: Attributes, weights: Weights) -> nn.Module:
    """Return Conv with the kernel ``weights[1]`` and the bias ``weights[2]``."""
    kernel, bias = _kernel(weights)
    rank = kernel.ndim - 2
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}.get(rank)
    if kind is None:
        raise NotBridgedError(f"a convolution over {rank} axes")
    groups = attributes.get("group", 1)
    pads, rest = _pads(attributes, rank)
    layer = kind(
        kernel.shape[1] * groups, kernel.shape[0], kernel.shape[2:],
        stride=tuple(attributes.get("strides", [1] * rank)), padding=pads,
        dilation=tuple(attributes.get("dilations", [1] * rank)), groups=groups,
        bias=bias is not None,
    )  # fmt: skip
    fill(layer, weight=kernel, bias=bias)
    return Padded(rest, layer) if rest else layer


def transposed_convolution(attributes: Attributes, weights: Weights) -> nn.Module:
    """Return ConvTranspose with the kernel ``weights[1]`` and the bias ``weights[2]``."""
    kernel, bias = _kernel(weights)
    rank = kernel.ndim - 2
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}.get(rank)
    pads, rest = _pads(attributes, rank)
    if kind is None or rest or attributes.get("output_shape"):
        raise NotBridgedError("a transposed convolution with uneven padding or a fixed output")
    groups = attributes.get("group", 1)
    layer = kind(
        kernel.shape[0], kernel.shape[1] * groups, kernel.shape[2:],
        stride=tuple(attributes.get("strides", [1] * rank)), padding=pads,
        output_padding=tuple(attributes.get("output_padding", [0] * rank)), groups=groups,
        dilation=tuple(attributes.get("dilations", [1] * rank)), bias=bias is not None,
    )  # fmt: skip
    fill(layer, weight=kernel, bias=bias)
    return layer


def linear(attributes: Attributes, weights: Weights) -> nn.Module | None:
    """Return Gemm as a linear layer, or None where it is another product."""
    matrix = weights[1]
    offset = weights[2] if len(weights) > 2 else None
    scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
    if matrix is None or attributes.get("transA", 0) or scaled:
        return None
    weight = matrix if attributes.get("transB", 0) else matrix.T
    bias = None
    if offset is not None:
        if offset.size not in {1, weight.shape[0]}:
            return None
        bias = np.broadcast_to(offset.reshape(-1), (weight.shape[0],))
    return dense(weight, bias)


def dense(weight: NDArray[Any], bias: NDArray[Any] | None) -> nn.Module:
    """Return a linear layer with ``weight`` [out, in] and ``bias`` [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    fill(layer, weight=weight, bias=bias)
    return layer


def batch_norm(attributes: Attributes, weights: Weights, rank: int) -> nn.Module:
    """Return BatchNormalization for an input of ``rank``."""
    if attributes.get("training_mode", 0) or any(w is None for w in weights[1:5]):
        raise NotBridgedError("a batch normalization in training mode or with computed weights")
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}.get(rank, nn.BatchNorm2d)
    scale, offset, mean, variance = weights[1:5]
    layer = kind(len(_there(scale)), eps=attributes.get("epsilon", 1e-5))
    fill(layer, weight=scale, bias=offset, running_mean=mean, running_var=variance)
    return layer


def layer_norm(attributes: Attributes, weights: Weights) -> nn.Module:
    """Return LayerNormalization."""
    scale = _there(weights[1])
    offset = weights[2] if len(weights) > 2 else None
    if attributes.get("axis", -1) not in {-scale.ndim, -1} or scale.ndim != 1:
        raise NotBridgedError("a layer normalization over several axes")
    layer = nn.LayerNorm(scale.shape, eps=attributes.get("epsilon", 1e-5), bias=offset is not None)
    fill(layer, weight=scale, bias=offset)
    return layer


def instance_norm(attributes: Attributes, weights: Weights, rank: int) -> nn.Module:
    """Return InstanceNormalization for an input of ``rank``."""
    kind = {3: nn.InstanceNorm1d, 5: nn.InstanceNorm3d}.get(rank, nn.InstanceNorm2d)
    scale = _there(weights[1])
    layer = kind(len(scale), eps=attributes.get("epsilon", 1e-5), affine=True)
    fill(layer, weight=scale, bias=weights[2])
    return layer


def embedding(table: NDArray[Any]) -> nn.Module:
    """Return Gather on axis 0 of a constant table as an embedding."""
    layer = nn.Embedding(table.shape[0], table.shape[1])
    fill(layer, weight=table)
    return layer


def prelu(weights: Weights) -> nn.Module:
    """Return PRelu with one slope, or one per channel (axis 1)."""
    slope = _there(weights[1])
    if slope.size not in {1, slope.shape[0]}:
        raise NotBridgedError("a PRelu with slopes along several axes")
    layer = nn.PReLU(slope.size)
    fill(layer, weight=slope.reshape(-1))
    return layer


def recurrent(kind: str, attributes: Attributes, weights: Weights) -> nn.Module:
    """Return LSTM or GRU with PyTorch's order of gates.

    ONNX orders the gates of an LSTM i, o, f, c and those of a GRU z, r, h; PyTorch i, f, g, o and
    r, z, n (both specifications).
    """
    gates, order = (4, (0, 2, 3, 1)) if kind == "LSTM" else (3, (1, 0, 2))
    w, r = _there(weights[1]), _there(weights[2])
    b = weights[3] if len(weights) > 3 else None
    direction = attributes.get("direction", b"forward")
    plain = not attributes.get("activations") and not attributes.get("clip")
    if kind == "GRU" and not attributes.get("linear_before_reset", 0):
        plain = False
    if not plain or direction == b"reverse" or attributes.get("layout", 0):
        raise NotBridgedError(f"an {kind} with other activations, gates or directions")
    hidden = attributes["hidden_size"]
    make = nn.LSTM if kind == "LSTM" else nn.GRU
    inner = make(w.shape[2], hidden, bidirectional=w.shape[0] == 2, bias=b is not None)

    def ordered(rows: NDArray[Any]) -> NDArray[Any]:
        blocks = np.split(rows, gates)
        return np.concatenate([blocks[i] for i in order])

    for number, suffix in enumerate(("_l0", "_l0_reverse")[: w.shape[0]]):
        found = {f"weight_ih{suffix}": ordered(w[number]), f"weight_hh{suffix}": ordered(r[number])}
        if b is not None:
            middle = gates * hidden
            found[f"bias_ih{suffix}"] = ordered(b[number][:middle])
            found[f"bias_hh{suffix}"] = ordered(b[number][middle:])
        fill(inner, **found)
    return Recurrent(inner)


def fill(layer: nn.Module, **values: NDArray[Any] | None) -> None:
    """Set parameters and buffers of ``layer`` by name; None leaves one as it is."""
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(layer, name).copy_(torch.from_numpy(np.array(value)))


def _kernel(weights: Weights) -> tuple[NDArray[Any], NDArray[Any] | None]:
    return _there(weights[1]), weights[2] if len(weights) > 2 else None


def _there(weight: NDArray[Any] | None) -> NDArray[Any]:
    if weight is None:
        raise NotBridgedError("a layer whose weights are computed")
    return weight


def _pads(attributes: Attributes, rank: int) -> tuple[tuple[int, ...], list[int]]:
    """Return even padding per axis, and what :func:`torch.nn.functional.pad` has to add before."""
    if attributes.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
        raise NotBridgedError("automatic padding (auto_pad)")
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    begin, end = pads[:rank], pads[rank:]
    if begin == end:
        return tuple(begin), []
    uneven = [size for axis in reversed(range(rank)) for size in (begin[axis], end[axis])]
    return (0,) * rank, uneven
