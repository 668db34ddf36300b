"""Static int8 for ONNX Runtime: the traps are provoked and avoided or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from aid_edge import isolate
from aid_edge.errors import ConversionError, DataError
from aid_edge.recipe import Recipe, StaticInt8
from aid_edge.runtimes import onnx_runtime
from aid_edge.samples import Samples, write
from converters import onnx_quantize
from converters.onnx_calibrate import extremes, histograms
from converters.onnx_feeds import Feeds
from converters.onnx_graph import Graph, name_nodes, prepare, resolved
from converters.onnx_planned import check_planned
from device_agent.contract.profile import HardwareProfile
from tests.support import onnx_nets

BASE = StaticInt8(reduce_range=True)


@pytest.fixture
def images() -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(3).random((24, 3, 16, 16), np.float32)}


def _run(path: Path, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return onnx_runtime.open_session(path, 1, True).run(inputs)


def _quantize(
    made: onnx.ModelProto, recipe: StaticInt8, data: Any, profile: HardwareProfile, folder: Path
) -> tuple[Path, Path, tuple[str, ...]]:
    folder.mkdir(exist_ok=True)
    floating = onnx_nets.save(made, folder / "float.onnx")
    out = folder / "model.onnx"
    notes = onnx_quantize.quantize(floating, Recipe(recipe), data, profile, out)
    return floating, out, notes


def _scales(path: Path) -> dict[str, float]:
    """Return the scale of each activation, by its name."""
    graph = onnx.load(str(path)).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return {
        node.input[0]: float(tensors[node.input[1]].reshape(-1)[0])
        for node in graph.node if node.op_type == "QuantizeLinear"
    }  # fmt: skip


@pytest.mark.parametrize("method", ["min-max", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("corrected", [False, True])
def test_every_method_fuses_to_integers_and_is_close(
    method: Any, corrected: bool, images: dict[str, NDArray[Any]], x86: HardwareProfile,
    tmp_path: Path,
) -> None:  # fmt: skip
    recipe = replace(BASE, method=method, bias_correction=corrected)
    floating, out, _ = _quantize(onnx_nets.depthwise(), recipe, images, x86, tmp_path / "q")
    plan = onnx_runtime.place(out, tmp_path)
    assert (plan.integer, plan.floating) == (4, 0)
    want, got = _run(floating, images)["y"], _run(out, images)["y"]
    cosine = (want * got).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(got, axis=1)
    assert cosine.min() > 0.99


def test_entropy_is_not_min_max_by_another_name(
    images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    """ONNX Runtime's own entropy calibration gives the extremes with its defaults."""
    images["x"][0, 0, 0, 0] = 6.0
    made = onnx_nets.depthwise()
    found = {}
    for method in ("min-max", "percentile", "entropy", "mse"):
        recipe = replace(BASE, method=method)  # type: ignore[arg-type]
        found[method] = _scales(_quantize(made, recipe, images, x86, tmp_path / method)[1])["x"]
    assert found["min-max"] == pytest.approx(6 / 255)
    for method in ("percentile", "entropy"):
        assert found[method] < 0.9 * found["min-max"]
    # To clip a single value so far away costs more squared error than coarse steps do.
    assert 0.9 * found["min-max"] < found["mse"] < found["min-max"]


