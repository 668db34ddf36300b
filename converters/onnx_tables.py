"""Constants as weights: which there are, and how they are stored as codes and scales.

Heavy: used in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.onnx_graph import Graph, name_nodes

MIN_VALUES = 256
"""Smaller constants stay as they are: the nodes around them would take more bytes."""

_CODES = 127


@dataclass(frozen=True)
class Weight:
    """One constant to be stored in fewer bits, and who reads it."""

    tensor: onnx.TensorProto
    readers: tuple[onnx.NodeProto, ...]

    @property
    def name(self) -> str:
        """Name of the constant."""
        return str(self.tensor.name)

    @property
    def is_table(self) -> bool:
        """Whether it is only looked up by row, as embeddings are."""
        return all(_is_lookup(node, self.name) for node in self.readers)


def shrink_tables(model: onnx.ModelProto) -> int:
    """Store embeddings of ``model`` as int8 with one scale per row, in place; return how many."""
    name_nodes(model)
    tables = [weight for weight in weights(model, min_rank=2) if weight.is_table]
    for table in tables:
        store_table(model, table)
    return len(tables)


def store_table(model: onnx.ModelProto, weight: Weight) -> None:
    """Store one embedding as int8 with one scale per row, in place."""
    values = numpy_helper.to_array(weight.tensor).astype(np.float64)
    codes, scale = coded(values, tuple(range(1, values.ndim)))
    _look_up(model, weight, codes, scale)


def weights(model: onnx.ModelProto, *, min_rank: int) -> Iterator[Weight]:
    """Yield the float constants of ``model`` that are large enough to be worth storing smaller."""
    graph = Graph(model)
    for tensor in list(model.graph.initializer):
        count = int(np.prod(tensor.dims, dtype=np.int64))
        is_weight = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= min_rank
        readers = tuple(graph.readers[tensor.name])
        # One that only a graph inside a node reads stays: folding would not reach it there.
        if is_weight and count >= MIN_VALUES and readers and tensor.name not in graph.outputs:
            yield Weight(tensor, readers)


def coded(
    values: NDArray[np.float64], axes: tuple[int, ...]
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Return 8-bit codes and scales; values along ``axes`` share one."""
    largest = np.abs(values).max(axis=axes, keepdims=True)
    scale = np.where(largest > 0, largest / _CODES, 1.0)
    return np.clip(np.round(values / scale), -_CODES, _CODES).astype(np.int8), scale


def _look_up(
    model: onnx.ModelProto, weight: Weight, codes: NDArray[np.int8], scale: NDArray[np.float64]
) -> None:
    """Let lookups take codes and scales by row, so that the table stays small in memory too."""
    name = weight.name
    restore(weight.tensor, codes, f"{name}__codes")
    held = numpy_helper.from_array(scale.astype(np.float32), f"{name}__scale")
    model.graph.initializer.append(held)
    looked_up = {node.name for node in weight.readers}
    nodes = []
    for node in model.graph.node:
        if node.name not in looked_up or name not in node.input:
            nodes.append(node)
            continue
        index, out = node.input[1], node.output[0]
        nodes += [
            helper.make_node("Gather", [f"{name}__codes", index], [f"{out}__codes"], axis=0),
            helper.make_node("Gather", [f"{name}__scale", index], [f"{out}__scale"], axis=0),
            cast(f"{out}__codes", f"{out}__steps"),
            helper.make_node("Mul", [f"{out}__steps", f"{out}__scale"], [out], node.name),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _is_lookup(node: onnx.NodeProto, name: str) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[0] == name and axis == 0


def cast(source: str, to: str) -> onnx.NodeProto:
    """Return the node that makes float32 of ``source``."""
    return helper.make_node("Cast", [source], [to], f"{to}__cast", to=TensorProto.FLOAT)


def restore(tensor: onnx.TensorProto, array: NDArray[Any], name: str) -> None:
    """Replace a constant by another one under another name."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
