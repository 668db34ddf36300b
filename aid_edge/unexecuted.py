"""Judges an artifact that cannot be run here, by what it declares and the weights it holds.

It says less than running: that every weight of the source is in the artifact, with how much of it
compression left, and that inputs and outputs are those of the source. Whether the operators between
them compute the same stays open, and reports say so.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge import runtimes
from aid_edge.errors import ConversionError
from aid_edge.model import SourceModel
from aid_edge.runtimes import Inspection
from aid_edge.sources.opening import load_module
from device_agent.contract.manifest import Measurement

FOUND_COSINE = 0.7
"""From here on a tensor counts as a source weight; one bit per weight still has about 0.8."""

FOUND_SHARE_MIN = 0.9
FLOAT_COSINE_MIN = 0.9999
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu", "LSTM", "GRU", "RNN", "SimpleRNN"})
_RANKS = range(2, 6)


@dataclass(frozen=True)
class Comparison:
    """How the weights of an artifact compare with the source's.

    Attributes:
        weights: Weight matrices and kernels of the source.
        found: Of those, how many the artifact holds.
        scaled: Of those, how many only up to a factor per channel, as folded normalization leaves.
        found_share: Share of the source's weight values that were found.
        cosine: Smallest cosine similarity of a weight that was found.
    """

    weights: int
    found: int
    scaled: int
    found_share: float
    cosine: float


@dataclass(frozen=True)
class Findings:
    """What inspecting an artifact found."""

    inspection: Inspection
    figures: tuple[Measurement, ...]
    notes: tuple[str, ...]


def inspect_in_worker(path: Path, runtime: str, model: SourceModel, *, is_float: bool) -> Findings:
    """Return what can be known of the artifact at ``path``. For worker processes only.

    Args:
        path: The artifact.
        runtime: Its runtime.
        model: What it was made from.
        is_float: Whether its weights were left floats, so that they must be the source's.

    Raises:
        ConversionError: It cannot be read, or does not hold the source's weights.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = runtimes.inspect(path, runtime, Path(scratch))
    compared = compare_weights(source_weights(model), found.weights)
    recurrent = sorted(_RECURRENT & set(model.operators))
    notes = ["converted, not executed: this host cannot run it, so its answers were not compared"]
    if recurrent:
        notes.append(
            f"weights of {', '.join(recurrent)} are rearranged and were not compared with the "
            "source's"
        )
    else:
        check_weights(compared, runtime, is_float=is_float)
    # An artifact without its weights is not kept in memory beyond this process.
    lean = Inspection(found.version, found.inputs, found.outputs, found.placement, {})
    return Findings(lean, _figures(compared), tuple(notes))


def source_weights(model: SourceModel) -> dict[str, NDArray[np.float32]]:
    """Return the weight matrices and kernels of a PyTorch or Keras model on torch, by name."""
    module = load_module(model)
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return {
        name: tensor.detach().float().cpu().numpy()
        for name, tensor in tensors
        if tensor.dim() in _RANKS and tensor.is_floating_point() and tensor.numel()
    }


def compare_weights(
    source: Mapping[str, NDArray[Any]], artifact: Mapping[str, NDArray[Any]]
) -> Comparison:
    """Return how many of the weights ``source`` are in ``artifact``, and how alike they are."""
    by_sizes: dict[tuple[int, ...], list[NDArray[Any]]] = {}
    for array in artifact.values():
        by_sizes.setdefault(_sizes(array), []).append(array)
    found = scaled = held = 0
    lowest = 1.0
    for weight in source.values():
        best, by_channel = 0.0, False
        for other in by_sizes.get(_sizes(weight), ()):
            cosine, up_to_scale = _likeness(weight, other)
            if cosine > best:
                best, by_channel = cosine, up_to_scale
        if best >= FOUND_COSINE:
            found += 1
            scaled += by_channel
            held += weight.size
            lowest = min(lowest, best)
    total = sum(weight.size for weight in source.values())
    return Comparison(len(source), found, scaled, held / total if total else 1.0, lowest)


def check_weights(found: Comparison, runtime: str, *, is_float: bool) -> None:
    """Return if an artifact holds the source's weights.

    Raises:
        ConversionError: It does not; says by how much.
    """
    if found.found_share < FOUND_SHARE_MIN:
        raise ConversionError(
            f"the artifact for {runtime} holds {found.found_share:.1%} of the source's weights",
            hint="This is a fault of the toolchain; the artifact is not to be used.",
        )
    if is_float and found.cosine < FLOAT_COSINE_MIN:
        raise ConversionError(
            f"the float artifact for {runtime} has other weights than the source: smallest cosine "
            f"{found.cosine:.6f}",
            hint="This is a fault of the toolchain; the artifact is not to be used.",
        )


def _likeness(weight: NDArray[Any], other: NDArray[Any]) -> tuple[float, bool]:
    """Return the largest cosine over orders of axes, and whether only per channel."""
    plain = scaled = 0.0
    for moved in _layouts(weight, other.shape):
        plain = max(plain, _cosine(moved, other))
        scaled = max(scaled, *(_channel_cosine(moved, other, axis) for axis in (0, 1)))
    # By channel it can only be larger: it counts where values themselves do not agree.
    return (plain, False) if plain >= FLOAT_COSINE_MIN or plain >= scaled else (scaled, True)


def _layouts(weight: NDArray[Any], shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    squeezed = weight.reshape([size for size in weight.shape if size > 1] or [1])
    target = tuple(size for size in shape if size > 1) or (1,)
    for order in itertools.permutations(range(squeezed.ndim)):
        moved = squeezed.transpose(order)
        if moved.shape == target:
            yield moved.reshape(shape)


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))


def _channel_cosine(a: NDArray[Any], b: NDArray[Any], axis: int) -> float:
    """Return the mean |cosine| per slice along ``axis``, weighted by the energy in ``a``."""
    rows = [np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64) for x in (a, b)]
    norms = [np.linalg.norm(x, axis=1) for x in rows]
    products = np.abs((rows[0] * rows[1]).sum(axis=1))
    scale = norms[0] * norms[1]
    cosines = np.where(scale > 0, products / np.where(scale > 0, scale, 1.0), norms[0] == norms[1])
    energy = norms[0] ** 2
    return float((cosines * energy).sum() / energy.sum()) if energy.any() else 0.0


def _sizes(array: NDArray[Any]) -> tuple[int, ...]:
    return tuple(sorted(size for size in array.shape if size > 1))


def _figures(found: Comparison) -> tuple[Measurement, ...]:
    how = "the artifact's weights, decompressed, against the source's"
    noise = 1 - found.cosine**2
    figures = [
        Measurement("weights found in the artifact", found.found_share, "share", "host", how,
                    found.weights),
        Measurement("smallest cosine of a weight", found.cosine, "cosine", "host", how,
                    found.found),
    ]  # fmt: skip
    if noise > 0:
        decibel = -10 * math.log10(noise)
        figures.append(
            Measurement("largest noise of a weight (SQNR)", decibel, "dB", "host", how, found.found)
        )
    return tuple(figures)
