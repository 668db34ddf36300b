"""Sets the smallest weights to zero, over all layers (Han et al., 2015, arXiv:1506.02626).

Imported only in worker processes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from aid_edge.errors import UnsupportedModelError

Masks = Mapping[str, torch.Tensor]
_MIN_RANK = 2
_TABLES = (nn.Embedding, nn.EmbeddingBag)


def prune(module: nn.Module, sparsity: float) -> dict[str, torch.Tensor]:
    """Set that share of all weights of ``module`` to zero; return which are kept, by name.

    Biases, norms and embeddings are left as they are: they are few, or rows of a table that each
    matter alone.

    Raises:
        UnsupportedModelError: It has no weights to choose from.
    """
    tables = {
        f"{name}.weight" for name, inner in module.named_modules() if isinstance(inner, _TABLES)
    }
    weights = {
        name: p for name, p in module.named_parameters()
        if p.dim() >= _MIN_RANK and p.is_floating_point() and name not in tables
    }  # fmt: skip
    total = sum(p.numel() for p in weights.values())
    count = int(total * sparsity)
    if not count:
        raise UnsupportedModelError(
            "no weights of the model can be set to zero",
            ["it has no layer with a matrix or kernel of weights, or too few of them"],
        )
    sizes = torch.cat([p.detach().abs().flatten().float() for p in weights.values()])
    threshold = float(torch.kthvalue(sizes, count).values)
    masks = {name: p.detach().abs() > threshold for name, p in weights.items()}
    apply(module, masks)
    return masks


def apply(module: nn.Module, masks: Masks) -> None:
    """Set to zero what ``masks`` does not keep."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
