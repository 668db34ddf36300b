"""Preparation as the pipeline asks for it; without worker processes but for one test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aid_edge import compress
from aid_edge.compress import Prepared, PrepareRequest, TrainData
from aid_edge.errors import DataError, UnsupportedModelError, UsageError
from aid_edge.isolate import Limits, StepOutcome
from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Prune, Recipe, Recover, Structured, Unstructured
from aid_edge.sources import torch_archive
from aid_edge.sources.inputs import parse_input
from aid_edge.sources.opening import open_source
from tests.support import prunable_nets

NETS = "tests.support.prunable_nets"
IMAGES = {"image": np.random.default_rng(0).random((256, 3, 8, 8), np.float32)}
ROWS = np.random.default_rng(1).standard_normal((1024, 16)).astype(np.float32)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what would run in a worker process here: importing torch anew takes most of the time."""

    def run(_: Limits, __: object, function: Callable[..., Any], *args: Any) -> StepOutcome[Any]:
        return StepOutcome(function(*args), 0.0, 0, "")

    monkeypatch.setattr("aid_edge.isolate.run_with", run)


def _model(factory: str, *inputs: str) -> SourceModel:
    return open_source(f"{NETS}:{factory}", inputs=[parse_input(i) for i in inputs])


def _residual() -> SourceModel:
    return _model("residual", "image=?x3x8x8")


def _recipe(prune: Prune | None = None, recover: Recover | None = None) -> Recipe:
    return Recipe(Float32(), prune=prune, recover=recover)


def _net(prepared: Prepared) -> torch.nn.Module:
    return torch_archive.load(Path(prepared.model.spec))


@pytest.mark.usefixtures("here")
def test_a_pruned_and_distilled_net_is_a_source_like_the_original(tmp_path: Path) -> None:
    recipe = _recipe(Structured(0.5, round_to=4), Recover("distill", 5, 12))
    model = _residual()
    found = compress.prepare(PrepareRequest(model, recipe, tmp_path, IMAGES))
    training = found.training
    assert (found.model.inputs, found.model.outputs) == (model.inputs, model.outputs)
    assert found.model.framework == "torch"
    assert found.model.batched
    assert training.macs_after < 0.5 * training.macs_before
    assert training.parameters_after < 0.5 * training.parameters_before
    assert training.points[-1].quality > training.points[0].quality
    best = max(training.points, key=lambda p: (p.quality, -p.loss))
    assert training.best_epoch == best.epoch
    assert training.stopped == "epochs"
    assert _net(found)(torch.rand(3, 3, 8, 8))[0].shape == (3, 5)


