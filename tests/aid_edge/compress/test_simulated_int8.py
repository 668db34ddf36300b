from __future__ import annotations

import numpy as np
import torch
from torch import nn

from aid_edge.compress import recovery
from aid_edge.compress.lesson import Feeder, lesson_of
from aid_edge.compress.recovery import Course
from aid_edge.compress.simulated_int8 import Simulation, fold_norms
from aid_edge.model import SourceModel
from device_agent.contract.tensors import TensorInfo
from tests.support import prunable_nets as nets

ROWS = {"row": np.random.default_rng(1).standard_normal((1024, 16)).astype(np.float32)}
MODEL = SourceModel(
    "rows", "torch", None, (TensorInfo("row", "FP32", (-1, 16)),),
    (TensorInfo("scores", "FP32", (-1, 4)),), (), 0, "",
)  # fmt: skip


def _run(module: nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        return [module(torch.from_numpy(ROWS["row"]))]


def _int8_error(module: nn.Module, want: torch.Tensor) -> float:
    """Return the error of plain post-training quantization, with ranges of all the data."""
    simulation = Simulation(module.eval())
    simulation.observe(module, _run)
    error = float(((_run(module)[0] - want) ** 2).mean() / want.var())
    simulation.remove()
    return error


def test_training_makes_a_net_bear_int8_better_than_quantization_alone() -> None:
    net = nets.hurt().eval()
    (want,) = _run(net)
    plain = _int8_error(net, want)
    trained = nets.hurt().eval()
    targets = want.numpy()
    lesson = lesson_of(MODEL, net, Feeder(MODEL, ROWS), targets, 0)
    simulation = Simulation(trained)
    simulation.observe(trained, _run)
    recovery.train(trained, lesson, Course(20, 60, 1e-3, 0))
    simulation.remove()
    assert not any("rounded" in name or "original" in name for name in trained.state_dict())
    assert _int8_error(trained, want) < 0.8 * plain


def test_folding_norms_changes_nothing() -> None:
    net, image = nets.residual().eval(), torch.rand(4, 3, 8, 8)

    def run(module: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return [module(image)]

    folded, count = fold_norms(net, run)
    assert count == 4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(run(folded), run(net), rtol=1e-4, atol=1e-4)
