"""Networks so small that converting one takes seconds; named by tests as module:factory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


class TinyNet(nn.Module):
    """Images [n, 3, 8, 8] to scores [n, 5]: convolution, depthwise convolution, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.last = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu6(self.norm(self.first(image)))
        return self.last(nn.functional.relu(self.depthwise(hidden)).mean((2, 3)))


def tiny() -> nn.Module:
    torch.manual_seed(7)
    return TinyNet()


class _NotFinite(TinyNet):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.log(super().forward(image) - 1e6)


def not_finite() -> nn.Module:
    return _NotFinite()


class _High(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        blocks = image.reshape(-1, 3, 2, 2, 2, 4, 2)
        return torch.sin(blocks).sum((2, 3, 4, 5, 6)) * 1.0


def high_rank() -> nn.Module:
    return _High()


class _Depends(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.sum() > 0 else -image


def depends_on_values() -> nn.Module:
    return _Depends()


def unseeded() -> nn.Module:
    net = tiny()
    with torch.no_grad():
        net.last.bias.copy_(torch.from_numpy(np.random.default_rng().normal(size=5)))
    return net


class _Bessel(TinyNet):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(super().forward(image))


def bessel() -> nn.Module:
    return _Bessel()


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)

    def forward(self, image: torch.Tensor, words: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": image.mean((2, 3)), "meaning": self.words(words).mean(1)}


def two_in_two_out() -> nn.Module:
    return _Two()


def raises() -> nn.Module:
    raise RuntimeError("no weights today")


def no_module() -> Any:
    return {"not": "a module"}


class _Attends(nn.Module):
    """Images [n, 3, 16, 16] to scores [n, 5]: patches, one block of self-attention, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.norm, self.after = nn.LayerNorm(64), nn.LayerNorm(64)
        self.project, self.out = nn.Linear(64, 192), nn.Linear(64, 64)
        self.wide, self.narrow = nn.Linear(64, 256), nn.Linear(256, 64)
        self.last = nn.Linear(64, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.patches(image).flatten(2).transpose(1, 2)
        parts = self.project(self.norm(hidden)).reshape(-1, 16, 3, 4, 16).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(-1, 16, 64))
        hidden = hidden + self.narrow(nn.functional.gelu(self.wide(self.after(hidden))))
        return self.last(hidden.mean(1))


def attends() -> nn.Module:
    torch.manual_seed(5)
    module = _Attends()
    for parameter in module.parameters():
        parameter.data.mul_(1.5)
    return module


class _Gelu(TinyNet):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(super().forward(image))


def with_gelu() -> nn.Module:
    torch.manual_seed(7)
    return _Gelu()