@pytest.mark.usefixtures("here")
def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    recipe = _recipe(Structured(0.5, round_to=4), Recover("distill", 5, 1))
    model, states = _residual(), []
    for run in ("first", "second"):
        found = compress.prepare(PrepareRequest(model, recipe, tmp_path / run, IMAGES))
        states.append(list(_net(found).state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.usefixtures("here")
def test_zeros_stay_zero_while_the_rest_learns(tmp_path: Path) -> None:
    recipe = _recipe(Unstructured(0.6), Recover("distill", 5, 3))
    found = compress.prepare(PrepareRequest(_residual(), recipe, tmp_path, IMAGES))
    weights = [p for p in _net(found).parameters() if p.dim() > 1]
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros >= 0.59 * sum(w.numel() for w in weights)
    assert found.training.macs_after == found.training.macs_before


@pytest.mark.usefixtures("here")
def test_a_model_without_a_batch_axis_is_distilled_sample_by_sample(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    data = {
        "sample": generator.random((80, 1, 16), np.float32),
        "state": generator.random((80, 2, 1, 8), np.float32),
    }
    model = _model("stateful", "sample=1x16", "state=2x1x8")
    recipe = _recipe(Structured(0.5, round_to=4), Recover("distill", 5, 2))
    found = compress.prepare(PrepareRequest(model, recipe, tmp_path, data))
    assert not found.model.batched
    assert [tuple(o.shape) for o in found.model.outputs] == [(1, 1), (2, 1, 8)]


@pytest.mark.usefixtures("here")
def test_time_that_is_up_keeps_the_best_so_far_and_says_so(tmp_path: Path) -> None:
    recipe = _recipe(Structured(0.5, round_to=4), Recover("distill", 1e-4, 500))
    found = compress.prepare(PrepareRequest(_residual(), recipe, tmp_path, IMAGES))
    assert found.training.stopped == "minutes"
    assert any("time was up" in note for note in found.training.notes)


@pytest.mark.usefixtures("here")
def test_training_that_diverges_keeps_the_state_before_it(tmp_path: Path) -> None:
    recipe = _recipe(None, Recover("distill", 5, 3, learning_rate=1e30))
    found = compress.prepare(PrepareRequest(_residual(), recipe, tmp_path, IMAGES))
    assert found.training.best_epoch == 0
    image = torch.rand(2, 3, 8, 8)
    want = prunable_nets.residual().eval()(image)
    torch.testing.assert_close(_net(found)(image)[0], want, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("here")
def test_labels_win_a_pruned_net_back(tmp_path: Path) -> None:
    with torch.no_grad():
        labels = prunable_nets.residual().eval()(torch.from_numpy(IMAGES["image"])).argmax(1)
    train = TrainData(IMAGES, labels.numpy())
    recipe = _recipe(Structured(0.5, round_to=4), Recover("fine-tune", 5, 8))
    found = compress.prepare(PrepareRequest(_residual(), recipe, tmp_path, None, train))
    assert found.training.quality == "accuracy"
    assert found.training.points[-1].loss < found.training.points[0].loss


@pytest.mark.parametrize(
    ("recipe", "data", "message"),
    [
        (_recipe(None, Recover()), {"image": IMAGES["image"][:20]}, "at least 64 samples; 20 are"),
        (_recipe(None, Recover()), None, "none are given"),
        (_recipe(None, Recover("qat")), IMAGES, "none are given"),
        (_recipe(Structured(0.5, "sensitivity")), None, "no calibration data"),
        (_recipe(None, Recover()), {"photo": IMAGES["image"]}, "no input 'image'"),
        (_recipe(None, Recover()), {"image": IMAGES["image"][:, :1]}, r"is \[1, 8, 8\] per"),
    ],
)
@pytest.mark.usefixtures("here")
def test_data_that_do_not_do_are_refused(
    tmp_path: Path, recipe: Recipe, data: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compress.prepare(PrepareRequest(_residual(), recipe, tmp_path, data))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.full(256, 5), "the model has 5 classes"),
        (np.zeros(100, np.int64), "100 training labels for 256 samples"),
        (np.zeros((256, 3), np.float32), "the first output is"),
        (np.full((256, 5), np.nan, np.float32), "NaN"),
        (tuple(np.zeros(3, np.int64) for _ in range(256)), "sequences of ids"),
    ],
)
@pytest.mark.usefixtures("here")
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, targets: Any, message: str) -> None:
    train = TrainData(IMAGES, targets)
    recipe = _recipe(None, Recover("fine-tune"))
    with pytest.raises(DataError, match=message):
        compress.prepare(PrepareRequest(_residual(), recipe, tmp_path, None, train))


@pytest.mark.usefixtures("here")
def test_what_cannot_be_prepared_is_refused(tmp_path: Path) -> None:
    model = _residual()
    pruned = _recipe(Structured(0.5, round_to=4))
    with pytest.raises(UsageError, match="nothing to do"):
        compress.prepare(PrepareRequest(model, _recipe(), tmp_path))
    for other in (replace(model, framework="tflite"), replace(model, quantized=True)):
        with pytest.raises(UnsupportedModelError):
            compress.prepare(PrepareRequest(other, pruned, tmp_path))
    once = compress.prepare(PrepareRequest(model, pruned, tmp_path))
    with pytest.raises(UnsupportedModelError) as refusal:
        compress.prepare(PrepareRequest(once.model, pruned, tmp_path / "twice"))
    assert "exported graph" in refusal.value.reasons[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are using the legacy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
def test_an_onnx_source_is_brought_over_in_a_worker_process(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        prunable_nets.residual().eval(), (torch.rand(1, 3, 8, 8),), str(path), dynamo=False,
        input_names=["image"], output_names=["scores"], opset_version=17,
        dynamic_axes={"image": {0: "n"}, "scores": {0: "n"}},
    )  # fmt: skip
    model = open_source(str(path))
    recipe = _recipe(Structured(0.5, round_to=4), Recover("distill", 5, 2))
    said: list[str] = []
    found = compress.prepare(
        PrepareRequest(model, recipe, tmp_path / "out", IMAGES), lambda _, text: said.append(text)
    )
    assert found.training.macs_after < 0.5 * found.training.macs_before
    assert found.model.outputs[0].name == "scores"
    assert said
