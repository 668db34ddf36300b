"""A small network for scikit-learn's handwritten digits, trained here in seconds.

``python -m examples.digits --to FOLDER`` writes ``weights.safetensors``, ``model.toml``,
``labels.txt``, ``calibration.npz`` and ``evaluation.npz``. The same versions of PyTorch and
scikit-learn write the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

SEED = 20261123
TRAINING, CALIBRATION = 900, 128
EPOCHS, BATCH = 40, 50
PIXEL_MAX = 16.0

CARD = """\
schema = 1
name = "digits"
version = "1.0.0"
title = "Handwritten digits, 8x8 pixels"
task = "classification"
licence = "Apache-2.0"
labels = "labels.txt"

[[inputs]]
name = "image"
datatype = "FP32"
shape = [-1, 1, 8, 8]

[[outputs]]
name = "logits"

[[postprocess]]
type = "softmax"

[[postprocess]]
type = "top-k"
k = 3
"""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class DigitsNet(nn.Module):
    """Three convolutions: images [n, 1, 8, 8] with values 0 to 1, to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 32), *_block(32, 64), nn.MaxPool2d(2), *_block(64, 64)
        )
        self.classify = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [n, 10]."""
        return self.classify(self.features(image).mean((2, 3)))


def digits_net() -> nn.Module:
    """Return the network with random weights."""
    return DigitsNet()


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all 1,797 images [n, 1, 8, 8], values 0 to 1, and their labels [n], shuffled."""
    from sklearn import datasets  # noqa: PLC0415 -- only training needs it, not the factory

    found = datasets.load_digits()
    order = np.random.default_rng(SEED).permutation(len(found.target))
    images = (found.images[order, None] / PIXEL_MAX).astype(np.float32)
    return images, found.target[order].astype(np.int64)


def train(images: NDArray[np.float32], labels: NDArray[np.int64]) -> nn.Module:
    """Return a network trained on these images; deterministic."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    network = DigitsNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        network.train()
        for batch in torch.randperm(len(x)).split(BATCH):
            # Shifting by one pixel stands for writing that is not centred.
            shifts = [int(s) for s in torch.randint(-1, 2, (2,))]
            shifted = torch.roll(x[batch], shifts, dims=(2, 3))
            loss = nn.functional.cross_entropy(network(shifted), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return network.eval()


def write(folder: Path) -> float:
    """Train and write everything into ``folder``; return the accuracy on the evaluation set."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits()
    network = train(images[:TRAINING], labels[:TRAINING])
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    (folder / "model.toml").write_text(CARD)
    (folder / "labels.txt").write_text("\n".join(WORDS) + "\n")
    # Calibration comes from the training part, without labels; evaluation is never seen before.
    np.savez(folder / "calibration.npz", image=images[:CALIBRATION])
    np.savez(folder / "evaluation.npz", image=images[TRAINING:], labels=labels[TRAINING:])
    with torch.inference_mode():
        answers = network(torch.from_numpy(images[TRAINING:])).argmax(1).numpy()
    return float(np.mean(answers == labels[TRAINING:]))


def _block(before: int, after: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("build/examples/digits"))
    folder = parser.parse_args(arguments).to
    accuracy = write(folder)
    print(f"{folder}: trained on {TRAINING} digits, {accuracy:.1%} right on 897 others")
    return 0


if __name__ == "__main__":
    sys.exit(main())
