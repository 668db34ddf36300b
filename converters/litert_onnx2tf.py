"""ONNX to LiteRT by onnx2tf, in its own environment and with a bound on its memory.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from aid_edge import toolenv
from aid_edge.errors import ConversionError
from aid_edge.isolate import Limits, progress
from aid_edge.model import SourceModel
from converters import litert_flatbuffer

TOOL = "onnx2tf"
LIMITS = Limits(memory_bytes=6 * 2**30, time_s=900.0)
"""It takes many times what a model does: 6 GiB for a ResNet-50, 19 for a ViT-B, unfinished."""

_SAMPLES_NAME = "calibration_image_sample_data_20x128x128x3_float32.npy"
_SAMPLES_SHAPE = (20, 128, 128, 3)


def export(
    model: SourceModel, axes: dict[str, tuple[int, ...]], to: Path
) -> dict[str, tuple[int, ...]]:
    """Write the ONNX model as a float file with a batch of one; return which inputs were moved.

    Args:
        model: An ONNX model.
        axes: Inputs whose channels move to the end.
        to: File to write.

    Raises:
        ToolMissingError: The environment of onnx2tf could not be made.
        StepCrashedError: It failed, or ran out of memory or time.
        ConversionError: What it wrote has other inputs or outputs.
    """
    progress(0.2, "convert by onnx2tf")
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        work = Path(folder)
        # It downloads this file otherwise; it only compares with it, and we do that ourselves.
        np.save(work / _SAMPLES_NAME, np.zeros(_SAMPLES_SHAPE, np.float32))
        shapes = [
            f"{t.name}:{','.join(str(1 if size == -1 else size) for size in t.shape)}"
            for t in model.inputs
        ]
        kept = [t.name for t in model.inputs if t.name not in axes]
        toolenv.run(
            TOOL,
            [
                "-m", "onnx2tf", "--input_onnx_file_path", str(Path(model.spec).resolve()),
                "--output_folder_path", "made", "--non_verbose",
                "--overwrite_input_shape", *shapes,
                *(["--keep_shape_absolutely_input_names", *kept] if kept else []),
                # LiteRT has neither: they would become operators of TensorFlow.
                "--replace_to_pseudo_operators", "Erf", "GeLU",
                "--copy_onnx_input_output_names_to_tflite",
            ],
            cwd=work,
            limits=LIMITS,
        )  # fmt: skip
        made = sorted((work / "made").glob("*_float32.tflite"))
        if len(made) != 1:
            raise ConversionError(f"onnx2tf wrote {len(made)} float files, not one")
        made[0].replace(to)
    names = [t.name for t in model.inputs], [t.name for t in model.outputs]
    litert_flatbuffer.order(to, *names)
    _check_shapes(model, axes, to)
    return axes


def tools() -> dict[str, str]:
    """Return the versions of what exports."""
    return {TOOL: toolenv.version(TOOL)}


def _check_shapes(model: SourceModel, axes: dict[str, tuple[int, ...]], path: Path) -> None:
    graph = litert_flatbuffer.read(path)[0].subgraphs[0]
    for infos, indices in ((model.inputs, graph.inputs), (model.outputs, graph.outputs)):
        for info, index in zip(infos, indices, strict=True):
            shape = [1 if size == -1 else size for size in info.shape]
            wanted = [shape[axis] for axis in axes.get(info.name, range(len(shape)))]
            found = graph.tensors[index].shape
            sizes = [] if found is None else [int(size) for size in found]
            if sizes != wanted and -1 not in info.shape[1:]:
                raise ConversionError(
                    f"onnx2tf changed the shape of {info.name}: {sizes}; wanted {wanted}"
                )
