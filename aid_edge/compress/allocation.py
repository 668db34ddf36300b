"""How many channels each layer keeps: rules over numbers, without a framework."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_KEPT_SHARE = 0.1
"""Of a layer's channels, whatever the scope: a layer that is cut off takes the net with it."""

TRIAL_RATIOS = (0.25, 0.5, 0.75)
"""At which the damage of pruning one layer alone is measured."""

_BISECTIONS = 60


@dataclass(frozen=True)
class Layer:
    """Channels that can only be taken out together, over all layers that share them.

    Attributes:
        name: Of the layer that computes them.
        channels: How many; a multiple of ``groups``.
        groups: Parts, such as heads of attention, that must keep as many channels each.
    """

    name: str
    channels: int
    groups: int = 1

    @property
    def width(self) -> int:
        """Channels of one group: what is taken away is the same number from each."""
        return self.channels // self.groups

    def step(self, round_to: int) -> int:
        """Return of what a kept width is a multiple, so that its channels are of ``round_to``."""
        return round_to // math.gcd(round_to, self.groups)


def rounded(layer: Layer, width: float, round_to: int) -> int:
    """Return the width nearest to ``width`` that rounding allows, the smaller one of two.

    At least one step; a layer no wider than one step, or that is not a multiple, is left whole
    rather than rounded up beyond its size.
    """
    step = layer.step(round_to)
    if layer.width <= step:
        return layer.width
    nearest = math.ceil(width / step - 0.5) * step
    return min(max(nearest, step), layer.width)


def per_layer(layers: Sequence[Layer], ratio: float, round_to: int) -> list[int]:
    """Return the width that each layer keeps when each gives the same share."""
    return [rounded(layer, layer.width * (1 - ratio), round_to) for layer in layers]


def by_rank(
    layers: Sequence[Layer], scores: Sequence[Sequence[float]], ratio: float, round_to: int
) -> list[int]:
    """Return the width that each layer keeps when the least important channels of all go.

    Args:
        layers: The layers.
        scores: Importance per position of a group, comparable between layers.
        ratio: Share of all channels to take out.
        round_to: Kept channels are a multiple.
    """
    ranked = sorted(
        (score, number, layers[number].groups) for number, row in enumerate(scores) for score in row
    )
    wanted = ratio * sum(layer.channels for layer in layers)
    kept = [layer.width for layer in layers]
    gone = 0
    for _, number, weight in ranked:
        if gone + weight > wanted:
            break
        if kept[number] - 1 >= MIN_KEPT_SHARE * layers[number].width:
            kept[number] -= 1
            gone += weight
    return [rounded(layer, width, round_to) for layer, width in zip(layers, kept, strict=True)]


def by_sensitivity(
    layers: Sequence[Layer], damages: Sequence[Sequence[float]], ratio: float, round_to: int
) -> list[int]:
    """Return the width that each layer keeps when every layer does about the same damage.

    Each layer is pruned as far as its own curve of damage stays under one threshold, which is
    sought so that ``ratio`` of all channels go (Li et al., 2017, arXiv:1608.08710, section 3.2,
    choose ratios by such curves by eye).

    Args:
        layers: The layers.
        damages: Per layer, the change of the outputs at each of :data:`TRIAL_RATIOS`.
        ratio: Share of all channels to take out.
        round_to: Kept channels are a multiple.
    """
    total = sum(layer.channels for layer in layers)
    curves = [_curve(row) for row in damages]
    low, high = 0.0, max((row[-1] for row in damages), default=0.0) * 4 + 1e-12

    def ratios(threshold: float) -> list[float]:
        return [min(curve(threshold), 1 - MIN_KEPT_SHARE) for curve in curves]

    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        gone = sum(r * layer.channels for r, layer in zip(ratios(middle), layers, strict=True))
        low, high = (middle, high) if gone < ratio * total else (low, middle)
    return [
        rounded(layer, layer.width * (1 - r), round_to)
        for r, layer in zip(ratios(high), layers, strict=True)
    ]


def _curve(damages: Sequence[float]) -> Callable[[float], float]:
    """Return the inverse of a curve of damage: the ratio at which it reaches a threshold.

    Made monotone, linear between the points, and continued as steep as at its end.
    """
    points = [(0.0, 0.0)]
    for ratio, damage in zip(TRIAL_RATIOS, damages, strict=True):
        points.append((ratio, max(damage, points[-1][1] + 1e-9)))

    def inverse(threshold: float) -> float:
        for (r0, d0), (r1, d1) in itertools.pairwise(points):
            if threshold <= d1:
                return r0 + (r1 - r0) * (threshold - d0) / (d1 - d0)
        (r0, d0), (r1, d1) = points[-2:]
        return r1 + (r1 - r0) * (threshold - d1) / (d1 - d0)

    return inverse
