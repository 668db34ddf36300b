"""Two small networks for Fashion-MNIST, trained here: ResNet-8 and a depthwise-separable one.

``python -m examples.fashion_nets --data build/examples/fashion-mnist resnet8`` trains and writes
``resnet8.safetensors`` and ``resnet8.toml`` (a model card) beside the data. ResNet-8 has the shape
of MLPerf Tiny's image classifier (16, 32, 64 channels), the other that of its MobileNet (DS-CNN).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

SEED = 20261123
BATCH = 256
PEAK_LEARNING_RATE = 0.015
CARD = """\
schema = 1
name = "{name}"
version = "1.0.0"
title = "{title}, Fashion-MNIST"
task = "classification"
licence = "Apache-2.0"
labels = "labels.txt"

[[inputs]]
name = "image"
datatype = "FP32"
shape = [-1, 1, 28, 28]

[[outputs]]
name = "logits"

[[postprocess]]
type = "softmax"

[[postprocess]]
type = "top-k"
k = 3
"""


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al., 2015, arXiv:1512.03385)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outer)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outer)
        self.shortcut = (
            nn.Identity() if stride == 1 and inner == outer else nn.Conv2d(inner, outer, 1, stride)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [n, outer, h / stride, w / stride]."""
        found = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(found)) + self.shortcut(x))


class ResNet8(nn.Module):
    """Images [n, 1, 28, 28] to logits [n, 10]; 77,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.stages = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.classify = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [n, 10]."""
        return self.classify(self.stages(self.stem(image)).mean((2, 3)))


class DepthwiseNet(nn.Module):
    """Images [n, 1, 28, 28] to logits [n, 10] by depthwise-separable blocks with ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(),
        ]  # fmt: skip
        for inner, outer, stride in (
            (32, 64, 1), (64, 64, 1), (64, 96, 2), (96, 96, 1), (96, 128, 1),
        ):  # fmt: skip
            layers += [
                nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
                nn.BatchNorm2d(inner), nn.ReLU6(),
                nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU6(),
            ]  # fmt: skip
        self.features = nn.Sequential(*layers)
        self.classify = nn.Linear(128, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [n, 10]."""
        return self.classify(self.features(image).mean((2, 3)))


def resnet8() -> nn.Module:
    """Return ResNet-8 with random weights."""
    return ResNet8()


def dscnn() -> nn.Module:
    """Return the depthwise-separable network with random weights."""
    return DepthwiseNet()


@dataclass(frozen=True)
class Training:
    """How one network is trained."""

    factory: Callable[[], nn.Module]
    title: str
    epochs: int


NETS = {
    "resnet8": Training(resnet8, "ResNet-8", 5),
    "dscnn": Training(dscnn, "Depthwise-separable CNN", 12),
}


def train(name: str, data: Path) -> Path:
    """Train the network ``name`` on the data in the folder ``data`` unless that was done before.

    Deterministic: the same versions write the same bytes. Returns the file of its weights.
    """
    target = data / f"{name}.safetensors"
    if target.is_file():
        return target
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    settings = NETS[name]
    with np.load(data / "train.npz", allow_pickle=False) as stored:
        images = torch.from_numpy(stored["image"])
        labels = torch.from_numpy(stored["labels"])
    network = settings.factory()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=settings.epochs * steps
    )
    network.train()
    for epoch in range(settings.epochs):
        order = torch.randperm(len(images))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            batch = images[chosen]
            flipped = torch.rand(len(batch)) < 0.5
            batch[flipped] = batch[flipped].flip(3)
            loss = functional.cross_entropy(network(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"{name}: epoch {epoch + 1} of {settings.epochs}", file=sys.stderr)
    unfinished = target.with_suffix(".part")
    safetensors.torch.save_file(network.state_dict(), unfinished)
    (data / f"{name}.toml").write_text(CARD.format(name=name, title=settings.title))
    unfinished.rename(target)
    return target


def main() -> int:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="+", choices=sorted(NETS))
    parser.add_argument("--data", type=Path, default=Path("build/examples/fashion-mnist"))
    options = parser.parse_args()
    for name in options.nets:
        print(train(name, options.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
