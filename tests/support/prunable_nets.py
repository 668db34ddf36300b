"""Small nets with everything that pruning meets; named by tests as module:factory."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class _Residual(nn.Module):
    """Images [n, 3, 8, 8] to scores [n, 5]: skip connection, depthwise convolution, norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.inner = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.hidden = nn.Linear(16 * 4, 32)
        self.last = nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = functional.relu(self.stem(image))
        found = functional.relu(found + self.inner(found))
        pooled = functional.adaptive_avg_pool2d(found, 2).flatten(1)
        return self.last(functional.relu(self.hidden(pooled)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, derived: bool) -> None:
        super().__init__()
        self.heads, self.derived = heads, derived
        self.head_size = width // heads
        self.norm, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
        self.joined = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        size = -1 if self.derived else self.head_size
        y = self.norm(x)
        q, k, v = (
            layer(y).reshape(n, length, self.heads, size).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        found = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.joined(found.transpose(1, 2).reshape(n, length, -1))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class _Transformer(nn.Module):
    """Tokens [n, 8] to an embedding [n, 6]; head sizes from the weights or written down."""

    def __init__(self, *, derived: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 32)
        self.places = nn.Parameter(torch.randn(1, 8, 32) * 0.1)
        self.block = _Block(32, 4, derived)
        self.last = nn.Linear(32, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(self.words(ids) + self.places).mean(1))


class _Shuffled(nn.Module):
    """Images [n, 3, 8, 8] to values [n, 2]: channels are shuffled by a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = functional.relu(self.first(image))
        n, c, h, w = found.shape
        mixed = found.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(functional.relu(self.second(mixed)).mean((2, 3)))


class _Mixed(_Shuffled):
    """The same, but a channel is read at another place whenever the number of them changes."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = functional.relu(self.first(image))
        turned = found.flip(1)
        return self.last(functional.relu(self.second(turned)).mean((2, 3)))


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return self.last(row)


class _Hurt(nn.Module):
    """Rows [n, 16] to scores [n, 4], with a huge range that int8 activations cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 32)
        self.last = nn.Linear(32, 4)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return self.last(functional.relu(self.second(functional.relu(self.first(row)))))


class _Stateful(nn.Module):
    """Samples [1, 16] and a state [2, 1, 8]: no axis is the batch of all."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(16 + 16, 24), nn.Linear(24, 1)
        self.keep = nn.Linear(24, 16)

    def forward(
        self, sample: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.tanh(self.read(torch.cat([sample, state.reshape(1, 16)], 1)))
        return self.write(found), torch.tanh(self.keep(found)).reshape(2, 1, 8)


def _seeded(kind: type[nn.Module], **options: bool) -> nn.Module:
    torch.manual_seed(5)
    return kind(**options)


def residual() -> nn.Module:
    """Return a trained-looking net: its norms have seen data."""
    net = _seeded(_Residual).train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.rand(32, 3, 8, 8))
    return net


def transformer() -> nn.Module:
    return _seeded(_Transformer, derived=True)


def rigid_transformer() -> nn.Module:
    return _seeded(_Transformer, derived=False)


def shuffled() -> nn.Module:
    return _seeded(_Shuffled)


def mixed() -> nn.Module:
    return _seeded(_Mixed)


def head_only() -> nn.Module:
    return _seeded(_Head)


def hurt() -> nn.Module:
    """Return a net some of whose hidden units are a thousand times larger than others."""
    net = _seeded(_Hurt)
    with torch.no_grad():
        net.first.weight[:2] *= 60
        net.second.weight[:, :2] *= 0.02
    return net


def stateful() -> nn.Module:
    return _seeded(_Stateful)
