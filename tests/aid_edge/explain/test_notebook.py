from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aid_edge.errors import DataError, PublishError, UsageError
from aid_edge.explain import explain

SAMPLE = np.zeros((1, 8), np.float32)
SAMPLE[0, 2], SAMPLE[0, 5] = 1.0, 0.9
BACKGROUND = {"x": np.random.default_rng(3).normal(size=(40, 8)).astype(np.float32)}


def save(path: Path, first: float) -> Path:
    """A linear model: class 0 is value 2 times ``first``, class 1 is value 5."""
    weights = np.zeros((8, 2), np.float32)
    weights[2, 0], weights[5, 1] = first, 1.0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def test_an_artifact_is_explained_against_what_it_was_made_from(tmp_path: Path) -> None:
    source, artifact = save(tmp_path / "source.onnx", 1.0), save(tmp_path / "int8.onnx", 0.8)
    found = explain(
        artifact, SAMPLE, against=source, background=BACKGROUND, labels=("cat", "<dog>")
    )
    assert found.models == ("source", "candidate")
    assert found.answers == ("cat", "<dog>")
    assert "source prefers cat to <dog>" in found.summary
    assert "a close call that noise tipped" in found.summary
    shown = found._repr_html_()
    assert "&lt;dog&gt;" in shown
    assert "<dog>" not in shown
    assert "<script" not in shown
    assert "value 2" in shown


def test_a_function_is_explained_alone() -> None:
    def predict(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
        x = inputs["input"]
        left = x[:, 0, :, :4].mean(axis=(1, 2))
        return [np.stack([left, x[:, 0, :, 4:].mean(axis=(1, 2))], axis=1)]

    image = np.zeros((1, 1, 8, 8), np.float32)
    image[..., :3] = 1.0
    found = explain(predict, image)
    assert found.models == ("model",)
    assert found.summary.startswith("For class 0 rather than class 1 speaks most: ")
    assert "left" in found.summary
    assert found._repr_html_().count("data:image/png") == 2


def test_one_sample_may_come_without_its_batch_axis(tmp_path: Path) -> None:
    source = save(tmp_path / "source.onnx", 1.0)
    assert explain(source, {"x": SAMPLE[0]}, background=BACKGROUND).evidence.margins["model"] > 0
    with pytest.raises(DataError, match=r"has shape \[2, 8\]; expected one sample"):
        explain(source, {"x": np.zeros((2, 8), np.float32)}, background=BACKGROUND)


def test_outputs_that_are_no_classes_have_no_answers() -> None:
    found = explain(lambda inputs: [inputs["input"].sum(axis=1, keepdims=True)], SAMPLE)
    assert found.answers == ()
    assert found.summary.startswith("The output of model rests most on: ")


def test_what_cannot_be_explained_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is no release folder"):
        explain(tmp_path / "empty", SAMPLE)
    with pytest.raises(DataError, match="nothing is known about hiding parts"):
        explain(lambda inputs: [inputs["input"]], np.zeros((1, 2, 2, 2, 2), np.float32))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "release.json").write_bytes(b"{")
    with pytest.raises(PublishError, match=r"release\.json"):
        explain(tmp_path / "broken", SAMPLE)
