"""Recipes: the steps that turn a source model into an artifact.

A recipe is prune, then recover, then quantize; each may be left out. What a recipe asks of a
converter is its :attr:`Recipe.needs`, which a converter offers with its ``methods``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aid_edge.errors import UsageError

DEFAULT_CALIBRATION_SAMPLES = 128
MAX_CALIBRATION_SAMPLES = 4096
DEFAULT_RECOVERY_MINUTES = 10.0
MAX_RECOVERY_MINUTES = 24 * 60.0
MAX_RECOVERY_EPOCHS = 1000
MAX_RECOVERY_SAMPLES = 100_000
"""Inputs that distillation takes; calibration picks its own number of them, evenly spaced."""

DEFAULT_RECOVERY_EPOCHS = 10
DEFAULT_LEARNING_RATE = 0.01
"""With a schedule over so few epochs (OneCycle: Smith & Topin, 2018, arXiv:1708.07120); measured on
Fashion-MNIST: see ``tests/bench/fashion.py``."""

MAX_PRUNING_RATIO = 0.95

Method = Literal["min-max", "percentile", "entropy", "mse", "nncf"]


# --- quantize ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Float32:
    """Weights and activations stay 32-bit floats."""

    title = "float32"
    key = "float32"
    needs = frozenset({"float32"})


@dataclass(frozen=True)
class Float16:
    """Weights are stored as 16-bit floats; the runtime computes in them where it can."""

    title = "float16"
    key = "float16"
    needs = frozenset({"float16"})


@dataclass(frozen=True)
class DynamicInt8:
    """8-bit weights; activation ranges are found at run time. Needs no calibration data."""

    per_channel: bool = True
    key = "dynamic-int8"
    needs = frozenset({"dynamic-int8"})

    @property
    def title(self) -> str:
        """What people call it."""
        return f"dynamic int8 ({'per-channel' if self.per_channel else 'per-tensor'} weights)"


@dataclass(frozen=True)
class WeightOnly:
    """Weights are stored in few bits and computed with as floats.

    Attributes:
        bits: 8 or 4.
        group: Weights that share a scale, along the input dimension; 0 is a whole channel.
    """

    bits: Literal[8, 4] = 8
    group: int = 0

    @property
    def title(self) -> str:
        """What people call it."""
        group = f", groups of {self.group}" if self.group else ""
        return f"weight-only int{self.bits}{group}"

    @property
    def key(self) -> str:
        """Short name for files and tables."""
        return f"weight-only-int{self.bits}"

    @property
    def needs(self) -> frozenset[str]:
        """Methods a converter must have."""
        return frozenset({self.key})


@dataclass(frozen=True)
class Palettized:
    """Weights are indices into a small table of values per tensor (Core ML)."""

    bits: Literal[8, 6, 4, 3, 2, 1] = 6

    @property
    def title(self) -> str:
        """What people call it."""
        return f"palettized, {self.bits} bits"

    @property
    def key(self) -> str:
        """Short name for files and tables."""
        return f"palettized-{self.bits}"

    needs = frozenset({"palettized"})


@dataclass(frozen=True)
class StaticInt8:
    """Weights and activations as 8-bit integers; activation ranges come from calibration data.

    Attributes:
        per_channel: One scale per output channel of the weights; else one per tensor.
        activations: ``uint8`` is what x86 fuses, ``int8`` what Arm and LiteRT fuse; ``int16`` is
            16x8, where the runtime has it.
        symmetric_activations: Zero point fixed (0 for int8, 128 for uint8).
        reduce_range: Weights that cannot saturate the 16-bit sums of x86 without VNNI.
        method: How ranges are chosen from what calibration observed. ``min-max``, ``percentile``,
            ``entropy`` and ``mse`` are the runtime's own quantizer; ``nncf`` is NNCF's algorithm
            with fast bias correction.
        bias_correction: Biases make up for the mean error that quantized weights cause
            (Nagel et al., 2019, https://arxiv.org/abs/1906.04721, section 4.2).
        smooth_quant: Outliers of activations are moved into weights
            (Xiao et al., 2022, https://arxiv.org/abs/2211.10438).
        keep_float: Operators that stay float, by node or output name in the runtime's own float
            artifact; found by measured sensitivity.
        samples: How many calibration samples are used at most.
    """

    per_channel: bool = True
    activations: Literal["uint8", "int8", "int16"] = "uint8"
    symmetric_activations: bool = False
    reduce_range: bool = False
    method: Method = "min-max"
    bias_correction: bool = False
    smooth_quant: bool = False
    keep_float: tuple[str, ...] = ()
    samples: int = DEFAULT_CALIBRATION_SAMPLES

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MAX_CALIBRATION_SAMPLES:
            raise UsageError(
                f"{self.samples} calibration samples; allowed: 1 to {MAX_CALIBRATION_SAMPLES}"
            )

    @property
    def title(self) -> str:
        """What people call it."""
        details = [
            f"{'per-channel' if self.per_channel else 'per-tensor'} weights",
            f"{self.activations} activations",
        ]
        details += ["no saturation"] if self.reduce_range else []
        details += {
            "min-max": [], "nncf": ["NNCF bias correction"],
        }.get(self.method, [f"{self.method} calibration"])  # fmt: skip
        details += ["bias correction"] if self.bias_correction else []
        details += ["SmoothQuant"] if self.smooth_quant else []
        if self.keep_float:
            count = len(self.keep_float)
            details.append(f"{count} operator{'s' if count > 1 else ''} in float")
        name = "static int16x8" if self.activations == "int16" else "static int8"
        return f"{name} ({', '.join(details)})"

    @property
    def key(self) -> str:
        """Short name for files and tables."""
        parts = ["static-int16x8" if self.activations == "int16" else "static-int8"]
        parts += [] if self.method == "min-max" else [self.method]
        parts += ["corrected"] if self.bias_correction else []
        parts += ["smooth"] if self.smooth_quant else []
        parts += [f"mixed{len(self.keep_float)}"] if self.keep_float else []
        return "-".join(parts)

    @property
    def needs(self) -> frozenset[str]:
        """Methods a converter must have."""
        found = {"static-int16x8" if self.activations == "int16" else "static-int8"}
        if self.method != "min-max":
            found.add(f"static-int8-{self.method}")
        if self.bias_correction:
            found.add("bias-correction")
        if self.smooth_quant:
            found.add("smooth-quant")
        if self.keep_float:
            found.add("keep-float")
        return frozenset(found)


Quantize = Float32 | Float16 | DynamicInt8 | WeightOnly | Palettized | StaticInt8


# --- prune and recover ------------------------------------------------------------------------


@dataclass(frozen=True)
class Structured:
    """Whole channels are taken out, by the dependency graph of the net.

    Attributes:
        ratio: Share of channels taken out, 0 to 0.95; of MACs about ``1 - (1 - ratio)**2`` go.
        scope: ``global`` ranks channels over the whole net, ``per-layer`` takes the same share of
            each layer, ``sensitivity`` takes less of layers that bear it badly.
        round_to: Channels that are left are a multiple of this: the profile's channel multiple.
    """

    ratio: float
    scope: Literal["global", "per-layer", "sensitivity"] = "per-layer"
    round_to: int = 8

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.ratio:.0%} of channels pruned ({self.scope})"

    @property
    def key(self) -> str:
        """Short name for files and tables."""
        scope = "" if self.scope == "per-layer" else f"-{self.scope}"
        return f"pruned{round(100 * self.ratio)}{scope}"


@dataclass(frozen=True)
class Unstructured:
    """The smallest weights are set to zero: the file compresses better, nothing gets faster."""

    sparsity: float

    def __post_init__(self) -> None:
        _check_ratio(self.sparsity)

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.sparsity:.0%} of weights zero"

    @property
    def key(self) -> str:
        """Short name for files and tables."""
        return f"sparse{round(100 * self.sparsity)}"


Prune = Structured | Unstructured


@dataclass(frozen=True)
class Recover:
    """Training that wins back accuracy; the best state is kept.

    Attributes:
        method: ``distill`` learns the original's answers on unlabelled inputs; ``fine-tune`` and
            ``qat`` (with quantization simulated) learn labels from a training set.
        minutes: Ends it, whichever of the two comes first.
        epochs: Ends it.
        learning_rate: Peak of the schedule.
    """

    method: Literal["distill", "fine-tune", "qat"] = "distill"
    minutes: float = DEFAULT_RECOVERY_MINUTES
    epochs: int = DEFAULT_RECOVERY_EPOCHS
    learning_rate: float = DEFAULT_LEARNING_RATE

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= MAX_RECOVERY_MINUTES:
            raise UsageError(
                f"{self.minutes:g} minutes of recovery; allowed: over 0 to {MAX_RECOVERY_MINUTES:g}"
            )
        if not 1 <= self.epochs <= MAX_RECOVERY_EPOCHS:
            raise UsageError(f"{self.epochs} epochs; allowed: 1 to {MAX_RECOVERY_EPOCHS}")

    @property
    def title(self) -> str:
        """What people call it."""
        return {"distill": "distilled", "fine-tune": "fine-tuned", "qat": "QAT"}[self.method]

    @property
    def key(self) -> str:
        """Short name for files and tables."""
        return {"distill": "distilled", "fine-tune": "tuned", "qat": "qat"}[self.method]


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= MAX_PRUNING_RATIO:
        raise UsageError(f"pruning by {ratio:g}; allowed: over 0 to {MAX_PRUNING_RATIO:g}")


# --- the whole --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What is done to a source model; carried out for one profile it makes a candidate.

    Attributes:
        prune: Done first, on the source's own graph.
        recover: Done next; QAT also without pruning.
        seed: Of whatever draws random numbers; the same inputs, tools and seed give the same bytes.
    """

    quantize: Quantize = field(default_factory=Float32)
    seed: int = 0
    prune: Prune | None = None
    recover: Recover | None = None

    @property
    def title(self) -> str:
        """What people call the recipe, such as ``static int8 (per-channel weights, ...)``."""
        steps = [s.title for s in (self.prune, self.recover) if s is not None]
        return ", ".join([*steps, self.quantize.title])

    @property
    def key(self) -> str:
        """Short name for files and tables, such as ``pruned50-distilled-static-int8``."""
        steps = [s.key for s in (self.prune, self.recover) if s is not None]
        return "-".join([*steps, self.quantize.key])

    @property
    def needs(self) -> frozenset[str]:
        """Methods a converter must have to carry out what is left once the model is prepared."""
        return self.quantize.needs

    @property
    def is_prepared(self) -> bool:
        """Whether the source model itself is changed before it is converted."""
        return self.prune is not None or self.recover is not None

    @property
    def is_compressed(self) -> bool:
        """Whether it changes the numbers; float32 of the source itself is the baseline."""
        return self.is_prepared or not isinstance(self.quantize, Float32)

    @property
    def needs_calibration(self) -> bool:
        """Whether carrying it out takes calibration data."""
        distills = self.recover is not None and self.recover.method == "distill"
        return isinstance(self.quantize, StaticInt8) or distills
