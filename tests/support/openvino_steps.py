"""What tests of OpenVINO do in worker processes: NNCF is imported there only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Recipe
from device_agent.contract.profile import HardwareProfile


def smoothed(model: SourceModel, profile: HardwareProfile, images: Any, out: Path) -> None:
    """Write ``model`` as NNCF makes it by default: int8, with SmoothQuant where it attends."""
    import nncf

    from converters import onnx_export, openvino_model

    onnx_export.export(model, profile, 20, out / "float.onnx")
    found = openvino_model.read(out / "float.onnx", model)
    quantized = nncf.quantize(
        found,
        nncf.Dataset([images[i : i + 1] for i in range(len(images))]),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    openvino_model.write(quantized, Recipe(Float32()), out / "model.openvino")


def single_and_many(path: Path, images: Any, batch: int) -> tuple[Any, Any]:
    """Return the outputs for images one at a time, and ``batch`` at a time."""
    import numpy as np

    from aid_edge import runtimes

    session = runtimes.open_artifact(path, "openvino")
    parts = [
        [
            session.run({"image": images[i : i + size]})["output"]
            for i in range(0, len(images), size)
        ]
        for size in (1, batch)
    ]
    return np.concatenate(parts[0]), np.concatenate(parts[1])
