"""What makes a step another one, and what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aid_edge.compress import PrepareRequest
from aid_edge.errors import ConversionError
from aid_edge.evaluate.data import DataSet, load
from aid_edge.model import ModelCard, SourceModel
from aid_edge.pipeline import steps as steps_module
from aid_edge.pipeline.cache import Cache
from aid_edge.pipeline.findings import TrainingFinding
from aid_edge.pipeline.steps import Inputs, RunnerEngine, Steps
from aid_edge.recipe import Recipe
from device_agent.contract.manifest import Layout
from device_agent.contract.tensors import TensorInfo

CARD = ModelCard(
    Path("model.toml"), "tiny", "1.0.0", "tiny", "other", (), "", (), (), (), ()
)  # fmt: skip


class Engine(RunnerEngine):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.count = 0

    def source_outputs(self, model: SourceModel, inputs: Any, **_: Any) -> dict[str, Any]:
        self.count += 1
        return {o.name: np.zeros((len(inputs["x"]), 2)) for o in model.outputs}

    def prepare(
        self, model: SourceModel, recipe: Recipe, data: Inputs, out: Path, on_progress: Any
    ) -> tuple[SourceModel, TrainingFinding | None]:
        self.count += 1
        return model, None


@pytest.fixture
def model() -> SourceModel:
    outputs = (TensorInfo("a", "FP32", (-1, 2)), TensorInfo("b", "FP32", (-1, 2)))
    return SourceModel(
        "tiny.onnx", "onnx", None, (TensorInfo("x", "FP32", (-1, 4)),), outputs, (), 1,
        "sha256:" + "0" * 64, CARD,
    )  # fmt: skip


@pytest.fixture
def data(model: SourceModel, tmp_path: Path) -> DataSet:
    np.savez(tmp_path / "d.npz", x=np.eye(4, dtype=np.float32))
    return load(str(tmp_path / "d.npz"), model)


def test_outputs_of_other_names_are_others(
    model: SourceModel, data: DataSet, tmp_path: Path
) -> None:
    engine = Engine()
    steps = Steps(Cache(tmp_path / "cache"), {}, {}, engine)
    renamed = replace(model, outputs=model.outputs[::-1])
    for one in (model, renamed, model):
        found = steps.source_outputs(one, data, lambda _share, _what: None)
        assert list(found) == [o.name for o in one.outputs]
    assert engine.count == 2


def test_what_the_card_says_matters_where_it_is_read(
    model: SourceModel, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    steps = Steps(Cache(tmp_path / "cache"), {}, {}, engine)
    classifies = replace(model, card=replace(CARD, task="classification"))
    titled = replace(model, card=replace(CARD, title="Another title"))
    inputs = Inputs(data, data)
    for one in (model, classifies, titled):
        steps.prepare(one, Recipe(), inputs, lambda _share, _what: None)
    assert engine.count == 2, "distillation learns scores of classes otherwise than values"
    asked: list[SourceModel] = []
    monkeypatch.setattr(
        steps_module, "diagnose_preprocessing", lambda one, *_, **__: asked.append(one)
    )
    turned = replace(model, card=replace(CARD, preprocess=(Layout("NHWC"),)))
    for one in (model, turned, titled):
        steps.preprocessing(one, data)
    assert asked == [model, turned]


def test_preparation_is_told_what_belongs_together(
    model: SourceModel, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[PrepareRequest] = []

    def stop(request: PrepareRequest, **_: Any) -> None:
        asked.append(request)
        raise ConversionError("enough")

    monkeypatch.setattr("aid_edge.compress.prepare", stop)
    grouped = replace(data, groups=("a", "a", "b", "b"))
    with pytest.raises(ConversionError):
        RunnerEngine().prepare(
            model, Recipe(), Inputs(grouped, data), tmp_path, lambda _share, _what: None
        )
    assert asked[0].groups == ("a", "a", "b", "b")
