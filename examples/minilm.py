"""MiniLM-L6 as a plain PyTorch module: tokens to a sentence embedding.

BERT (Devlin et al., 2018, arXiv:1810.04805) with 6 layers of 384 channels and 12 heads; the mean
over the tokens of the sentence, of length one (Reimers & Gurevych, 2019, arXiv:1908.10084).
``python -m examples.fetch minilm`` brings its weights; the names of the parameters are theirs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

LAYERS, CHANNELS, HEADS, INNER = 6, 384, 12, 1536
VOCABULARY, POSITIONS, TYPES = 30522, 512, 2
EPSILON = 1e-12
_MASKED = -1e4
"""Added to the attention of padding; large enough, and finite in every number format."""


class Embeddings(nn.Module):
    """Tokens [n, length] to vectors [n, length, channels]."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, CHANNELS)
        self.position_embeddings = nn.Embedding(POSITIONS, CHANNELS)
        self.token_type_embeddings = nn.Embedding(TYPES, CHANNELS)
        self.LayerNorm = nn.LayerNorm(CHANNELS, EPSILON)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what each token means by itself and where it stands."""
        places = self.position_embeddings.weight[: ids.shape[1]]
        return self.LayerNorm(
            self.word_embeddings(ids) + places + self.token_type_embeddings.weight[0]
        )


class SelfAttention(nn.Module):
    """What each token takes from the others."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(CHANNELS, CHANNELS)
        self.key = nn.Linear(CHANNELS, CHANNELS)
        self.value = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return [n, length, channels]; ``mask`` [n, 1, 1, length] is added to the scores."""
        q, k, v = (
            layer(x).unflatten(2, (HEADS, CHANNELS // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / (CHANNELS // HEADS) ** 0.5 + mask
        return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)


class Projection(nn.Module):
    """A dense layer, added to what came before and normalized."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, CHANNELS)
        self.LayerNorm = nn.LayerNorm(CHANNELS, EPSILON)

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Return [n, length, channels]."""
        return self.LayerNorm(self.dense(x) + before)


class Layer(nn.ModuleDict):
    """One layer of the encoder, with the parameter names of BERT."""

    def __init__(self) -> None:
        attention = nn.ModuleDict({"self": SelfAttention(), "output": Projection(CHANNELS)})
        dense = nn.ModuleDict({"dense": nn.Linear(CHANNELS, INNER)})
        super().__init__(
            {"attention": attention, "intermediate": dense, "output": Projection(INNER)}
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return [n, length, channels]."""
        attention = self["attention"]
        x = attention["output"](attention["self"](x, mask), x)
        return self["output"](functional.gelu(self["intermediate"]["dense"](x)), x)


class MiniLm(nn.Module):
    """Token ids and mask, int64 [n, length], to embeddings [n, 384] of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return one embedding per sentence."""
        weights = attention_mask.to(torch.float32)
        mask = (1 - weights)[:, None, None, :] * _MASKED
        x = self.embeddings(input_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        mean = (x * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1)


def minilm() -> nn.Module:
    """Return the network with random weights."""
    return MiniLm()
