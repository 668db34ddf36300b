"""From a PyTorch module to a packed Core ML package. Heavy: imported in worker processes only."""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.optimize.coreml import (
    OpLinearQuantizerConfig,
    OpPalettizerConfig,
    OptimizationConfig,
    linear_quantize_weights,
    palettize_weights,
)

from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Palettized, Recipe, WeightOnly
from aid_edge.runtimes.coreml import PACKAGE
from aid_edge.sources import torch_source
from aid_edge.sources.opening import load_module, request_of
from device_agent.contract.packed import pack

_THRESHOLD = 256
"""Weights with fewer values stay as they are: a table or scales would cost more than they save."""

_BITS = frozenset({8, 6, 4, 2, 1})
"""Of a palette; three bits came with iOS 18."""

_MISSING = re.compile(r"convert function for op '([^']+)' not implemented")
_TYPES = {"FP32": np.float32, "FP16": np.float16, "INT32": np.int32, "INT64": np.int32}
_FLOATS = frozenset({"FP32", "FP16", "FP64"})


def export(model: SourceModel, recipe: Recipe) -> Any:
    """Return ``model`` as an ML program for iOS 17, with a batch of one.

    Raises:
        UnsupportedModelError: Core ML has no such operator; names it.
        ConversionError: The toolchain failed.
    """
    progress(0.1, "convert to Core ML")
    single = isinstance(recipe.quantize, Float32)
    examples = torch_source.example_inputs(request_of(model), batch=1)
    try:
        return ct.convert(
            _program(model, examples),
            inputs=[
                ct.TensorType(i.name, tuple(example.shape), dtype=_TYPES[i.datatype])
                for i, example in zip(model.inputs, examples, strict=True)
            ],
            outputs=[
                ct.TensorType(o.name, dtype=np.float32 if o.datatype in _FLOATS else None)
                for o in model.outputs
            ],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32 if single else ct.precision.FLOAT16,
            skip_model_load=True,
        )
    except Exception as e:  # the toolchain raises whatever its many parts raise
        text = " ".join(line.strip() for line in str(e).splitlines() if line.strip())
        if found := _MISSING.search(text):
            raise UnsupportedModelError(
                f"{model.spec} cannot be converted to coreml",
                [f"Core ML Tools have no operator {found[1]}"],
                hint="onnx_runtime has most operators; or change the model there.",
            ) from e
        raise ConversionError(f"{model.spec}: Core ML Tools failed: {text[:300]}") from e


def compress(program: Any, recipe: Recipe) -> Any:
    """Return ``program`` with its weights in fewer bits, as ``recipe`` asks.

    Raises:
        ConversionError: Core ML Tools failed, or iOS 17 cannot read what the recipe asks for.
    """
    how = recipe.quantize
    if not isinstance(how, WeightOnly | Palettized):
        return program
    if isinstance(how, Palettized) and how.bits not in _BITS:
        raise ConversionError(f"iOS 17 has no palettes of {how.bits} bits")
    if isinstance(how, WeightOnly) and how.group:
        raise ConversionError("iOS 17 has one scale per channel, none per group")
    progress(0.6, "compress weights")
    # K-means draws its first centers.
    np.random.seed(recipe.seed)  # noqa: NPY002
    try:
        if isinstance(how, WeightOnly):
            linear = OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=_THRESHOLD)
            return linear_quantize_weights(program, OptimizationConfig(global_config=linear))
        palette = OpPalettizerConfig(mode="kmeans", nbits=how.bits, weight_threshold=_THRESHOLD)
        return palettize_weights(program, OptimizationConfig(global_config=palette))
    except Exception as e:  # the toolchain raises whatever its many parts raise
        raise ConversionError(f"{recipe.title} by Core ML Tools failed: {e}") from e


def write(program: Any, to: Path) -> None:
    """Write ``program`` to ``to`` as one archive without a trace of when and where it was made."""
    progress(0.9, "write")
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        folder = Path(scratch, PACKAGE)
        program.save(str(folder))
        index = _with_fixed_ids(json.loads((folder / "Manifest.json").read_bytes()))
        members = {"Manifest.json": json.dumps(index, indent=1, sort_keys=True).encode()}
        # Only what the manifest names: the toolchain puts debugging notes beside it.
        for file in sorted(p for p in (folder / "Data").rglob("*") if p.is_file()):
            data = file.read_bytes()
            clean = _without_metadata(data) if file.suffix == ".mlmodel" else data
            members[file.relative_to(folder).as_posix()] = clean
        to.write_bytes(pack({f"{PACKAGE}/{name}": data for name, data in members.items()}))


def tools(model: SourceModel) -> dict[str, str]:
    """Return the versions of what makes a package of ``model``."""
    names = ["torch", "coremltools"] + (["keras"] if model.framework == "keras" else [])
    return {name: metadata.version(name) for name in names}


def _program(model: SourceModel, examples: tuple[torch.Tensor, ...]) -> Any:
    flat = torch_source.Flat(load_module(model)).eval()
    if model.framework == "torchscript":
        return torch.jit.trace(flat, examples)
    return torch.export.export(flat, examples).run_decompositions({})


def _with_fixed_ids(index: dict[str, Any]) -> dict[str, Any]:
    """Return a package's manifest with identifiers made from paths instead of drawn ones."""
    items = {
        old: (str(uuid.uuid5(uuid.NAMESPACE_URL, about["path"])), about)
        for old, about in index["itemInfoEntries"].items()
    }
    return {
        **index,
        "itemInfoEntries": dict(items.values()),
        "rootModelIdentifier": items[index["rootModelIdentifier"]][0],
    }


def _without_metadata(data: bytes) -> bytes:
    spec = ct.proto.Model_pb2.Model.FromString(data)
    spec.description.ClearField("metadata")
    cleaned: bytes = spec.SerializeToString(deterministic=True)
    return cleaned
