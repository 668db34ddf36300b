from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aid_edge.model import ModelCard, SourceModel
from device_agent.contract.manifest import CenterCrop, Layout, Normalize, PreprocessStep, Resize
from device_agent.contract.tensors import TensorInfo

STEPS = (
    Resize(size=12, interpolation="bilinear"),
    CenterCrop(height=8, width=8),
    Normalize(mean=(127.0,) * 3, std=(128.0,) * 3),
    Layout(order="NCHW"),
)


@pytest.fixture
def make_model() -> Callable[..., SourceModel]:
    def make(
        shape: tuple[int, ...] = (-1, 3, 8, 8),
        *,
        datatype: str = "FP32",
        steps: tuple[PreprocessStep, ...] = STEPS,
        labels: tuple[str, ...] = ("cat", "dog", "fox"),
    ) -> SourceModel:
        card = ModelCard(
            path=Path("model.toml"), name="tiny", version="1.0.0", title="tiny",
            task="classification", labels=labels, licence="", inputs=(), outputs=(),
            preprocess=steps, postprocess=(),
        )  # fmt: skip
        return SourceModel(
            spec="tiny:make", framework="torch", weights=None,
            inputs=(TensorInfo("image", datatype, shape),),
            outputs=(TensorInfo("scores", "FP32", (-1, len(labels))),),
            uses=(), parameters=1, digest="sha256:" + "0" * 64, card=card,
        )  # fmt: skip

    return make


@pytest.fixture
def save_photo() -> Callable[..., Path]:
    def save(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return save
