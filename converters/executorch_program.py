"""From a PyTorch module to an ExecuTorch program. Heavy: imported in worker processes only."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Recipe
from aid_edge.runtimes.executorch import NAMES_METHOD
from aid_edge.sources import torch_source
from aid_edge.sources.opening import load_module, request_of


@dataclass(frozen=True)
class Exported:
    """A module that ``torch.export`` has followed, with what it was followed with."""

    module: torch.fx.GraphModule
    examples: tuple[torch.Tensor, ...]


def export(model: SourceModel) -> Exported:
    """Return ``model`` as a graph with a batch of one.

    Raises:
        ConversionError: ``torch.export`` cannot follow it.
    """
    progress(0.1, "export with torch.export")
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    flat = torch_source.Flat(load_module(model)).eval()
    examples = torch_source.example_inputs(request_of(model), batch=1)
    try:
        return Exported(torch.export.export(flat, examples).module(), examples)
    except Exception as e:  # the exporter raises whatever its many parts raise
        raise ConversionError(f"{model.spec}: torch.export failed: {first_line(e)}") from e


def lower(
    program: Exported, model: SourceModel, to: Path, partitioners: Sequence[Any] | None = None
) -> None:
    """Write ``program`` to ``to``, with the operators that XNNPACK has delegated to it.

    Args:
        program: What to write.
        model: Names its inputs and outputs, which a program itself does not hold.
        to: File to write.
        partitioners: Who takes operators out of the graph; None is XNNPACK's.

    Raises:
        UnsupportedModelError: An operator has no kernel; names it.
        ConversionError: ExecuTorch failed.
    """
    progress(0.7, "lower to XNNPACK")
    names = {
        "inputs": [tensor.name for tensor in model.inputs],
        "outputs": [tensor.name for tensor in model.outputs],
    }
    try:
        edge = to_edge_transform_and_lower(
            torch.export.export(program.module, program.examples),
            partitioner=[XnnpackPartitioner()] if partitioners is None else list(partitioners),
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods={NAMES_METHOD: json.dumps(names, separators=(",", ":"))},
        )
        data = bytes(edge.to_executorch().buffer)
    except Exception as e:  # ExecuTorch raises whatever its many parts raise
        text = " ".join(line.strip() for line in str(e).splitlines() if line.strip())
        if "Missing out variants" in text:
            raise UnsupportedModelError(
                f"{model.spec} cannot be converted to executorch",
                [f"ExecuTorch has no kernel for {text.partition(':')[2].strip()[:200]}"],
                hint="onnx_runtime has most operators; or change the model there.",
            ) from e
        raise ConversionError(f"{model.spec}: lowering to XNNPACK failed: {text[:300]}") from e
    to.write_bytes(data)


def tools(model: SourceModel, recipe: Recipe) -> dict[str, str]:
    """Return the versions of what makes a program of ``model`` by ``recipe``."""
    names = ["torch", "executorch"]
    names += ["keras"] if model.framework == "keras" else []
    names += [] if isinstance(recipe.quantize, Float32) else ["torchao"]
    return {name: metadata.version(name) for name in names}


def first_line(error: BaseException) -> str:
    """Return the first line of what a tool says, bounded."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
