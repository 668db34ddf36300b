"""Recipes that need no calibration: 16-bit, 8-bit and 4-bit weights, and dynamic int8.

Weights that are only stored in fewer bits come before a Cast (and a Mul by their scale), which
ONNX Runtime computes once when it loads the model: the file is small, inference is as fast as in
float and as portable. Heavy: used in worker processes only.
"""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from aid_edge.errors import ConversionError
from aid_edge.isolate import progress
from aid_edge.recipe import DynamicInt8, Float16, WeightOnly
from converters.onnx_export import matching_nodes, strip
from converters.onnx_graph import name_nodes, prepare
from converters.onnx_tables import Weight, cast, coded, restore, store_table, weights
from device_agent.contract.errors import AidError
from device_agent.contract.profile import HardwareProfile

GROUPS = (16, 32, 64, 128, 256)
"""Sizes of groups that ONNX Runtime's kernel for 4-bit weights has."""

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""Extensions of x86 that sum 8-bit products in 32 bits."""

_DYNAMIC = ["MatMul", "LSTM", "Attention", "Gather"]
"""Not convolutions: ONNX Runtime has no kernel for them with signed weights."""


def store_float16(floating: Path, to: Path) -> tuple[str, ...]:
    """Write the model at ``floating`` with 16-bit weights to ``to``; return notes.

    Inputs, outputs and arithmetic stay float32: ONNX Runtime's processors compute float16 slower.

    Raises:
        ConversionError: It has no weights that could be stored so.
    """
    model = onnx.load(str(floating))
    limit = float(np.finfo(np.float16).max)
    nodes, stored, kept = [], 0, 0
    for weight in weights(model, min_rank=1):
        values = numpy_helper.to_array(weight.tensor)
        if np.abs(values).max() > limit:
            kept += 1
            continue
        name = weight.name
        restore(weight.tensor, values.astype(np.float16), f"{name}__half")
        nodes.append(cast(f"{name}__half", name))
        stored += 1
    if not stored:
        raise ConversionError("there are no weights to store in 16 bits")
    _prepend(model, nodes)
    _save(model, to)
    return (f"{kept} tensors have values beyond float16 and stay float32",) if kept else ()


def store_integers(floating: Path, recipe: WeightOnly, to: Path) -> tuple[str, ...]:
    """Write the model at ``floating`` with 8-bit or 4-bit weights to ``to``; return notes.

    Four bits are for matrix products (``MatMulNBits``); embeddings get eight.

    Raises:
        ConversionError: There is nothing to store so, or the group is not one that exists.
    """
    model = onnx.load(str(floating))
    name_nodes(model)
    notes: tuple[str, ...] = ()
    if recipe.bits == 4:
        model = _four_bits(model, recipe.group)
        found = [w for w in weights(model, min_rank=2) if w.is_table]
        notes = ("4 bits for matrix products, 8 bits for embeddings",) if found else ()
        group = 0
    else:
        found, group = list(weights(model, min_rank=2)), recipe.group
        if not found:
            raise ConversionError("there are no weights to store in 8 bits")
    nodes = [node for weight in found for node in _eight_bits(model, weight, group)]
    _prepend(model, nodes)
    _save(model, to)
    return notes


def quantize_dynamically(
    floating: Path, recipe: DynamicInt8, profile: HardwareProfile, to: Path
) -> tuple[str, ...]:
    """Write the model at ``floating`` with 8-bit matrix products to ``to``; return notes.

    Raises:
        ConversionError: It has no matrix product, or the quantizer failed.
    """
    progress(0.6, "quantize")
    try:
        model = prepare(floating, to.parent)
        rules = [rule for rule in profile.numerics.op_rules if rule.placement == "float"]
        excluded = sorted({name for name, _, _ in matching_nodes(model, rules) if name})
        prepared = to.with_name("prepared.onnx")
        onnx.save(model, str(prepared))
        try:
            quantize_dynamic(
                str(prepared),
                str(to),
                op_types_to_quantize=_DYNAMIC,
                per_channel=recipe.per_channel,
                reduce_range=saturates(profile),
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
            )
        finally:
            prepared.unlink(missing_ok=True)
    except AidError:
        raise
    except Exception as e:  # the quantizer raises whatever its many parts raise
        raise ConversionError(f"dynamic quantization failed: {e}") from e
    result = onnx.load(str(to))
    share = _integer_share(result)
    if share == 0:
        raise ConversionError(
            "dynamic int8 changes nothing: the model has no matrix product with constant weights",
            hint="Convolutions take static int8.",
        )
    _save(result, to)
    return (f"{share:.0%} of the weights are int8",)


def tools() -> dict[str, str]:
    """Return the versions of what quantizes."""
    return {"onnxruntime": metadata.version("onnxruntime")}


def convert(
    floating: Path, recipe: Float16 | WeightOnly | DynamicInt8, profile: HardwareProfile, to: Path
) -> tuple[str, ...]:
    """Carry out ``recipe`` on the float model at ``floating``; return notes for the report.

    Raises:
        ConversionError: It changes nothing on this model, or a tool failed.
    """
    if isinstance(recipe, Float16):
        return store_float16(floating, to)
    if isinstance(recipe, WeightOnly):
        return store_integers(floating, recipe, to)
    return quantize_dynamically(floating, recipe, profile, to)


def saturates(profile: HardwareProfile) -> bool:
    """Return whether 8-bit products may overflow the 16-bit sums there: x86 without VNNI."""
    return profile.arch == "x86_64" and not VNNI & set(profile.isa)


def _eight_bits(model: onnx.ModelProto, weight: Weight, group: int) -> list[onnx.NodeProto]:
    """Store ``weight`` as codes and scales, and return the nodes that make it again."""
    values = numpy_helper.to_array(weight.tensor).astype(np.float64)
    if weight.is_table:
        store_table(model, weight)
        return []
    axis = _input_axis(weight)
    name = weight.name
    if group and axis is not None and values.shape[axis] % group == 0:
        split = [
            *values.shape[:axis],
            values.shape[axis] // group,
            group,
            *values.shape[axis + 1 :],
        ]
        codes, scale = coded(values.reshape(split), (axis + 1,))
        shape = numpy_helper.from_array(np.array(values.shape, np.int64), f"{name}__shape")
        model.graph.initializer.append(shape)
        end = [helper.make_node("Reshape", [f"{name}__split", f"{name}__shape"], [name])]
        product = f"{name}__split"
    else:
        rest = tuple(i for i in range(values.ndim) if i != _channel_axis(weight))
        codes, scale = coded(values, rest)
        end, product = [], name
    restore(weight.tensor, codes, f"{name}__codes")
    scales = numpy_helper.from_array(scale.astype(np.float32), f"{name}__scale")
    model.graph.initializer.append(scales)
    steps = cast(f"{name}__codes", f"{name}__steps")
    multiply = helper.make_node("Mul", [f"{name}__steps", f"{name}__scale"], [product])
    return [steps, multiply, *end]


def _four_bits(model: onnx.ModelProto, group: int) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415 -- only for this
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )
    from onnxruntime.quantization.onnx_model import ONNXModel  # noqa: PLC0415

    if group not in GROUPS:
        raise ConversionError(
            f"ONNX Runtime has no 4-bit weights in groups of {group or 'a whole channel'}",
            hint=f"It has groups of {', '.join(map(str, GROUPS))}.",
        )
    # It tells of every node that it skips.
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)
    whole = ONNXModel(model)
    whole.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        whole.model,
        algo_config=DefaultWeightOnlyQuantConfig(
            block_size=group, is_symmetric=True, op_types_to_quantize=("MatMul",)
        ),
    )
    quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in found.graph.node):
        raise ConversionError(
            "4-bit weights change nothing: the model has no matrix product with constant weights",
            hint="Convolutions take 8-bit weights.",
        )
    name_nodes(found)
    return found


def _integer_share(model: onnx.ModelProto) -> float:
    """Return the share of weights that are int8 or uint8."""
    kinds = {TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT}
    sizes: dict[bool, int] = {True: 0, False: 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in kinds:
            is_integer = tensor.data_type != TensorProto.FLOAT and len(tensor.dims) > 1
            sizes[is_integer] += int(np.prod(tensor.dims, dtype=np.int64))
    total = sizes[True] + sizes[False]
    return sizes[True] / total if total else 0.0


def _channel_axis(weight: Weight) -> int:
    """Return the axis of output channels, which each get a scale."""
    node = weight.readers[0]
    rank = len(weight.tensor.dims)
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if node.op_type in {"ConvTranspose", "LSTM", "GRU", "RNN"} else 0


def _input_axis(weight: Weight) -> int | None:
    """Return the axis that a matrix product sums over; groups lie along it."""
    node = weight.readers[0]
    rank = len(weight.tensor.dims)
    if node.op_type not in {"MatMul", "Gemm"}:
        return None
    return rank - 2 if _channel_axis(weight) == rank - 1 else rank - 1


def _prepend(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def _save(model: onnx.ModelProto, to: Path) -> None:
    del model.graph.value_info[:]
    name_nodes(model)
    strip(model)
    onnx.save(model, str(to))
