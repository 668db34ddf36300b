from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from aid_edge.compress.lesson import Feeder, lesson_of
from aid_edge.compress.recovery import Course, train
from aid_edge.model import SourceModel
from device_agent.contract.tensors import TensorInfo


def test_a_last_batch_of_one_sample_does_not_end_the_training() -> None:
    # Batch norm over one sample of plain features has no variance, and PyTorch refuses it.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = SourceModel(
        "tiny:make", "torch", None, (TensorInfo("x", "FP32", (-1, 4)),),
        (TensorInfo("y", "FP32", (-1, 3)),), (), 1, "sha256:" + "0" * 64,
    )  # fmt: skip
    inputs = {"x": np.random.default_rng(0).normal(size=(357, 4)).astype(np.float32)}
    lesson = lesson_of(model, net, Feeder(model, inputs), None, seed=0)
    assert len(lesson.learn) % lesson.batch == 1
    found = train(copy.deepcopy(net), lesson, Course(2, 60.0, 1e-3, seed=0))
    assert found.stopped == "epochs"
    assert len(found.points) == 3


def test_crops_of_one_photo_are_held_out_together() -> None:
    model = SourceModel(
        "tiny:make", "torch", None, (TensorInfo("x", "FP32", (-1, 4)),),
        (TensorInfo("y", "FP32", (-1, 3)),), (), 1, "sha256:" + "0" * 64,
    )  # fmt: skip
    inputs = {"x": np.zeros((300, 4), np.float32)}
    feeder = Feeder(model, inputs)

    def split(groups: list[str] | None) -> tuple[list[int], list[int]]:
        return feeder.split(np.random.default_rng(0), groups)

    photos = [f"photo {i % 25}" for i in range(300)]
    learn, held = split(photos)
    assert not {photos[i] for i in learn} & {photos[i] for i in held}
    assert sorted([*learn, *held]) == list(range(300))
    assert len(held) == 36, "the first three photos of twelve crops reach a tenth of all"
    assert split(["one"] * 300) == split(None), "one photo cannot be parted from itself"
