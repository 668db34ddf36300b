"""What the peers make of a model by their documented defaults, for the same runtimes.

- onnxruntime.quantization: ``quant_pre_process`` and ``quantize_static`` (QDQ, per-tensor weights,
  int8 activations, min-max), and ``quantize_dynamic`` (ONNX Runtime, "Quantize ONNX models").
- nncf: ``nncf.quantize`` with 300 samples, on the ONNX model.
- ai-edge-quantizer: ``static_wi8_ai8`` with its own calibration, and ``dynamic_wi8_afp32``, what
  its README recommends for CPUs.
- Olive: ``OnnxStaticQuantization`` with its defaults, in an environment of its own.

Every function runs in a worker process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid_edge.errors import ConversionError

Arrays = Mapping[str, NDArray[Any]]
SAMPLES = 300
OLIVE = Path("build/bench/olive")
OLIVE_REQUIREMENTS = (
    "olive-ai==0.13.0",
    "torch==2.13.0",
    "onnxruntime==1.32.0",
    "onnx==1.23.2",
    "numpy==2.4.6",
    "requests==2.34.2",
)
OLIVE_TIMEOUT_S = 900


@dataclass(frozen=True)
class Peer:
    """One tool with one of its documented defaults.

    Attributes:
        runtime: What runs its artifact.
        make: Called with the float artifact, calibration inputs in its layout, and the file to
            write.
    """

    name: str
    runtime: str
    make: Callable[[Path, Arrays, Path], None]


def ort_static(source: Path, calibration: Arrays, target: Path) -> None:
    """Quantize as the documentation of ONNX Runtime's static quantization does."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = _feeds(calibration)

        def get_next(self) -> dict[str, NDArray[Any]] | None:  # type: ignore[override]
            return next(self._feeds, None)

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(str(prepared), str(target), Reader())


def ort_dynamic(source: Path, calibration: Arrays, target: Path) -> None:
    """Quantize as the documentation of ONNX Runtime's dynamic quantization does."""
    from onnxruntime.quantization import quantize_dynamic

    del calibration
    quantize_dynamic(str(source), str(target))


def nncf_onnx(source: Path, calibration: Arrays, target: Path) -> None:
    """Quantize the ONNX model with NNCF's defaults."""
    import nncf
    import onnx

    quantized = nncf.quantize(onnx.load(str(source)), nncf.Dataset(list(_feeds(calibration))))
    onnx.save(quantized, str(target))


def litert_static(source: Path, calibration: Arrays, target: Path) -> None:
    """Quantize the flatbuffer with ai-edge-quantizer's static recipe and its own calibration."""
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(source))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    key = next(iter(_signatures(source)))
    result = tool.calibrate({key: list(_feeds(calibration))})
    tool.quantize(result).export_model(str(target), overwrite=True)


def litert_dynamic(source: Path, calibration: Arrays, target: Path) -> None:
    """Quantize the flatbuffer with ai-edge-quantizer's dynamic recipe."""
    from ai_edge_quantizer import quantizer, recipe

    del calibration
    tool = quantizer.Quantizer(str(source))
    tool.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    tool.quantize().export_model(str(target), overwrite=True)


def olive_static(source: Path, calibration: Arrays, target: Path) -> None:
    """Quantize with Olive's static pass in its own environment, made when it is missing."""
    python = _olive()
    few = {name: array[:SAMPLES] for name, array in calibration.items()}
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(Path(scratch) / "calibration.npz", **few)
        step = Path(__file__).with_name("olive_step.py")
        done = subprocess.run(
            [python, step, source, Path(scratch) / "calibration.npz", Path(scratch) / "made"],
            check=False, capture_output=True, text=True, timeout=OLIVE_TIMEOUT_S,
            env={**os.environ, "OLIVE_DISABLE_TELEMETRY": "1"},
        )  # fmt: skip
        if done.returncode:
            raise ConversionError(f"Olive fails: {done.stderr.strip().splitlines()[-1][:300]}")
        shutil.copyfile(done.stdout.strip().splitlines()[-1], target)


def _olive() -> Path:
    python = OLIVE / "bin" / "python"
    if not (OLIVE / ".installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", OLIVE], check=True)
        words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([python, *words, *OLIVE_REQUIREMENTS], check=True)
        (OLIVE / ".installed").touch()
    return python


def unchanged(source: Path, calibration: Arrays, target: Path) -> None:
    """Take the float artifact as it is: what everybody has without a tool."""
    del calibration
    shutil.copyfile(source, target)


PEERS = (
    Peer("float ONNX", "onnx_runtime", unchanged),
    Peer("onnxruntime.quantization static", "onnx_runtime", ort_static),
    Peer("onnxruntime.quantization dynamic", "onnx_runtime", ort_dynamic),
    Peer("nncf on ONNX", "onnx_runtime", nncf_onnx),
    Peer("Olive static", "onnx_runtime", olive_static),
    Peer("float LiteRT", "litert", unchanged),
    Peer("ai-edge-quantizer static", "litert", litert_static),
    Peer("ai-edge-quantizer dynamic", "litert", litert_dynamic),
)


def _feeds(calibration: Arrays) -> Iterator[dict[str, NDArray[Any]]]:
    count = min(len(next(iter(calibration.values()))), SAMPLES)
    for i in range(count):
        yield {name: np.ascontiguousarray(array[i : i + 1]) for name, array in calibration.items()}


def _signatures(source: Path) -> list[str]:
    from ai_edge_litert.interpreter import Interpreter

    return list(Interpreter(model_path=str(source)).get_signature_list())