def test_bias_correction_takes_the_mean_error_away(
    images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    made = onnx_nets.depthwise(outlier=4.0)
    errors = {}
    for corrected in (False, True):
        recipe = replace(BASE, bias_correction=corrected)
        floating, out, notes = _quantize(made, recipe, images, x86, tmp_path / str(corrected))
        difference = _run(out, images)["y"] - _run(floating, images)["y"]
        errors[corrected] = np.abs(difference.mean(axis=0)).max()
        assert any("biases of 4 layers corrected" in n for n in notes) is corrected
    assert errors[True] < 0.3 * errors[False]


def test_operators_that_are_kept_in_float_are(
    images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    recipe = replace(BASE, keep_float=("middle", "y"))
    _, out, _ = _quantize(onnx_nets.depthwise(), recipe, images, x86, tmp_path / "q")
    graph = Graph(onnx.load(str(out)))
    for name in ("middle", "last"):
        weights = graph.nodes[name].input[1]
        assert graph.constants[weights].data_type == TensorProto.FLOAT
    assert graph.nodes["first"].input[1] not in graph.constants
    # ONNX Runtime would quantize float weights between two conversions by itself.
    plan = onnx_runtime.plan(out, tmp_path)
    assert (plan.integer, plan.floating) == (2, 2)
    recipe = replace(BASE, keep_float=("nowhere",))
    with pytest.raises(ConversionError, match="no operator or tensor 'nowhere'"):
        _quantize(onnx_nets.depthwise(), recipe, images, x86, tmp_path / "r")


def test_a_kept_node_that_was_fused_away_is_found_by_its_output(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Mul", ["c", "two"], ["y"], "twice"),
    ]
    made = onnx_nets.model(
        nodes, {"x": (1, 3, 8, 8)}, {"y": (1, 4, 8, 8)},
        {"w": onnx_nets.draws(4, 3, 1, 1), "two": np.full((4, 1, 1), 2.0, np.float32)},
    )  # fmt: skip
    ready = prepare(onnx_nets.save(made, tmp_path / "m.onnx"), tmp_path)
    (convolution,) = [n.name for n in ready.graph.node if n.op_type == "Conv"]
    for name in ("conv", "twice", "c", "y"):
        assert resolved([name], made, ready)[0] == convolution


def test_signed_activations_are_refused_on_x86_and_fused_on_arm(
    images: dict[str, NDArray[Any]], x86: HardwareProfile, arm: HardwareProfile, tmp_path: Path
) -> None:
    recipe = replace(BASE, activations="int8")
    made = onnx_nets.depthwise()
    with pytest.raises(ConversionError, match=r"not really be int8.* are signed"):
        _quantize(made, recipe, images, x86, tmp_path / "x86")
    _, out, notes = _quantize(made, recipe, images, arm, tmp_path / "arm")
    assert onnx_runtime.place(out, tmp_path).integer == 4
    assert notes == ()


@pytest.mark.slow
def test_nncf_defaults_are_not_fused_and_ours_are(
    images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    """NNCF gives depthwise convolutions one activation scale per channel."""
    import nncf

    made = onnx_nets.depthwise()
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    data = [{"x": images["x"][i : i + 1]} for i in range(8)]
    by_default = nncf.quantize(onnx.ModelProto.FromString(made.SerializeToString()),
                               nncf.Dataset(data), subset_size=8)  # fmt: skip
    trap = onnx_nets.save(by_default, tmp_path / "trap.onnx")
    with pytest.raises(ConversionError, match="not really be int8") as caught:
        check_planned(trap, 0, x86)
    assert "one scale per channel" in caught.value.cause
    recipe = replace(BASE, method="nncf", samples=8)
    _, out, _ = _quantize(made, recipe, images, x86, tmp_path / "ours")
    plan = onnx_runtime.plan(out, tmp_path)
    # The last layer's output is not quantized, which leaves it in float.
    assert (plan.integer, plan.floating) == (3, 1)


def test_no_trace_of_the_source_is_left(
    images: dict[str, NDArray[Any]], x86: HardwareProfile, tmp_path: Path
) -> None:
    made = onnx_nets.depthwise()
    made.doc_string = "/home/somebody/secret.py"
    for node in made.graph.node:
        node.doc_string = "/home/somebody/secret.py, line 3"
        entry = node.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.stack_trace", "/home/somebody/secret.py"
    _, out, _ = _quantize(made, BASE, images, x86, tmp_path / "q")
    content = out.read_bytes()
    for trace in (b"secret", b"/home", b"stack_trace", str(tmp_path).encode()):
        assert trace not in content


def test_scores_beside_boxes_keep_their_codes(x86: HardwareProfile, tmp_path: Path) -> None:
    """Boxes in pixels and scores from 0 to 1 in one tensor: scores would all round to zero."""
    nodes = [
        helper.make_node("Conv", ["x", "wb"], ["b"], "boxes"),
        helper.make_node("Mul", ["b", "stride"], ["pixels"], "to_pixels"),
        helper.make_node("Conv", ["x", "ws"], ["s"], "scores"),
        helper.make_node("Sigmoid", ["s"], ["p"], "sigmoid"),
        helper.make_node("Concat", ["pixels", "p"], ["y"], "join", axis=1),
    ]
    made = onnx_nets.model(
        nodes, {"x": (1, 3, 8, 8)}, {"y": (1, 8, 8, 8)},
        {"wb": onnx_nets.draws(4, 3, 1, 1), "stride": np.array([640.0], np.float32),
         "ws": onnx_nets.draws(4, 3, 1, 1, seed=2, scale=1.0)},
    )  # fmt: skip
    data = {"x": np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)}
    floating, out, notes = _quantize(made, BASE, data, x86, tmp_path / "q")
    assert any("very different ranges" in note for note in notes)
    one = {"x": data["x"][:1]}
    scores = [_run(path, one)["y"][:, 4:] for path in (floating, out)]
    assert np.abs(scores[0] - scores[1]).max() < 0.05


def test_old_files_with_constants_and_weights_as_inputs(
    x86: HardwareProfile, tmp_path: Path
) -> None:
    weights = onnx_nets.draws(6, 4)
    constant = helper.make_node(
        "Constant", [], ["w"], "w", value=numpy_helper.from_array(weights, "v")
    )
    nodes = [
        constant,
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "second"),
    ]
    made = onnx_nets.model(
        nodes, {"x": (1, 6), "v": (4, 3)}, {"y": (1, 3)}, {"v": onnx_nets.draws(4, 3)}
    )
    data = {"x": np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)}
    _, out, _ = _quantize(made, BASE, data, x86, tmp_path / "q")
    graph = onnx.load(str(out)).graph
    assert [i.name for i in graph.input] == ["x"]
    assert onnx_runtime.place(out, tmp_path).integer == 2


