"""Quantizes one ONNX model with Olive's static pass and its defaults; runs in Olive's environment.

``python olive_step.py SOURCE CALIBRATION.npz FOLDER`` prints the path of what it made.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxStaticQuantization


class _Samples(torch.utils.data.Dataset):
    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as stored:
            self._arrays = {name: stored[name] for name in stored.files}

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        return {name: torch.from_numpy(a[index]) for name, a in self._arrays.items()}, 0


def main() -> None:
    """Quantize as the command line says."""
    source, calibration, folder = sys.argv[1:4]

    @Registry.register_dataset()
    def calibration_samples(data_dir: str | None = None, **_: object) -> _Samples:
        del data_dir
        return _Samples(calibration)

    data = DataConfig(
        name="calibration",
        load_dataset_config=DataComponentConfig(type="calibration_samples"),
        dataloader_config=DataComponentConfig(params={"batch_size": 1}),
    )
    step = create_pass_from_dict(OnnxStaticQuantization, {"data_config": data}, disable_search=True)
    print(step.run(ONNXModelHandler(source), folder).model_path)


if __name__ == "__main__":
    main()
