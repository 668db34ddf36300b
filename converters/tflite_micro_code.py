"""What a microcontroller's program needs beside the model: its bytes as C, its operators.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.litert_flatbuffer import operator_name, operators

BYTES_PER_LINE = 16

# The Add* methods of tensorflow/lite/micro/micro_mutable_op_resolver.h of TensorFlow Lite Micro,
# commit 90b983c2 (2026-08-20), by the operator they add: those named after it, and the others.
_PLAIN = frozenset(
    """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO
    CALL_ONCE CAST CEIL CONCATENATION COS DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU
    EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER
    GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MEAN MINIMUM MIRROR_PAD MUL NEG
    NOT_EQUAL PACK PAD PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6
    RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN
    SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE
    SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV UNPACK VAR_HANDLE WHILE
    ZEROS_LIKE
    """.split()  # noqa: SIM905 -- a hundred words
)
_OTHERS = {
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "BATCH_MATMUL": "AddBatchMatMul",
    "CONV_2D": "AddConv2D",
    "CUMSUM": "AddCumSum",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "L2_POOL_2D": "AddL2Pool2D",
    "MAX_POOL_2D": "AddMaxPool2D",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
    "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
}


@dataclass(frozen=True)
class OperatorNeed:
    """An operator of the model.

    Attributes:
        name: As the format names it.
        version: The version of it that the model needs.
        method: The resolver's method that adds it.
    """

    name: str
    version: int
    method: str


def needs(found: Any) -> tuple[OperatorNeed, ...]:
    """Return the operators of the model that TensorFlow Lite Micro has, sorted by name."""
    return tuple(
        OperatorNeed(name, version, method)
        for name, version in _versions(found).items()
        if (method := _method(name))
    )


def lacking(found: Any) -> list[str]:
    """Return what TensorFlow Lite Micro has no kernel for, one line per operator type."""
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name, _, output in operators(found):
        if not _method(name):
            first.setdefault(name, output)
            counts[name] = counts.get(name, 0) + 1
    return [
        f"operator {name} ({counts[name]}x, first writes {output}) is not in TFLite Micro; "
        "litert has it"
        for name, output in first.items()
    ]


def write(model: Path, found: Any, about: tuple[str, int, str]) -> dict[str, Path]:
    """Write the sources beside the model and return them by name.

    Args:
        model: The model file.
        found: Its flatbuffer.
        about: A title; the size of the arena in bytes; how that size was found.
    """
    title, arena_bytes, how = about
    data = model.read_bytes()
    files = {
        "model.h": _header(title, len(data), arena_bytes, how),
        "model.cc": "".join(_array(title, data)),
        "model_ops.h": _resolver(title, needs(found)),
    }
    for name, text in files.items():
        (model.parent / name).write_text(text, "utf-8")
    return {name: model.parent / name for name in files}


def _versions(found: Any) -> dict[str, int]:
    used: dict[str, int] = {}
    for graph in found.subgraphs:
        for op in graph.operators or ():
            name = operator_name(found, op.opcodeIndex)
            version = int(found.operatorCodes[op.opcodeIndex].version)
            used[name] = max(used.get(name, 1), version)
    return dict(sorted(used.items()))


def _method(name: str) -> str:
    if name in _OTHERS:
        return _OTHERS[name]
    return "Add" + "".join(w.capitalize() for w in name.split("_")) if name in _PLAIN else ""


def _header(title: str, size_bytes: int, arena_bytes: int, how: str) -> str:
    return f"""\
// {title}
#pragma once

#include <cstddef>

namespace aid_edge {{

extern const unsigned char kModel[];
constexpr std::size_t kModelBytes = {size_bytes};

// {how}
constexpr std::size_t kTensorArenaBytes = {arena_bytes};

}}  // namespace aid_edge
"""


def _array(title: str, data: bytes) -> Iterator[str]:
    yield f'// {title}\n#include "model.h"\n\nnamespace aid_edge {{\n\n'
    # TensorFlow Lite Micro reads the flatbuffer in place.
    yield "alignas(16) extern const unsigned char kModel[kModelBytes] = {\n"
    for start in range(0, len(data), BYTES_PER_LINE):
        line = data[start : start + BYTES_PER_LINE]
        yield "    " + " ".join(f"0x{byte:02x}," for byte in line) + "\n"
    yield "};\n\n}  // namespace aid_edge\n"


def _resolver(title: str, ops: tuple[OperatorNeed, ...]) -> str:
    lines = "\n".join(
        f"  TF_LITE_ENSURE_STATUS(resolver.{op.method}());  // {op.name}, version {op.version}"
        for op in ops
    )
    return f"""\
// {title}
#pragma once

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace aid_edge {{

constexpr unsigned int kModelOps = {len(ops)};

// Adds what the model needs, and nothing else, to the resolver.
inline TfLiteStatus AddModelOps(tflite::MicroMutableOpResolver<kModelOps>& resolver) {{
{lines}
  return kTfLiteOk;
}}

}}  // namespace aid_edge
"""
