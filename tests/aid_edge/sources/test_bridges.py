"""Bridges: what is brought over computes the same, or is refused with the reason."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel, is_batched
from aid_edge.sources import bridges, onnx_module, onnx_source, torchscript_source
from aid_edge.sources.inputs import parse_input
from aid_edge.sources.inspection import SourceRequest
from tests.support.source_files import ocr_like, save, stateful, tiny_torchscript


def opened(path: Path, *inputs: str) -> SourceModel:
    """What open_source gives, without a process of its own."""
    is_onnx = path.suffix == ".onnx"
    source: Any = onnx_source if is_onnx else torchscript_source
    found = source.inspect(SourceRequest(str(path), None, tuple(map(parse_input, inputs))))
    return SourceModel(
        str(path), "onnx" if is_onnx else "torchscript", None, found.inputs, found.outputs,
        found.uses, found.parameters, found.digest, None, found.opset,
        is_batched(found.inputs, found.outputs), found.quantized, found.notes,
    )  # fmt: skip


def test_a_net_with_computed_shapes_keeps_its_batch(tmp_path: Path) -> None:
    model = opened(ocr_like(tmp_path / "m.onnx"), "x=?x3x16x24")
    samples = {"x": np.random.default_rng(0).random((2, 3, 16, 24), np.float32)}
    made = bridges.to_torch(model, tmp_path / "m.pt2", samples)
    assert made.framework == "torch"
    assert made.inputs == model.inputs
    assert made.outputs == model.outputs
    assert made.operators["depthwise_conv2d"] == 1
    assert "compared with it" in made.notes[-1]


def test_layers_of_a_brought_over_net_can_be_trained_and_pruned(tmp_path: Path) -> None:
    module = bridges.torch_module(opened(ocr_like(tmp_path / "m.onnx"), "x=?x3x16x24"))
    kinds = {type(layer).__name__ for layer in module.modules()}
    assert {"Conv2d", "Linear"} <= kinds
    linear = next(layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    assert linear.bias is not None
    linear.weight.requires_grad_(True)
    module(torch.rand(2, 3, 16, 24)).square().sum().backward()
    assert linear.weight.grad is not None


def test_a_state_outside_comes_along(tmp_path: Path) -> None:
    model = opened(stateful(tmp_path / "m.onnx"))
    made = bridges.to_torch(model, tmp_path / "m.pt2")
    assert not made.batched
    assert made.inputs == model.inputs


class _Encoder(torch.nn.Module):
    """One block of a transformer: 2 heads over [n, 5, 16]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = torch.nn.LayerNorm(16), torch.nn.LayerNorm(16)
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.before(x)).reshape(n, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(n, length, width))
        return x + self.down(torch.nn.functional.gelu(self.up(self.after(x))))


def test_a_transformer_encoder(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            _Encoder().eval(), (torch.rand(2, 5, 16),), str(tmp_path / "m.onnx"), dynamo=True,
            input_names=["x"], output_names=["y"], dynamic_shapes=({0: batch},), opset_version=18,
            external_data=False, verbose=False,
        )  # fmt: skip
    made = bridges.to_torch(opened(tmp_path / "m.onnx"), tmp_path / "m.pt2")
    assert made.inputs[0].shape == (-1, 5, 16)
    assert made.operators["linear"] == 4


def test_torchscript_comes_to_onnx(tmp_path: Path) -> None:
    model = opened(tiny_torchscript(tmp_path / "m.pt"), "image=?x3x8x8")
    made = bridges.to_onnx(model, tmp_path / "m.onnx")
    assert made.framework == "onnx"
    assert made.inputs == model.inputs
    assert made.operators["Conv"] == 2


# --- refusals --------------------------------------------------------------------------------


def test_operators_without_an_equal_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["r"], ["i"], name="find"),
        helper.make_node("Cast", ["i"], ["y"], to=1),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"x": ["n", 4]}, {"y": ["a", "b"]})
    with pytest.raises(UnsupportedModelError) as caught:
        bridges.to_torch(opened(path), tmp_path / "m.pt2")
    assert any("NonZero (find)" in reason for reason in caught.value.reasons)
    assert not (tmp_path / "m.pt2").exists()


def test_open_sizes_and_other_frameworks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        bridges.to_torch(opened(ocr_like(tmp_path / "m.onnx")), tmp_path / "m.pt2")
    assert "varies in more than its batch: fix it with --input" in caught.value.cause
    script = opened(tiny_torchscript(tmp_path / "m.pt"), "image=?x3x8x8")
    with pytest.raises(UnsupportedModelError) as caught:
        bridges.to_torch(script, tmp_path / "m.pt2")
    assert "only ONNX models" in caught.value.cause


def test_a_bridge_that_computes_something_else_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(ocr_like(tmp_path / "m.onnx"), "x=?x3x16x24")
    monkeypatch.setitem(
        onnx_module.FUNCTIONS, "HardSigmoid", lambda attributes, x, static: torch.sigmoid(x[0])
    )
    with pytest.raises(ConversionError, match="output y differs from the source's by up to"):
        bridges.to_torch(model, tmp_path / "m.pt2")
