"""SmoothQuant moves outliers into weights and changes no float output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from aid_edge.errors import ConversionError
from converters import onnx_smooth
from converters.onnx_feeds import Feeds, run, session_of
from converters.onnx_graph import Graph, prepare
from tests.support import onnx_nets

DATA = {"x": np.random.default_rng(0).standard_normal((8, 6, 16)).astype(np.float32)}


def _outputs(model: onnx.ModelProto, names: list[str]) -> list[np.ndarray]:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    return run(session_of(copy, names), names, {"x": DATA["x"][:1]})


@pytest.mark.parametrize("residual", [False, True])
def test_outliers_move_and_outputs_stay(residual: bool, tmp_path: Path) -> None:
    path = onnx_nets.save(onnx_nets.encoder(residual=residual), tmp_path / "m.onnx")
    model = prepare(path, tmp_path)
    names = [o.name for o in model.graph.output]
    before = _outputs(model, names)
    feeds = Feeds(model, DATA, 8)
    assert onnx_smooth.smooth(model, feeds) >= 1
    for want, got in zip(before, _outputs(model, names), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    graph = Graph(model)
    products = [n for n in graph.nodes.values() if graph.has_weights(n)]
    (activation,) = _outputs(model, [products[0].input[0]])
    peaks = np.abs(activation.reshape(-1, 16)).max(0)
    # Two channels were sixty times the others.
    assert peaks.max() < 12 * np.median(peaks)
    # The normalization takes it in unless something else reads it.
    assert any(n.name.startswith("norm__smooth_mul") for n in graph.nodes.values()) is residual


def test_a_model_without_normalization_is_left_alone(tmp_path: Path) -> None:
    model = prepare(onnx_nets.save(onnx_nets.depthwise(), tmp_path / "m.onnx"), tmp_path)
    data = {"x": np.ones((2, 3, 16, 16), np.float32)}
    before = model.SerializeToString()
    assert onnx_smooth.smooth(model, Feeds(model, data, 2)) == 0
    assert model.SerializeToString() == before


def test_a_changed_output_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare(onnx_nets.save(onnx_nets.encoder(), tmp_path / "m.onnx"), tmp_path)
    monkeypatch.setattr(onnx_smooth, "_fold", lambda *_: None)
    with pytest.raises(ConversionError, match="smoothing changed the float output y"):
        onnx_smooth.smooth(model, Feeds(model, DATA, 8))
