"""Is it really int8? Counts what ONNX Runtime's own plan computes in integers.

QDQ nodes alone say nothing: where ONNX Runtime does not fuse them with the operator between them,
it computes in float and converts back and forth, slower than the float model and no more exact.
Used in worker processes only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from aid_edge.errors import ConversionError
from aid_edge.runtimes import onnx_runtime
from aid_edge.runtimes.session import Placement
from converters.onnx_graph import COMPUTE, NOT_FUSED
from device_agent.contract.profile import HardwareProfile

MIN_INTEGER_SHARE = 0.8
"""Of the compute operators that were to be quantized; one may always be missing.

NNCF's default on MobileNetV2 reaches 0.25 and is twice as slow as float."""


def check_planned(path: Path, excluded: int, profile: HardwareProfile) -> tuple[str, ...]:
    """Return notes on the plan of the int8 model at ``path``.

    Args:
        path: The model.
        excluded: Compute operators that stay float on purpose.
        profile: Only Arm fuses signed activations.

    Raises:
        ConversionError: Too much of it would be computed in float.
    """
    signed, per_channel = _activations(path)
    if signed and profile.arch == "x86_64":
        raise ConversionError(
            "it would not really be int8: x86 processors have fast kernels for unsigned "
            f"activations only, and {signed} are signed",
            hint="Use unsigned activations (uint8).",
        )
    with tempfile.TemporaryDirectory() as scratch:
        found = planned(path, Path(scratch), profile)
    wanted = found.integer + found.floating - excluded
    if found.integer + found.floating == 0:
        raise ConversionError(
            "there is nothing to compute in int8: no convolution and no matrix product",
            hint="Keep the model in float.",
        )
    missing = found.floating - excluded
    if found.integer == 0 or missing > max(1.0, (1 - MIN_INTEGER_SHARE) * wanted):
        raise ConversionError(
            f"it would not really be int8: ONNX Runtime computes {found.integer} of {wanted} "
            "operators in integers and the rest in float, with conversions around them",
            cause=f"{per_channel} activations have one scale per channel, which is not fused"
            if per_channel
            else "",
            hint="Use another method, or float.",
        )
    if missing > 0:
        note = f"ONNX Runtime does not fuse {missing} of {wanted} quantized operators"
        return (f"{note}: they compute in float",)
    return ()


def planned(path: Path, scratch: Path, profile: HardwareProfile) -> Placement:
    """Return where the operators of the model at ``path`` run on the profile's processor."""
    if profile.arch == "x86_64":
        return onnx_runtime.plan(path, scratch)
    return onnx_runtime.place(path, scratch)


def count_compute(model: onnx.ModelProto, names: list[str]) -> int:
    """Return how many nodes do arithmetic and stay float: ``names``, and what has no kernel."""
    chosen = set(names)
    return sum(
        n.op_type in NOT_FUSED or (n.name in chosen and n.op_type in COMPUTE)
        for n in model.graph.node
    )


def _activations(path: Path) -> tuple[int, int]:
    """Return how many quantized activations are signed, and how many have several scales."""
    model = onnx.load(str(path))
    tensors = {t.name: t for t in model.graph.initializer}
    signed = per_channel = 0
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in tensors:
            continue
        scale = tensors.get(node.input[1])
        point = tensors.get(node.input[2]) if len(node.input) > 2 else None
        per_channel += scale is not None and len(scale.dims) > 0 and scale.dims[0] > 1
        signed += point is not None and point.data_type == onnx.TensorProto.INT8
    return signed, per_channel
