"""ONNX files as the world writes them, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from aid_edge.errors import SourceError
from aid_edge.model import is_batched
from aid_edge.sources import onnx_graph, onnx_source
from aid_edge.sources.inputs import parse_input
from aid_edge.sources.inspection import SourceRequest
from aid_edge.sources.opening import open_source
from device_agent.contract.tensors import TensorInfo
from tests.support.source_files import listed_weights, ocr_like, save, stateful


def request(path: Path, *inputs: str) -> SourceRequest:
    return SourceRequest(str(path), None, tuple(map(parse_input, inputs)))


def outputs_of(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found: list[np.ndarray] = session.run(None, feeds)
    return found


# --- one form --------------------------------------------------------------------------------


def test_constant_nodes_become_weights_and_the_answers_stay(tmp_path: Path) -> None:
    wanted = request(ocr_like(tmp_path / "m.onnx"), "x=?x3x16x24")
    found = onnx_source.inspect(wanted)
    assert found.inputs == (TensorInfo("x", "FP32", (-1, 3, 16, 24)),)
    assert found.outputs == (TensorInfo("y", "FP32", (-1, 12, 7)),)
    assert found.opset == 11
    assert "converted from opset 11 to 13" in found.notes
    assert "Constant" not in {use.type for use in found.uses}
    model = onnx_source.load(wanted)
    assert onnx_graph.opset_of(model) == 13
    assert {i.name for i in model.graph.initializer} >= {"w1", "b1", "w2", "w3", "w4", "b4"}
    assert not [n for n in model.graph.node if n.op_type == "Constant"]
    feeds = {"x": np.random.default_rng(0).random((2, 3, 16, 24), np.float32)}
    raw = next(iter(onnx_source.run(wanted, feeds, [slice(0, 2)])))
    np.testing.assert_allclose(outputs_of(model, feeds)[0], raw[0], atol=1e-5)


def test_weights_among_the_inputs_and_fixed_sizes_made_others(tmp_path: Path) -> None:
    path = listed_weights(tmp_path / "m.onnx")
    as_it_is = onnx_source.inspect(request(path))
    assert as_it_is.inputs == (TensorInfo("x", "FP32", (4, 3, 8, 8)),)
    opened = onnx_source.inspect(request(path, "x=?x3x10x6"))
    assert opened.inputs == (TensorInfo("x", "FP32", (-1, 3, 10, 6)),)
    assert opened.outputs == (TensorInfo("y", "FP32", (-1, 6, 10, 6)),)
    assert any("the file fixes [4, 3, 8, 8]" in note for note in opened.notes)
    model = onnx_source.load(request(path, "x=?x3x10x6"))
    assert [i.name for i in model.graph.input] == ["x"]
    assert outputs_of(model, {"x": np.ones((3, 3, 10, 6), np.float32)})[0].shape == (3, 6, 10, 6)
    with pytest.raises(SourceError, match=r"fails on the sizes x \[1, 4, 8, 8\]"):
        onnx_source.inspect(request(path, "x=1x4x8x8"))


def test_a_state_beside_a_sample_has_no_batch(tmp_path: Path) -> None:
    path = stateful(tmp_path / "m.onnx")
    model = open_source(str(path))
    assert not model.batched
    assert not model.has_dynamic_batch
    draw = np.random.default_rng(0)
    arrays = {
        "x": draw.random((3, 1, 1, 6), np.float32), "state": draw.random((3, 2, 1, 5), np.float32)
    }  # fmt: skip
    feeds = list(model.feeds(arrays, batch=2))
    assert [f["state"].shape for f in feeds] == [(2, 1, 5)] * 3
    whole = list(onnx_source.run(request(path), arrays, [0, 1, 2]))
    one = outputs_of(onnx_source.load(request(path)), feeds[1])
    np.testing.assert_allclose(whole[1][1], one[1], atol=1e-6)


def test_batches_are_told_from_shapes() -> None:
    def info(*shape: int) -> TensorInfo:
        return TensorInfo("t", "FP32", shape)

    assert is_batched([info(-1, 3)], [info(-1, 5)])
    assert is_batched([info(4, 3), info(4)], [info(4, 1)])
    assert not is_batched([info(1, 64), info(2, 1, 128)], [info(1, 1)])
    assert not is_batched([info(1, 64), info()], [info(1, 1)])
    assert not is_batched([info(1, 3, 8, 8)], [info(100, 4)])


def test_several_inputs_of_integers(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("Mul", ["e", "weight"], ["y"]),
            helper.make_node("Cast", ["ids"], ["z"], to=TensorProto.FLOAT),
        ],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 4]),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, ["n", 4, 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 3]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4]),
        ],
        [helper.make_tensor("table", TensorProto.FLOAT, [9, 3], list(range(27)))],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    found = onnx_source.inspect(request(tmp_path / "m.onnx", "ids=1x4"))
    assert found.inputs[0] == TensorInfo("ids", "INT64", (1, 4))
    assert found.inputs[1] == TensorInfo("weight", "FP32", (-1, 4, 1))
    with pytest.raises(SourceError, match="declared FP32, the file has INT64"):
        onnx_source.inspect(request(tmp_path / "m.onnx", "ids=1x4:FP32"))
    with pytest.raises(SourceError, match="has no input 'id'") as caught:
        onnx_source.inspect(request(tmp_path / "m.onnx", "id=1x4"))
    assert "ids, weight" in caught.value.hint


# --- refusals --------------------------------------------------------------------------------


def relu(path: Path, **more: object) -> Path:
    nodes = more.pop("nodes", [helper.make_node("Relu", ["x"], ["y"])])
    return save(path, nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, **more)  # type: ignore[arg-type]


def test_opsets_that_are_too_old_or_too_new(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="opset 8; 9 to"):
        onnx_source.load(request(relu(tmp_path / "old.onnx", opset=8)))
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(SourceError, match=f"opset {newest + 1}; onnx .* knows up to {newest}"):
        onnx_source.load(request(relu(tmp_path / "new.onnx", opset=newest + 1)))


def test_operators_of_a_foreign_domain_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mine", ["x"], ["y"], domain="acme.ops")]
    with pytest.raises(SourceError, match=r"foreign domain.*acme.ops:Mine"):
        onnx_source.load(request(relu(tmp_path / "m.onnx", nodes=nodes, domains=["acme.ops"])))


def test_outputs_that_are_no_tensors(tmp_path: Path) -> None:
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])]
    path = relu(tmp_path / "m.onnx", nodes=nodes)
    model = onnx.load(str(path))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n", 4])
    )
    onnx.save(model, str(path))
    with pytest.raises(SourceError, match="y is a sequence, not a tensor"):
        onnx_source.inspect(request(path))


def external(path: Path, location: str) -> Path:
    """A model whose weight lies in another file."""
    weight = np.ones((4, 64), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    save(path, nodes, {"x": ["n", 4]}, {"y": ["n", 64]}, stored={"w": weight})
    model = onnx.load(str(path))
    onnx.save_model(
        model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    onnx.save(model, str(path))
    return path


def test_weights_in_another_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder / "m.onnx", "w.bin")
    first = onnx_source.inspect(request(path))
    assert first.parameters == 256
    data = folder / "w.bin"
    data.write_bytes(bytes(reversed(data.read_bytes())))
    assert onnx_source.inspect(request(path)).digest != first.digest
    (tmp_path / "w.bin").write_bytes(data.read_bytes())
    data.unlink()
    with pytest.raises(SourceError, match=r"w\.bin, which is missing"):
        onnx_source.load(request(path))
    data.symlink_to(tmp_path / "w.bin")
    with pytest.raises(SourceError, match="outside its folder"):
        onnx_source.load(request(path))
    for location in ("../w.bin", str(tmp_path / "w.bin")):
        data.unlink(missing_ok=True)
        with pytest.raises(SourceError, match="outside its folder"):
            onnx_source.load(request(external(folder / "m.onnx", location)))
