"""Recipes: the steps that turn a source model into an artifact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aid_edge.errors import UsageError

DEFAULT_CALIBRATION_SAMPLES = 128
MAX_CALIBRATION_SAMPLES = 4096


@dataclass(frozen=True)
class Float32:
    """Weights and activations stay 32-bit floats."""

    @property
    def title(self) -> str:
        """What people call it."""
        return "float32"

    @property
    def key(self) -> str:
        """Short name for files and tables."""
        return "float32"


@dataclass(frozen=True)
class StaticInt8:
    """Weights and activations as 8-bit integers; activation ranges come from calibration data.

    Attributes:
        per_channel: One scale per output channel of the weights; else one per tensor.
        activations: ``uint8`` is what x86 fuses, ``int8`` what Arm and LiteRT fuse.
        symmetric_activations: Zero point fixed (0 for int8, 128 for uint8).
        reduce_range: Weights that cannot saturate the 16-bit sums of x86 without VNNI.
        method: ``min-max`` is the runtime's own quantizer on observed extremes; ``nncf`` is NNCF's
            algorithm with fast bias correction (ONNX Runtime only).
        samples: How many calibration samples are used at most.
    """

    per_channel: bool = True
    activations: Literal["uint8", "int8"] = "uint8"
    symmetric_activations: bool = False
    reduce_range: bool = False
    method: Literal["min-max", "nncf"] = "min-max"
    samples: int = DEFAULT_CALIBRATION_SAMPLES

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MAX_CALIBRATION_SAMPLES:
            raise UsageError(
                f"{self.samples} calibration samples; allowed: 1 to {MAX_CALIBRATION_SAMPLES}"
            )

    @property
    def title(self) -> str:
        """What people call it."""
        weights = "per-channel" if self.per_channel else "per-tensor"
        reduced = ", no saturation" if self.reduce_range else ""
        method = "" if self.method == "min-max" else ", NNCF bias correction"
        return f"static int8 ({weights} weights, {self.activations} activations{reduced}{method})"

    @property
    def key(self) -> str:
        """Short name for files and tables."""
        return "static-int8" if self.method == "min-max" else f"static-int8-{self.method}"


Quantize = Float32 | StaticInt8


@dataclass(frozen=True)
class Recipe:
    """What is done to a source model; carried out for one profile it makes a candidate.

    Attributes:
        seed: Of whatever draws random numbers; the same inputs, tools and seed give the same bytes.
    """

    quantize: Quantize = field(default_factory=Float32)
    seed: int = 0

    @property
    def title(self) -> str:
        """What people call the recipe, such as ``static int8 (per-channel weights, ...)``."""
        return self.quantize.title

    @property
    def key(self) -> str:
        """Short name for files and tables, such as ``static-int8``."""
        return self.quantize.key

    @property
    def needs_calibration(self) -> bool:
        """Whether carrying it out takes calibration data."""
        return isinstance(self.quantize, StaticInt8)
