"""A 1D convolutional network for the exercises of ``examples.fetch har``, trained here in seconds.

``python -m examples.har --data build/examples/har`` writes ``har.safetensors`` and ``model.toml``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

SEED = 20261123
EPOCHS, BATCH = 15, 64
CARD = """\
schema = 1
name = "har"
version = "1.0.0"
title = "Exercises felt by a watch, 1D CNN"
task = "classification"
licence = "Apache-2.0"
labels = "labels.txt"

[[inputs]]
name = "motion"
datatype = "FP32"
shape = [-1, 6, 100]

[[outputs]]
name = "logits"

[[postprocess]]
type = "softmax"
"""


class HarNet(nn.Module):
    """Windows [n, 6, 100] to logits [n, 7]; 25,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in ((6, 32), (32, 48), (48, 64)):
            layers += [
                nn.Conv1d(inner, outer, 5, 2, 2, bias=False), nn.BatchNorm1d(outer), nn.ReLU(),
            ]  # fmt: skip
        self.features = nn.Sequential(*layers)
        self.classify = nn.Linear(64, 7)

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        """Return logits [n, 7]."""
        return self.classify(self.features(motion).mean(2))


def har_net() -> nn.Module:
    """Return the network with random weights."""
    return HarNet()


def train(data: Path) -> Path:
    """Train on ``data / "train.npz"`` unless that was done before; return the weights' file."""
    target = data / "har.safetensors"
    if target.is_file():
        return target
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    with np.load(data / "train.npz", allow_pickle=False) as stored:
        motion, labels = torch.from_numpy(stored["motion"]), torch.from_numpy(stored["labels"])
    network = HarNet().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(motion)).split(BATCH):
            loss = functional.cross_entropy(network(motion[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    (data / "model.toml").write_text(CARD)
    unfinished = target.with_suffix(".part")
    safetensors.torch.save_file(network.state_dict(), unfinished)
    unfinished.rename(target)
    return target


def main() -> int:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/examples/har"))
    print(train(parser.parse_args().data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
