"""Opening source models: what is found out, and what is refused with which words."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper

from aid_edge import isolate
from aid_edge.errors import MissingDependencyError, SourceError
from aid_edge.model import CARD_NAME
from aid_edge.sources import opening
from aid_edge.sources.opening import open_source, recognize
from device_agent.contract.tensors import TensorInfo
from tests.support import tiny_nets

FACTORY = "tests.support.tiny_nets:tiny"
IMAGE = (TensorInfo("image", "FP32", (-1, 3, 8, 8)),)

CARD = """\
schema = 1
name = "tiny"
version = "1.2.0"
task = "classification"
labels = "labels.txt"
[[inputs]]
name = "image"
shape = [-1, 3, 8, 8]
[[outputs]]
name = "scores"
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tiny_nets.tiny().state_dict(), path)
    return path


def tiny_onnx(path: Path, *, batch: int | str = "n", opset: int = 18) -> Path:
    """A linear layer [n, 4] to [n, 2] as an ONNX file."""
    matrix = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], list(range(8)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="multiply")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
        [matrix],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


# --- torch -----------------------------------------------------------------------------------


def test_a_torch_model_with_card_and_weights(weights: Path) -> None:
    (weights.parent / CARD_NAME).write_text(CARD)
    (weights.parent / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    model = open_source(FACTORY, weights=weights)
    assert model.framework == "torch"
    assert model.inputs == IMAGE
    assert model.outputs == (TensorInfo("scores", "FP32", (-1, 5)),)
    assert model.operators["conv2d"] == 1
    assert model.operators["depthwise_conv2d"] == 1
    assert model.parameters == sum(p.numel() for p in tiny_nets.tiny().parameters())
    assert (model.name, model.version) == ("tiny", "1.2.0")
    assert model.card is not None
    assert model.card.labels == ("a", "b", "c", "d", "e")
    assert model.has_dynamic_batch


def test_a_factory_in_a_file_and_digests_that_follow_the_weights(
    tmp_path: Path, weights: Path
) -> None:
    code = tmp_path / "net.py"
    code.write_text(Path(tiny_nets.__file__).read_text())
    first = open_source(f"{code}:tiny", weights=weights, inputs=IMAGE)
    state = tiny_nets.tiny().state_dict()
    state["last.bias"][0] += 1
    other = tmp_path / "other.pth"
    torch.save(state, other)
    second = open_source(f"{code}:tiny", weights=other, inputs=IMAGE)
    again = open_source(f"{code}:tiny", weights=weights, inputs=IMAGE)
    assert first.digest == again.digest
    assert first.digest != second.digest


def test_a_file_may_be_called_as_a_module_of_pythons(tmp_path: Path, weights: Path) -> None:
    for name in ("platform.py", "tiny-net.v2.py"):
        code = tmp_path / name
        code.write_text("from tests.support.tiny_nets import tiny\n")
        model = open_source(f"{code}:tiny", weights=weights, inputs=IMAGE)
        assert model.parameters > 0


def test_the_input_that_is_there_twice_is_named() -> None:
    one, two = (TensorInfo(name, "FP32", (-1, 4)) for name in ("left", "right"))
    with pytest.raises(SourceError, match="two inputs are called 'right'"):
        open_source(FACTORY, inputs=[one, two, two])


def test_two_inputs_and_named_outputs() -> None:
    inputs = (*IMAGE, TensorInfo("words", "INT64", (-1, 6)))
    model = open_source("tests.support.tiny_nets:two_in_two_out", inputs=inputs)
    assert [o.name for o in model.outputs] == ["sum", "meaning"]
    assert model.outputs[1].shape == (-1, 4)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nope", "has no function or class 'nope'"),
        ("raises", "raised RuntimeError: no weights today"),
        ("no_module", "gave dict, not a torch.nn.Module"),
        ("depends_on_values", "cannot follow the model"),
        ("two_in_two_out", "the model fails on inputs"),
    ],
)
def test_factories_that_do_not_do(factory: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(f"tests.support.tiny_nets:{factory}", inputs=IMAGE)


def test_a_torch_model_must_say_what_it_takes() -> None:
    with pytest.raises(SourceError, match="does not say what it takes") as caught:
        open_source(FACTORY)
    assert "[[inputs]]" in caught.value.hint


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = tiny_nets.tiny().state_dict()
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["last.weight"] = torch.zeros(7, 16)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(SourceError, match="do not fit the model") as caught:
        open_source(FACTORY, weights=path, inputs=IMAGE)
    assert "missing in the file: norm.weight" in caught.value.cause
    assert "unknown to the model: extra.weight" in caught.value.cause
    assert "last.weight is [7, 16] in the file, [5, 16] in the model" in caught.value.cause


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_pickled_code_in_weights_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "code-ran"
    torch.save({"last.weight": Evil(trace)}, path)
    with pytest.raises(SourceError, match="could run code when loaded") as caught:
        open_source(FACTORY, weights=path, inputs=IMAGE)
    assert "safetensors" in caught.value.hint
    path.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(SourceError):
        open_source(FACTORY, weights=path, inputs=IMAGE)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_weights(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(tiny_nets.tiny().state_dict(), path)
    else:
        safetensors.torch.save_file(tiny_nets.tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match="not a whole weights file"):
        open_source(FACTORY, weights=path, inputs=IMAGE)


# --- onnx ------------------------------------------------------------------------------------


def test_an_onnx_model(tmp_path: Path) -> None:
    model = open_source(str(tiny_onnx(tmp_path / "m.onnx")))
    assert model.framework == "onnx"
    assert model.inputs == (TensorInfo("x", "FP32", (-1, 4)),)
    assert model.outputs == (TensorInfo("y", "FP32", (-1, 2)),)
    assert model.operators == {"MatMul": 1}
    assert model.uses[0].first_node == "multiply"
    assert (model.parameters, model.opset) == (8, 18)


def test_sizes_of_an_onnx_model_can_be_fixed(tmp_path: Path) -> None:
    path = str(tiny_onnx(tmp_path / "m.onnx"))
    model = open_source(path, inputs=[TensorInfo("x", "FP32", (3, 4))])
    assert model.inputs[0].shape == (3, 4)
    assert model.outputs[0].shape == (3, 2)
    with pytest.raises(SourceError, match="cannot take the declared sizes"):
        open_source(path, inputs=[TensorInfo("x", "FP32", (3, 5))])
    with pytest.raises(SourceError, match="has no input 'z'"):
        open_source(path, inputs=[TensorInfo("z", "FP32", (3, 4))])


def test_broken_onnx_files(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx")
    whole = path.read_bytes()
    for data, message in [
        (whole[: len(whole) // 2], "cut short|not a valid"),
        (b"this is a text file, not a model", "not an ONNX model|not a valid"),
        (b"", "is empty"),
    ]:
        path.write_bytes(data)
        with pytest.raises(SourceError, match=message):
            open_source(str(path))


# --- SavedModel ------------------------------------------------------------------------------


def test_a_saved_model_without_tensorflow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = opening.importlib.util.find_spec
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(SourceError, match=r"is a folder without saved_model.pb"):
        open_source(str(folder))
    (folder / "saved_model.pb").write_bytes(b"graph")
    monkeypatch.setattr(
        opening.importlib.util, "find_spec", lambda n: None if n == "tensorflow" else real(n)
    )
    with pytest.raises(MissingDependencyError, match="needs tensorflow") as caught:
        open_source(str(folder))
    assert caught.value.hint == "pip install 'aid-edge[tensorflow]'"


# --- the door --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.onnx", "No such file"),
        ("missing", "no such file"),
        ("net.py", "which factory"),
        ("weights.pth", "holds weights"),
        ("photo.jpg", "of no kind that is read"),
    ],
)
def test_what_is_no_model(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_bytes(b"something")
    with pytest.raises(SourceError, match=message):
        recognize(str(path))


def test_weights_go_with_torch_only(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(SourceError, match="weights go with a PyTorch model"):
        open_source(str(tiny_onnx(tmp_path / "m.onnx")), weights=weights)


def test_a_missing_framework_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        open_source(FACTORY, inputs=IMAGE)
    assert caught.value.exit_code == 6
    assert "aid-edge[convert]" in caught.value.hint


def test_the_commands_process_loads_no_framework(weights: Path) -> None:
    code = (
        "import sys; from aid_edge.sources.opening import open_source;"
        "from device_agent.contract.tensors import TensorInfo;"
        f"open_source({FACTORY!r}, inputs=[TensorInfo('image', 'FP32', (1, 3, 8, 8))]);"
        "print(*({'torch', 'onnx', 'keras', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_source_model_can_be_pickled(weights: Path) -> None:
    model = open_source(FACTORY, weights=weights, inputs=IMAGE)
    assert pickle.loads(pickle.dumps(model)) == model


def test_running_the_source_gives_the_modules_own_answers(weights: Path) -> None:
    model = open_source(FACTORY, weights=weights, inputs=IMAGE)
    images = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    found = isolate.run(run_all, model, images).value
    with torch.inference_mode():
        wanted = tiny_nets.tiny().eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def run_all(model: opening.SourceModel, images: np.ndarray) -> np.ndarray:
    """Run in a worker process: two batches, the last one smaller."""
    parts = opening.run_in_worker(model, {"image": images}, [slice(0, 3), slice(3, 6)])
    return np.concatenate([part[0] for part in parts])
