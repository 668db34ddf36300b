"""How much memory a TFLite Micro model takes, and what an accelerator's compiler expects of it.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aid_edge import toolenv
from aid_edge.errors import ConversionError, StepCrashedError, UnsupportedModelError
from aid_edge.isolate import Limits
from converters.litert_flatbuffer import operator_name
from device_agent.contract.errors import AidError
from device_agent.contract.manifest import Measurement
from device_agent.contract.profile import Accelerator, HardwareProfile

ALIGNMENT = 16
"""Bytes; ``MicroArenaBufferAlignment`` of TensorFlow Lite Micro."""

MICRO = "tflite-micro"
VELA = "vela"
MOST_BYTES = 64 * 2**20
LIMITS = Limits(memory_bytes=2 * 2**30, time_s=300.0)

_VELA_CONFIG = "Arm/vela.ini"
# Sizes by LiteRT's TensorType; sub-byte types are packed and only used for weights.
_ITEM_BYTES = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1, 10: 8, 12: 8, 15: 4, 16: 2}


@dataclass(frozen=True)
class Peak:
    """Where the most activations are alive at once.

    Attributes:
        size_bytes: All of them, each rounded up to ``ALIGNMENT``.
        tensor: The largest of them, in words.
    """

    size_bytes: int
    tensor: str


def peak(found: Any) -> Peak:
    """Return the peak of live activations of the first graph, operator by operator."""
    graph = found.subgraphs[0]
    ops = graph.operators or []
    first: dict[int, int] = dict.fromkeys((int(i) for i in graph.inputs), 0)
    last: dict[int, int] = dict.fromkeys((int(i) for i in graph.outputs), len(ops))
    writer: dict[int, str] = {}
    for place, op in enumerate(ops):
        for index in map(int, op.outputs):
            first.setdefault(index, place)
            writer[index] = operator_name(found, op.opcodeIndex)
            last[index] = max(last.get(index, place), place)
        for index in map(int, op.inputs if op.inputs is not None else ()):
            if index in first:
                last[index] = max(last.get(index, place), place)
    largest, alive_then = 0, list(first)
    for place in range(len(ops)):
        alive = [i for i in first if first[i] <= place <= last.get(i, first[i])]
        total = sum(_aligned(_size(graph.tensors[i])) for i in alive)
        if total > largest:
            largest, alive_then = total, alive
    biggest = max(alive_then, key=lambda i: _size(graph.tensors[i]))
    return Peak(largest, _describe(graph.tensors[biggest], writer.get(biggest, "")))


def largest_weight(found: Any) -> str:
    """Return the largest constant tensor of the model, in words."""
    sizes = [
        (len(data), number)
        for number, tensor in enumerate(found.subgraphs[0].tensors)
        if (data := found.buffers[tensor.buffer].data) is not None
    ]
    if not sizes:
        return "no weights"
    size, number = max(sizes)
    tensor = found.subgraphs[0].tensors[number]
    shape = [int(s) for s in tensor.shape] if tensor.shape is not None else []
    return f"weights {tensor.name.decode(errors='replace')} {shape} of {size} bytes"


def arena(model: Path, found: Any) -> tuple[Measurement, str]:
    """Return the smallest tensor arena, and a note where it could only be estimated.

    Raises:
        ConversionError: The interpreter cannot run the model in any arena that is tried.
    """
    try:
        toolenv.ensure(MICRO)
    except AidError as e:
        how = (
            "peak of live activations, each rounded up to 16 bytes; without the interpreter's own "
            "structures and its kernels' scratch memory"
        )
        figure = Measurement("arena_bytes", peak(found).size_bytes, "B", "estimate", how, 1)
        return figure, f"the tensor arena is an estimate, because {e}"
    arguments = [toolenv.script("micro"), "arena", str(model.resolve()), str(MOST_BYTES)]
    done = toolenv.run(MICRO, arguments, limits=LIMITS)
    answer = json.loads(done.log.splitlines()[-1])
    if "error" in answer:
        raise ConversionError(
            f"TFLite Micro {toolenv.version(MICRO)} does not run it, not even in an arena of "
            f"{MOST_BYTES // 2**20} MiB",
            cause=" | ".join([*done.log.splitlines()[-4:-1], answer["error"]]),
        )
    how = (
        f"smallest arena that the interpreter of tflite-micro {toolenv.version(MICRO)} runs in, by "
        "bisection, with 64-bit pointers and reference kernels; optimized kernels may take more"
    )
    return Measurement("arena_bytes", answer["arena_bytes"], "B", "host", how, 1), ""


def check_fits(model: Path, found: Any, arena_bytes: int, profile: HardwareProfile) -> None:
    """Return if the model fits the memory of the profile.

    Raises:
        UnsupportedModelError: It does not; names the tensor that makes it so.
    """
    reasons = []
    memory = profile.memory
    if arena_bytes > memory.models:
        most = peak(found)
        reasons.append(
            f"its tensor arena needs {arena_bytes} bytes; {profile.id} has {int(memory.models)} "
            f"for models. The most is alive beside {most.tensor}: {most.size_bytes} bytes at once"
        )
    flash = memory.flash if memory.flash is not None else memory.storage
    if (size := model.stat().st_size) > flash:
        reasons.append(
            f"the model has {size} bytes; {profile.id} has {int(flash)} of flash. "
            f"The largest part is {largest_weight(found)}"
        )
    if reasons:
        raise UnsupportedModelError(
            f"the model is too big for {profile.id}",
            reasons,
            hint="Quantize it, prune it, or give it smaller inputs.",
        )


def compile_for(
    accelerator: Accelerator, model: Path
) -> tuple[tuple[Measurement, ...], Path | None, str]:
    """Return what Vela expects of an Ethos-U, the model it compiled, and a note where it could not.

    Raises:
        ConversionError: Vela refuses the configuration or the model.
    """
    try:
        toolenv.ensure(VELA)
    except AidError as e:
        return (), None, f"nothing is known of the accelerator, because {e}"
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        arguments = [
            "-m", "ethosu.vela", str(model.resolve()), "--output-dir", folder,
            "--accelerator-config", accelerator.config,
        ]  # fmt: skip
        if accelerator.system or accelerator.memory_mode:
            arguments += ["--config", _VELA_CONFIG]
        if accelerator.system:
            arguments += ["--system-config", accelerator.system]
        if accelerator.memory_mode:
            arguments += ["--memory-mode", accelerator.memory_mode]
        try:
            toolenv.run(VELA, arguments, limits=LIMITS)
        except StepCrashedError as e:
            raise ConversionError(f"Vela refuses it: {e}", cause=e.cause) from e
        tables = sorted(Path(folder).glob("*_summary_*.csv"))
        made = sorted(Path(folder).glob("*_vela.tflite"))
        if len(tables) != 1 or len(made) != 1:
            raise ConversionError("Vela wrote no summary or no model")
        with tables[0].open(newline="", encoding="utf-8") as file:
            row = next(csv.DictReader(file))
        compiled = made[0].rename(model.with_name("model_vela.tflite"))
    return _expected(row, accelerator), compiled, ""


def tools(*, accelerated: bool) -> dict[str, str]:
    """Return the versions of the tools whose environments were there."""
    names = (MICRO, VELA) if accelerated else (MICRO,)
    return {name: toolenv.version(name) for name in names if toolenv.is_installed(name)}


def _expected(row: dict[str, str], accelerator: Accelerator) -> tuple[Measurement, ...]:
    how = f"performance model of ethos-u-vela {toolenv.version(VELA)} for {accelerator.config}"
    how += f", {accelerator.system or 'default'}, {accelerator.memory_mode or 'default'}"
    cycles = float(row["cycles_total"])
    clock = float(row["core_clock"])
    seconds = cycles / accelerator.clock_hz
    timed = how
    if clock != accelerator.clock_hz:
        timed += f"; modelled at {clock / 1e6:g} MHz"
    return (
        Measurement("ethos_u_cycles", cycles, "cycles", "estimate", how, 1),
        Measurement("ethos_u_npu_cycles", float(row["cycles_npu"]), "cycles", "estimate", how, 1),
        Measurement(
            "ethos_u_sram", float(row["sram_memory_used"]) * 2**10, "B", "estimate", how, 1
        ),
        Measurement("ethos_u_inference", seconds, "s", "estimate", timed, 1),
    )


def _size(tensor: Any) -> int:
    shape = tensor.shape if tensor.shape is not None else ()
    return int(np.prod([int(s) for s in shape], dtype=np.int64)) * _ITEM_BYTES.get(tensor.type, 1)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _describe(tensor: Any, writer: str) -> str:
    shape = [int(s) for s in tensor.shape] if tensor.shape is not None else []
    origin = f"output of {writer}" if writer else "input"
    name = tensor.name.decode(errors="replace")
    return f"tensor {name} {shape} of {_size(tensor)} bytes ({origin})"