def test_several_inputs_and_outputs_with_integers_among_them(
    x86: HardwareProfile, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["e"], "lookup"),
        helper.make_node("ReduceMean", ["e"], ["m"], "mean", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["meaning"], "project"),
        helper.make_node("MatMul", ["x", "v"], ["h"], "other"),
        helper.make_node("Add", ["h", "meaning"], ["sum"], "add"),
    ]
    made = onnx_nets.model(
        nodes, {"x": (1, 6), "words": (1, 5)}, {"sum": (1, 4), "meaning": (1, 4)},
        {"table": onnx_nets.draws(50, 8), "w": onnx_nets.draws(8, 4), "v": onnx_nets.draws(6, 4)},
        kinds={"words": TensorProto.INT64},
    )  # fmt: skip
    draws = np.random.default_rng(0)
    data = {
        "x": draws.standard_normal((16, 6)).astype(np.float32),
        "words": draws.integers(0, 50, (16, 5)),
    }
    floating, out, _ = _quantize(made, BASE, data, x86, tmp_path / "q")
    one = {name: value[:1] for name, value in data.items()}
    want, got = _run(floating, one), _run(out, one)
    for name in ("sum", "meaning"):
        np.testing.assert_allclose(got[name], want[name], atol=0.1)


def test_a_state_whose_batch_is_not_first_takes_whole_samples(
    x86: HardwareProfile, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Add", ["state", "h"], ["next"], "step"),
        helper.make_node("MatMul", ["next", "v"], ["y"], "second"),
    ]
    made = onnx_nets.model(
        nodes, {"x": (1, 6), "state": (2, 1, 4)}, {"y": (2, 1, 3), "next": (2, 1, 4)},
        {"w": onnx_nets.draws(6, 4), "v": onnx_nets.draws(4, 3)},
    )  # fmt: skip
    draws = np.random.default_rng(0)
    data = {
        "x": draws.standard_normal((9, 1, 6)).astype(np.float32),
        "state": draws.standard_normal((9, 2, 1, 4)).astype(np.float32),
    }
    assert Feeds(made, data, 100).count == 9
    assert [f["state"].shape for f in Feeds(made, data, 2)] == [(2, 1, 4), (2, 1, 4)]
    floating, out, _ = _quantize(made, BASE, data, x86, tmp_path / "q")
    one = {name: value[0] for name, value in data.items()}
    np.testing.assert_allclose(_run(out, one)["y"], _run(floating, one)["y"], atol=0.1)


