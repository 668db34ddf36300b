"""The probe pack: small networks whose latency tells how a device compares with this host.

Random weights do: how long a convolution takes does not depend on what it has learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from device_agent.contract.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import nn

SEED = 20261123
IMAGE = TensorInfo("image", "FP32", (-1, 3, 64, 64))
VECTOR = TensorInfo("vector", "FP32", (-1, 1024))

PROBES: dict[str, TensorInfo] = {
    "wide": IMAGE, "deep": IMAGE, "depthwise": IMAGE, "dense": VECTOR,
}  # fmt: skip
"""Factory in this module to its input."""


def wide() -> nn.Module:
    """Return a few large convolutions: bound by arithmetic."""
    return _convolutional([(3, 32, 2), (32, 96, 2), (96, 192, 2)])


def deep() -> nn.Module:
    """Return many small convolutions: bound by what each operator costs by itself."""
    return _convolutional([(3, 16, 2), *[(16, 16, 1)] * 12, (16, 32, 2), *[(32, 32, 1)] * 8])


def depthwise() -> nn.Module:
    """Return depthwise-separable convolutions: bound by memory."""
    from torch import nn  # noqa: PLC0415 -- only worker processes make probes

    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()]
    for inner, outer, stride in ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2)):
        layers += [
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner), nn.ReLU6(),
            nn.Conv2d(inner, outer, 1), nn.ReLU6(),
        ]  # fmt: skip
    return _seeded(nn.Sequential(*layers, *_head(256)))


def dense() -> nn.Module:
    """Return large dense layers: bound by reading weights."""
    from torch import nn  # noqa: PLC0415 -- only worker processes make probes

    return _seeded(
        nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                      nn.Linear(1024, 10))
    )  # fmt: skip


def _convolutional(shapes: list[tuple[int, int, int]]) -> nn.Module:
    from torch import nn  # noqa: PLC0415 -- only worker processes make probes

    layers: list[nn.Module] = []
    for inner, outer, stride in shapes:
        layers += [nn.Conv2d(inner, outer, 3, stride, 1), nn.ReLU()]
    return _seeded(nn.Sequential(*layers, *_head(shapes[-1][1])))


def _head(channels: int) -> list[nn.Module]:
    from torch import nn  # noqa: PLC0415 -- only worker processes make probes

    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def _seeded(network: nn.Module) -> nn.Module:
    import torch  # noqa: PLC0415 -- only worker processes make probes

    draws = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.05)
    return network.eval()
