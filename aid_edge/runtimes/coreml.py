"""Core ML packages: they run on Apple's systems only, so here they are read and inspected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from aid_edge.errors import ConversionError
from aid_edge.runtimes.session import Inspection, Placement, first_line
from device_agent.contract.errors import ContractError
from device_agent.contract.packed import unpack
from device_agent.contract.tensors import TensorInfo

DISTRIBUTION = ("coremltools", "coremltools")

PACKAGE = "model.mlpackage"
"""Folder inside the archive."""

# Specification version (coremltools, SPECIFICATION_VERSION) to the first iOS that reads it.
_IOS = {6: "15", 7: "16", 8: "17", 9: "18", 10: "26"}
_COMPUTE = frozenset(
    {"conv", "conv_transpose", "linear", "matmul", "einsum", "lstm", "gru", "rnn",
     "scaled_dot_product_attention"}
)  # fmt: skip


def open_session(path: Path, threads: int, exact: bool) -> NoReturn:
    """Raise: there is no Core ML here.

    Raises:
        ConversionError: Always.
    """
    del threads, exact
    raise ConversionError(
        f"{path.name}: Core ML cannot be run on this host",
        hint="It runs on Apple's systems only: try the package on the device itself.",
    )


def place(path: Path, scratch: Path) -> Placement:
    """Return the operators of a package; Core ML itself decides where they run."""
    return inspect(path, scratch).placement


def inspect(path: Path, scratch: Path) -> Inspection:
    """Return what can be known of the package at ``path`` without running it.

    Args:
        path: The packed package.
        scratch: A folder for temporary files.

    Raises:
        ConversionError: It is damaged, or no ML program.
    """
    import coremltools as ct  # noqa: PLC0415 -- only in worker processes

    try:
        folder = _extract(path, scratch)
        model = ct.models.MLModel(str(folder), skip_model_load=True)
        spec = model.get_spec()
        if spec.WhichOneof("Type") != "mlProgram":
            raise ValueError(f"is a {spec.WhichOneof('Type')}, not an ML program")  # noqa: TRY301
        inputs = tuple(_info(feature) for feature in spec.description.input)
        outputs = tuple(_info(feature) for feature in spec.description.output)
        return Inspection(
            _IOS.get(spec.specificationVersion, str(spec.specificationVersion)),
            inputs, outputs, _placement(spec), _weights(model),
        )  # fmt: skip
    except (ContractError, OSError, RuntimeError, ValueError, TypeError, KeyError) as e:
        raise ConversionError(f"{path.name}: Core ML Tools refuse it: {first_line(e)}") from e


def _extract(path: Path, scratch: Path) -> Path:
    for name, data in unpack(path).items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or parts.parts[0] != PACKAGE:
            raise ValueError(f"{name} does not belong into a Core ML package")
        file = scratch / parts
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return scratch / PACKAGE


def _info(feature: Any) -> TensorInfo:
    array = feature.type.multiArrayType
    kind = array.ArrayDataType.Name(array.dataType)
    datatype = {"FLOAT32": "FP32", "FLOAT16": "FP16", "INT32": "INT32", "DOUBLE": "FP64"}.get(kind)
    if datatype is None:
        raise ValueError(f"{feature.name} is {kind}, which is not on the wire")
    return TensorInfo(feature.name, datatype, tuple(map(int, array.shape)))  # type: ignore[arg-type]


def _placement(spec: Any) -> Placement:
    operators: Counter[str] = Counter()
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            operators.update(op.type for op in block.operations)
    floating = sum(count for kind, count in operators.items() if kind in _COMPUTE)
    return Placement(0, floating, dict(sorted(operators.items())))


def _weights(model: Any) -> Mapping[str, NDArray[Any]]:
    from coremltools.optimize.coreml import (  # noqa: PLC0415 -- only in worker processes
        decompress_weights,
        get_weights_metadata,
    )

    found = get_weights_metadata(decompress_weights(model), weight_threshold=0)
    return {
        name: np.asarray(about.val, np.float32)
        for name, about in found.items()
        if about.val.dtype.kind == "f" and about.val.ndim > 1
    }