def test_a_net_inside_control_flow_is_refused(x86: HardwareProfile, tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["b"], "inner")], "then", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, (1, 4))],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["z"], ["i"], "nothing")], "else", [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, (1, 4))],
    )  # fmt: skip
    nodes = [helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=other)]
    made = onnx_nets.model(
        nodes, {"x": (1, 6), "c": ()}, {"y": (1, 4)},
        {"w": onnx_nets.draws(6, 4), "z": np.zeros((1, 4), np.float32)},
        kinds={"c": TensorProto.BOOL},
    )  # fmt: skip
    data = {"x": np.ones((4, 1, 6), np.float32), "c": np.ones(4, bool)}
    with pytest.raises(ConversionError, match=r"nothing to quantize.*control flow"):
        _quantize(made, BASE, data, x86, tmp_path / "q")


def test_calibration_data_that_are_not_there_or_not_finite(
    x86: HardwareProfile, tmp_path: Path
) -> None:
    made = onnx_nets.depthwise()
    with pytest.raises(DataError, match="lacks x"):
        _quantize(made, BASE, {"z": np.ones((2, 2))}, x86, tmp_path / "a")
    huge = {"x": np.full((2, 3, 16, 16), 3e38, np.float32)}
    with pytest.raises(ConversionError, match="not finite"):
        _quantize(made, BASE, huge, x86, tmp_path / "b")


def test_histograms_count_every_value(images: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    made = prepare(onnx_nets.save(onnx_nets.depthwise(), tmp_path / "m.onnx"), tmp_path)
    feeds = Feeds(made, images, 24)
    ends = extremes(made, ["x"], feeds)
    assert (ends["x"].low, ends["x"].high) == (images["x"].min(), images["x"].max())
    ((name, histogram),) = histograms(made, ends, feeds)
    assert name == "x"
    assert histogram.counts.sum() == images["x"].size
    want, _ = np.histogram(images["x"], len(histogram.counts), (ends["x"].low, ends["x"].high))
    # Rounding moves values over the edge of a bin, never further.
    assert np.abs(np.cumsum(want) - np.cumsum(histogram.counts)).max() < 1e-3 * images["x"].size


def _calibrate(folder: Path, samples: Samples) -> int:
    """Run in a worker process: calibrate with histograms and tell its peak memory."""
    made = prepare(onnx_nets.save(onnx_nets.depthwise(), folder / "m.onnx"), folder)
    feeds = Feeds(made, samples, samples.count)
    names = Graph(made).activations(["Conv", "Clip", "Gemm"])
    found = dict(histograms(made, extremes(made, names, feeds), feeds))
    return len(found)


@pytest.mark.slow
def test_memory_of_calibration_is_flat_in_the_number_of_samples(tmp_path: Path) -> None:
    """Kept activations of 2048 samples would be 340 MB, of 64 samples 11 MB."""
    draws = np.random.default_rng(0)
    peaks = {}
    for count in (64, 2048):
        folder = tmp_path / str(count)
        batches = ({"x": draws.random((64, 3, 16, 16), np.float32)} for _ in range(count // 64))
        samples = write(folder / "samples", batches)
        peaks[count] = isolate.run(_calibrate, folder, samples).peak_rss_bytes
    assert peaks[2048] < peaks[64] + 60e6


def test_nodes_get_names_of_their_own() -> None:
    made = onnx_nets.encoder()
    for node in made.graph.node:
        node.name = "same"
    name_nodes(made)
    names = [n.name for n in made.graph.node]
    assert len(set(names)) == len(names)
    assert onnxruntime.InferenceSession(made.SerializeToString()).get_outputs()
