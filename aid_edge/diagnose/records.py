"""What a diagnosis says of one layer, and how it comes to a cause. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BAD_DB = 20.0
"""Signal to noise under which a layer gets a cause: one tenth of the amplitude is noise."""

MAX_DB = 120.0
"""What stands for no noise at all."""

HEAVY_KURTOSIS = 30.0
"""Tails so heavy that the extremes waste most of the 256 codes; a normal distribution has 3."""

CLIPPED_SHARE = 1e-3
WEIGHT_DB = 25.0
"""Weights of evenly spread values keep 35 dB and more in 8 bits."""

STARVED_RATIO = 32.0
"""An input that is this much smaller than the shared range has fewer than 8 of 256 codes."""

Placement = Literal["integer", "float"]


@dataclass(frozen=True)
class LayerRecord:
    """How one layer of a quantized artifact bears it.

    Attributes:
        name: As ``StaticInt8.keep_float`` takes it.
        operator: Operator type in the runtime's format.
        sqnr_db: Signal to quantization noise of the layer's output against the float artifact.
        low: Smallest value of the float output seen, and ``high`` the largest.
        kurtosis: Of the float output (3 is a normal distribution).
        saturated: Share of float values beyond the integer range.
        placement: Whether it computes in integers.
        cause: What most likely makes it bad; empty when nothing does.
        advice: What to do about it.
        tried: What the fix did when it was tried; empty when none was.
    """

    name: str
    operator: str
    sqnr_db: float
    low: float
    high: float
    kurtosis: float
    saturated: float
    placement: Placement
    cause: str = ""
    advice: str = ""
    tried: str = ""


@dataclass(frozen=True)
class Layer:
    """One layer as a runtime's probe finds it in the quantized and the float artifact.

    Attributes:
        bounds: Smallest and largest value that the output's integer range can hold, or None.
        sources: Indices of the layers whose outputs it reads.
        weight_db: Signal to noise of its worst channel of weights, or None without weights.
    """

    name: str
    operator: str
    placement: Placement
    bounds: tuple[float, float] | None
    sources: tuple[int, ...]
    weight_db: float | None


class Tally:
    """Running statistics of one layer's output over any number of samples; constant memory."""

    def __init__(self) -> None:
        self.count = 0
        self.low, self.high = math.inf, -math.inf
        self._signal = self._noise = 0.0
        self._clipped = 0
        self._center: float | None = None
        self._moments = np.zeros(4)

    def add(
        self,
        exact: NDArray[Any],
        quantized: NDArray[Any],
        bounds: tuple[float, float] | None,
    ) -> None:
        """Take in one batch of the layer's output, float and quantized, of the same shape."""
        x = exact.astype(np.float64).ravel()
        self.count += x.size
        if not x.size:
            return
        self.low = min(self.low, float(x.min()))
        self.high = max(self.high, float(x.max()))
        self._signal += float(x @ x)
        noise = quantized.astype(np.float64).ravel() - x
        self._noise += float(noise @ noise)
        if bounds is not None:
            self._clipped += int(np.count_nonzero((x < bounds[0]) | (x > bounds[1])))
        if self._center is None:
            # Raw moments about a mean of the first batch lose no digits.
            self._center = float(x.mean())
        d = x - self._center
        square = d * d
        self._moments += (d.sum(), square.sum(), float(square @ d), float(square @ square))

    @property
    def noise_share(self) -> float:
        """Noise power as a share of signal power."""
        return self._noise / self._signal if self._signal else float(self._noise > 0)

    @property
    def sqnr_db(self) -> float:
        """Signal to noise in dB, at most ``MAX_DB``."""
        return decibel(self.noise_share)

    @property
    def clipped(self) -> float:
        """Share of float values beyond the integer range."""
        return self._clipped / self.count if self.count else 0.0

    @property
    def kurtosis(self) -> float:
        """Fourth standardized moment; 0 for a constant."""
        if not self.count:
            return 0.0
        m1, m2, m3, m4 = self._moments / self.count
        variance = m2 - m1**2
        if variance <= 1e-24:
            return 0.0
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return float(fourth / variance**2)


def decibel(noise_share: float) -> float:
    """Return signal to noise in dB for noise power as a share of signal power."""
    if noise_share <= 0:
        return MAX_DB
    return min(-10.0 * math.log10(noise_share), MAX_DB)


def ranked(layers: Sequence[Layer], tallies: Sequence[Tally]) -> tuple[LayerRecord, ...]:
    """Return one record per layer; first the one that itself adds most noise.

    What a layer adds is its noise share less the largest of its inputs': noise that arrives from
    earlier layers is not its fault.
    """
    shares = [t.noise_share for t in tallies]
    rows = []
    for i, (layer, tally) in enumerate(zip(layers, tallies, strict=True)):
        before = max((shares[j] for j in layer.sources), default=0.0)
        cause, advice = _explained(layer, tally, before, [tallies[j] for j in layer.sources])
        record = LayerRecord(
            layer.name, layer.operator, round(tally.sqnr_db, 2), tally.low, tally.high,
            round(tally.kurtosis, 2), tally.clipped, layer.placement, cause, advice,
        )  # fmt: skip
        rows.append((-(shares[i] - before), i, record))
    return tuple(record for _, _, record in sorted(rows, key=lambda row: row[:2]))


def _explained(
    layer: Layer, tally: Tally, before: float, inputs: Sequence[Tally]
) -> tuple[str, str]:
    """Return cause and advice; both empty where the layer is well."""
    if tally.sqnr_db >= BAD_DB:
        return "", ""
    weight_db = MAX_DB if layer.weight_db is None else layer.weight_db
    ratio = _range_ratio(inputs)
    rules = (
        (
            before > 0.5 * tally.noise_share,
            f"noise arrives from earlier layers ({decibel(before):.0f} dB at its inputs)",
            "mend the layers that come before it in this list",
        ),
        (
            weight_db < WEIGHT_DB,
            f"a few weights dwarf those they share a scale with: {weight_db:.0f} dB",
            "one scale per channel if it is not used, else keep the layer in float",
        ),
        (
            tally.clipped > CLIPPED_SHARE,
            f"{tally.clipped:.1%} of its values lie beyond the integer range",
            "calibrate by the extremes (min-max), or on more and more varied samples",
        ),
        (
            tally.kurtosis > HEAVY_KURTOSIS,
            f"outliers stretch its range: kurtosis {tally.kurtosis:.0f}, of a normal one 3",
            "calibrate by percentile or mean squared error, or keep the layer in float",
        ),
        (
            ratio > STARVED_RATIO,
            f"the ranges of its inputs differ {ratio:.0f} times",
            "keep the layer in float: in one integer range the smaller input has few codes",
        ),
    )  # fmt: skip
    for holds, cause, advice in rules:
        if holds:
            return cause, advice
    return (
        f"8 bits are too few for its values between {tally.low:.3g} and {tally.high:.3g}",
        "keep the layer in float",
    )


def _range_ratio(inputs: Sequence[Tally]) -> float:
    sizes = [max(abs(t.low), abs(t.high)) for t in inputs if t.count]
    if len(sizes) < 2 or min(sizes) <= 0:
        return 1.0
    return max(sizes) / min(sizes)
