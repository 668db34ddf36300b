"""An ONNX graph as a PyTorch module that trains, prunes and exports as one written by hand.

Imported only in worker processes. Layers with weights become ``nn.Conv2d``, ``nn.Linear`` and the
like; shapes are constants of the graph. The library for this, onnx2torch, needs torchvision, which
cannot be imported beside PyTorch's CPU build, and reads shapes from tensors at run time, which
torch.export refuses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from aid_edge.errors import UnsupportedModelError
from aid_edge.sources import onnx_layers as layers
from aid_edge.sources.onnx_functions import FUNCTIONS, STATIC
from aid_edge.sources.onnx_graph import graph_inputs, opset_of
from aid_edge.sources.onnx_layers import NotBridgedError

_STATES = {"LSTM": (5, 6), "GRU": (5,)}
_LAYERS: dict[str, Callable[[layers.Attributes, layers.Weights, int], nn.Module | None]] = {
    "Conv": lambda a, w, _: layers.convolution(a, w),
    "ConvTranspose": lambda a, w, _: layers.transposed_convolution(a, w),
    "Gemm": lambda a, w, _: layers.linear(a, w),
    "BatchNormalization": layers.batch_norm,
    "InstanceNormalization": layers.instance_norm,
    "LayerNormalization": lambda a, w, _: layers.layer_norm(a, w),
    "PRelu": lambda _, w, __: layers.prelu(w),
}
_MAX_REASONS = 10
_STANDARD = frozenset({"", "ai.onnx"})
_SOFTMAX_SINCE = 13


@dataclass(frozen=True)
class _Step:
    """One node: what it reads from earlier ones, and what it no longer needs afterwards."""

    kind: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    static: Mapping[int, NDArray[Any] | None]
    layer: str = ""
    done_with: tuple[str, ...] = ()


class OnnxModule(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The graph of an ONNX model; takes and gives its tensors in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Build the layers.

        Args:
            model: Normalized (:func:`aid_edge.sources.onnx_graph.normalized`), shapes inferred.

        Raises:
            UnsupportedModelError: Some operators, or uses of them, have no equal here: names them.
        """
        super().__init__()
        self.layers = nn.ModuleDict()
        self.values = nn.ParameterDict()
        self._stored: dict[str, str] = {}
        builder = _Builder(model, self)
        self._inputs = tuple(i.name for i in graph_inputs(model))
        self._outputs = tuple(o.name for o in model.graph.output)
        self._steps = _with_last_uses(builder.steps(), self._outputs)
        for name in self._outputs:
            if name in builder.constants:
                self.store(name, builder.constants[name])

    def store(self, name: str, value: NDArray[Any]) -> None:
        """Keep a constant of the graph that operators compute with."""
        if name in self._stored:
            return
        number = len(self._stored)
        tensor = torch.from_numpy(np.array(value))
        if tensor.is_floating_point() and tensor.numel() > 1:
            self._stored[name] = f"p{number}"
            self.values[f"p{number}"] = nn.Parameter(tensor, requires_grad=False)
        else:
            self._stored[name] = f"b{number}"
            self.register_buffer(f"b{number}", tensor)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return the outputs: one tensor, or a tuple of several."""
        known: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        for step in self._steps:
            arguments = [self._value(name, known) for name in step.inputs]
            if step.layer:
                found = self.layers[step.layer](*arguments)
            else:
                found = FUNCTIONS[step.kind](step.attributes, arguments, step.static)
            several = found if isinstance(found, tuple) else (found,)
            known.update(zip(step.outputs, several, strict=False))
            for name in step.done_with:
                known.pop(name, None)
        outputs = tuple(self._value(name, known) for name in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _value(self, name: str, known: Mapping[str, Any]) -> Any:
        if name in known:
            return known[name]
        stored = self._stored[name]
        return self.values[stored] if stored in self.values else getattr(self, stored)


class _Builder:
    """Turns nodes into steps and layers."""

    def __init__(self, model: onnx.ModelProto, module: OnnxModule) -> None:
        graph = model.graph
        self.constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self._module = module
        self._nodes = list(graph.node)
        self._opset = opset_of(model)
        self._ranks = {
            v.name: len(v.type.tensor_type.shape.dim)
            for v in (*graph.input, *graph.value_info, *graph.output)
        }
        self._readers = Counter(name for node in graph.node for name in node.input)
        self._readers.update(o.name for o in graph.output)
        self._skipped: set[int] = set()

    def steps(self) -> list[_Step]:
        """Return one step per node.

        Raises:
            UnsupportedModelError: Some cannot be brought over.
        """
        steps: list[_Step] = []
        reasons: list[str] = []
        for number, node in enumerate(self._nodes):
            if number in self._skipped:
                continue
            try:
                steps.append(self._step(node, number))
            except NotBridgedError as e:
                name = node.name or (node.output[0] if node.output else "?")
                reasons.append(f"operator {node.op_type} ({name}): {e}")
        if reasons:
            more = len(reasons) - _MAX_REASONS
            raise UnsupportedModelError(
                "the ONNX graph cannot be brought over to PyTorch",
                reasons[:_MAX_REASONS] + ([f"and {more} more"] if more > 0 else []),
                hint="Choose a runtime that reads ONNX, or give the PyTorch model itself.",
            )
        return steps

    def _step(self, node: onnx.NodeProto, number: int) -> _Step:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.domain not in _STANDARD:
            raise NotBridgedError(f"of the domain {node.domain}")
        if any(isinstance(v, onnx.GraphProto) for v in attributes.values()):
            raise NotBridgedError("control flow that depends on values")
        weights = [self.constants.get(name) for name in node.input]
        outputs = tuple(node.output)
        if node.op_type == "MatMul" and weights[1] is not None and weights[1].ndim == 2:
            bias, outputs = self._following_bias(node, number, weights[1].shape[1])
            return self._layer(node, layers.dense(weights[1].T, bias), outputs=outputs)
        layer = self._made(node, attributes, weights)
        if layer is not None:
            return self._layer(node, layer)
        if node.op_type not in FUNCTIONS:
            raise NotBridgedError("it has no equal here")
        if node.op_type in {"Softmax", "LogSoftmax"} and self._opset < _SOFTMAX_SINCE:
            raise NotBridgedError("its meaning before opset 13")
        if node.op_type == "Split" and "outputs" not in attributes:
            attributes["outputs"] = len(node.output)
        return self._function(node, attributes)

    def _made(
        self, node: onnx.NodeProto, attributes: Mapping[str, Any], weights: layers.Weights
    ) -> nn.Module | None:
        """Return the layer of a node that has weights, or None."""
        kind, rank = node.op_type, self._ranks.get(node.input[0], 4) if node.input else 0
        if (make := _LAYERS.get(kind)) is not None:
            return make(attributes, weights, rank)
        if kind in _STATES:
            if len(node.input) > 4 and node.input[4]:
                raise NotBridgedError("sequences of different lengths")
            return layers.recurrent(kind, attributes, weights)
        table = weights[0] if kind == "Gather" and attributes.get("axis", 0) == 0 else None
        if table is None or table.ndim != 2 or weights[1] is not None:
            return None
        return layers.embedding(table)

    def _layer(
        self, node: onnx.NodeProto, layer: nn.Module, outputs: tuple[str, ...] | None = None
    ) -> _Step:
        name = f"{node.op_type.lower()}_{len(self._module.layers)}"
        self._module.layers[name] = layer
        positions = _STATES.get(node.op_type, ())
        first = node.input[1] if node.op_type == "Gather" else node.input[0]
        inputs = [first, *(node.input[i] for i in positions if i < len(node.input))]
        named = [name for name in inputs if name]
        if node.op_type in _STATES and len(named) not in {1, len(positions) + 1}:
            raise NotBridgedError("only some of its states are given")
        self._keep(named)
        return _Step(node.op_type, {}, tuple(named), outputs or tuple(node.output), {}, name)

    def _function(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> _Step:
        positions = STATIC.get(node.op_type, frozenset())
        static: dict[int, NDArray[Any] | None] = {}
        inputs = []
        for position, name in enumerate(node.input):
            if not name:
                continue
            if position not in positions:
                inputs.append(name)
            elif name in self.constants:
                static[position] = self.constants[name]
            else:
                raise NotBridgedError(f"its input {name!r} is computed at run time")
        self._keep(inputs)
        return _Step(node.op_type, attributes, tuple(inputs), tuple(node.output), static)

    def _keep(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.constants:
                self._module.store(name, self.constants[name])

    def _following_bias(
        self, node: onnx.NodeProto, number: int, width: int
    ) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
        """Return the bias that the only reader of a product adds, and what the sum is called."""
        output = node.output[0]
        if self._readers[output] != 1:
            return None, (output,)
        for later, reader in enumerate(self._nodes[number + 1 :], start=number + 1):
            if output not in reader.input:
                continue
            other = next((name for name in reader.input if name != output), "")
            bias = self.constants.get(other)
            if reader.op_type == "Add" and bias is not None and bias.shape == (width,):
                self._skipped.add(later)
                return bias, (reader.output[0],)
            break
        return None, (output,)


def _with_last_uses(steps: list[_Step], outputs: tuple[str, ...]) -> tuple[_Step, ...]:
    """Return the steps with what each is the last to read: it need not be kept longer."""
    seen = set(outputs)
    done = []
    for step in reversed(steps):
        last = tuple(dict.fromkeys(name for name in step.inputs if name not in seen))
        seen.update(last)
        done.append(replace(step, done_with=last))
    return tuple(reversed(done))
