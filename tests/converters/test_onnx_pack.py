"""What is taken out of a quantized model, and that it computes the same without."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from converters.onnx_pack import dequantize_biases, pack

PHOTO = np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32)


class _Photos(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter(PHOTO)

    def get_next(self) -> dict[str, np.ndarray] | None:
        photo = next(self._left, None)
        return None if photo is None else {"image": photo[None]}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Return a net of convolutions and a product as ONNX Runtime's own quantizer writes it."""
    folder = tmp_path_factory.mktemp("qdq")
    rng = np.random.default_rng(1)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 1, 1), "b2": (8,), "w3": (8, 4),
              "b3": (4,)}  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], "first", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "bent"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "second", group=1, dilations=[1, 1]),
        node("Relu", ["c2"], ["r2"], "bent_again"),
        node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
        node("Flatten", ["pooled"], ["flat"], "flatten"),
        node("Gemm", ["flat", "w3", "b3"], ["scores"], "head"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 12, 12])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    net = helper.make_model(
        helper.make_graph(nodes, "net", [image], [scores], weights),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip
    onnx.save(net, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx", folder / "int8.onnx", _Photos(),
        quant_format=QuantFormat.QDQ, per_channel=True,
    )  # fmt: skip
    return onnx.load(folder / "int8.onnx")


def _run(
    model: onnx.ModelProto, to: Path, *, exact: bool = False
) -> tuple[list[np.ndarray], Counter[str]]:
    options = ort.SessionOptions()
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.optimized_model_filepath = str(to)
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    outputs = [session.run(None, {"image": photo[None]})[0] for photo in PHOTO]
    return outputs, Counter(n.op_type for n in onnx.load(to).graph.node)


@pytest.mark.parametrize("exact", [False, True])
def test_less_is_stored_and_the_same_computed(
    quantized: onnx.ModelProto, tmp_path: Path, exact: bool
) -> None:
    packed = onnx.ModelProto.FromString(quantized.SerializeToString())
    pack(packed)
    before, kernels = _run(quantized, tmp_path / "before.onnx", exact=exact)
    after, same = _run(packed, tmp_path / "after.onnx", exact=exact)
    np.testing.assert_array_equal(after, before)
    assert same == kernels
    assert exact or (kernels["QLinearConv"], kernels["QGemm"]) == (2, 1)
    assert packed.ByteSize() < 0.6 * quantized.ByteSize()
    onnx.checker.check_model(packed)


def test_layers_keep_their_names(quantized: onnx.ModelProto) -> None:
    packed = onnx.ModelProto.FromString(quantized.SerializeToString())
    pack(packed)
    layers = [{n.name: n.op_type for n in m.graph.node if n.name} for m in (packed, quantized)]
    between = {"QuantizeLinear", "DequantizeLinear"}
    assert layers[0] == {name: op for name, op in layers[1].items() if op not in between}
    for side in ("input", "output"):
        names = [[v.name for v in getattr(m.graph, side)] for m in (packed, quantized)]
        assert names[0] == names[1]


def _conv(weights: bool, codes: np.ndarray, **attributes: object) -> onnx.ModelProto:
    """Return a convolution with a quantized bias; its weights quantized or not."""
    tensors: dict[str, np.ndarray] = {
        "w_codes": np.ones((2, 1, 1, 1), np.int8), "w_scale": np.float32([0.5, 0.25]),
        "w_float": np.ones((2, 1, 1, 1), np.float32),
        "b_codes": codes, "b_scale": np.float32([0.5, 0.25]),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["b_codes", "b_scale"], ["b"], axis=0),
        helper.make_node("DequantizeLinear", ["w_codes", "w_scale"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w" if weights else "w_float", "b"], ["y"], **attributes),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, None, None])
    constants = [numpy_helper.from_array(a, n) for n, a in tensors.items()]
    return helper.make_model(
        helper.make_graph(nodes, "conv", [x], [y], constants),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip


def test_a_bias_is_stored_as_what_its_integers_stand_for() -> None:
    model = _conv(True, np.array([3, -4], np.int32))
    assert dequantize_biases(model) == 1
    (bias,) = [t for t in model.graph.initializer if t.name == "b"]
    np.testing.assert_array_equal(numpy_helper.to_array(bias), np.float32([1.5, -1.0]))
    onnx.checker.check_model(model)


@pytest.mark.parametrize(
    ("weights", "codes"), [(False, np.array([3, -4], np.int32)), (True, np.array([3, -4], np.int8))]
)
def test_other_biases_stay(weights: bool, codes: np.ndarray) -> None:
    assert dequantize_biases(_conv(weights, codes)) == 0


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"strides": [1, 1], "dilations": [1, 1], "group": 1, "pads": [0, 0, 0, 0]}, set()),
        ({"strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 0, 0]},
         {"strides", "dilations", "pads"}),
        ({"auto_pad": "NOTSET"}, set()),
        ({"auto_pad": "SAME_UPPER", "kernel_shape": [1, 1]}, {"auto_pad", "kernel_shape"}),
    ],
)  # fmt: skip
def test_only_what_holds_anyway_is_left_out(given: dict[str, object], left: set[str]) -> None:
    model = _conv(True, np.array([3, -4], np.int32), **given)
    pack(model)
    (conv,) = [n for n in model.graph.node if n.op_type == "Conv"]
    assert {a.name for a in conv.attribute} == left
    onnx.checker.check_model(model)


def test_inner_graphs_keep_the_names_they_read() -> None:
    model = _conv(True, np.array([3, -4], np.int32))
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w_float"], ["z"])], "then", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 1, 1, 1])],
    )  # fmt: skip
    condition = numpy_helper.from_array(np.array(True), "always")
    model.graph.initializer.append(condition)
    model.graph.node.append(
        helper.make_node("If", ["always"], ["extra"], then_branch=inner, else_branch=inner)
    )
    model.graph.output.append(
        helper.make_tensor_value_info("extra", TensorProto.FLOAT, [2, 1, 1, 1])
    )
    pack(model)
    assert "w_float" in {t.name for t in model.graph.initializer}
    onnx.checker.check_model(model)
