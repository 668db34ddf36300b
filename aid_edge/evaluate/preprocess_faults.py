"""Finds the usual faults of image preprocessing by trying them on the source model.

Values of 0..255 where 0..1 are wanted, BGR for RGB, axes in another order: each of them leaves a
model that runs and answers wrongly. Where the answers are clearly better under another way to
prepare the same images, the declared one is probably at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aid_edge import runner
from aid_edge.errors import DataError
from aid_edge.evaluate.accuracy import top1
from aid_edge.evaluate.data import DataSet
from aid_edge.evaluate.data.reading import evenly
from aid_edge.evaluate.preprocess import axis_order, image_channels
from aid_edge.evaluate.statistics import mcnemar_p, paired_counts
from aid_edge.model import SourceModel
from device_agent.contract.manifest import Channels, Normalize, PreprocessStep, Rescale

Array = npt.NDArray[Any]
Predict = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Returns the source model's outputs [n, ...] by name, for inputs [n, ...] by name."""

MAX_SAMPLES = 32
"""Each fault is tried on so many samples: a hit or miss of this kind is large."""

MIN_SAMPLES = 8
MIN_GAIN = 0.1
"""A way that gets fewer points more right, or is less surer of its answers, is no finding."""

MIN_CERTAINTY_GAIN = 0.25
MAX_P = 0.05

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SAME = 1e-3


@dataclass(frozen=True)
class Way:
    """One way to prepare the same images.

    Attributes:
        what: What is done otherwise than declared, such as ``values of 0 to 1``.
        quality: Share of right answers, or how sure and various the answers are; 0 to 1.
    """

    what: str
    quality: float


@dataclass(frozen=True)
class Diagnosis:
    """How well the source model answers as declared, and under the usual faults' opposites.

    Attributes:
        measure: ``accuracy`` with labels; else ``certainty``: how sure the answers are of each
            image and how various over all of them, as a share of the largest possible.
        n: Number of images tried.
        declared: Quality as the images are prepared now.
        ways: Every other way that was tried, best first.
        fault: The best of them, where it is clearly better; else None.
        text: What to tell the user; empty where there is nothing to tell.
    """

    measure: Literal["accuracy", "certainty"]
    n: int
    declared: float
    ways: tuple[Way, ...]
    fault: Way | None
    text: str


def diagnose_preprocessing(
    model: SourceModel,
    data: DataSet,
    *,
    predict: Predict | None = None,
    max_samples: int = MAX_SAMPLES,
) -> Diagnosis | None:
    """Return what comes of preparing the images of ``data`` in other ways than declared.

    All ways are run in one call of ``predict``.

    Args:
        model: The source model: a classifier of images.
        data: Images as declared, from files or arrays; with class labels it is judged by accuracy.
        predict: Runs the source model; :func:`aid_edge.runner.source_outputs` unless given.
        max_samples: Bound of the images that are tried.

    Returns:
        None where nothing can be said: no classifier of images, or fewer than ``MIN_SAMPLES``.

    Raises:
        HostError: The source model cannot be run.
    """
    steps = model.card.preprocess if model.card is not None else ()
    if not _applies(model, data, steps):
        return None
    tensor = model.inputs[0]
    chosen = evenly(len(data), max_samples)
    declared = data.take(chosen)[tensor.name]
    ways = _ways(declared, steps, axis_order(tensor, steps))
    stacked = np.concatenate([declared, *ways.values()])
    run = predict or (lambda inputs: runner.source_outputs(model, inputs))
    scores = np.asarray(run({tensor.name: stacked})[model.outputs[0].name], np.float64)
    parts = np.split(scores.reshape(len(stacked), -1), 1 + len(ways))
    if data.labels is None:
        return _by_certainty(parts[0], dict(zip(ways, parts[1:], strict=True)))
    labels = data.labels[chosen]
    hits = {way: top1(part) == labels for way, part in zip(ways, parts[1:], strict=True)}
    return _by_accuracy(top1(parts[0]) == labels, hits)


def _applies(model: SourceModel, data: DataSet, steps: tuple[PreprocessStep, ...]) -> bool:
    classifies = data.labels is not None or (
        model.card is not None and model.card.task == "classification"
    )
    output = model.outputs[0].shape
    if not classifies or not output or output[-1] in {0, 1}:
        return False
    if len(model.inputs) != 1 or model.inputs[0].datatype != "FP32" or data.is_random:
        return False
    if len(data) < MIN_SAMPLES:
        return False
    try:
        image_channels(model.inputs[0], steps)
    except DataError:
        return False
    return True


# --- ways --------------------------------------------------------------------------------------


def _ways(values: Array, steps: tuple[PreprocessStep, ...], order: str) -> dict[str, Array]:
    """Return the same images prepared otherwise, by what is done otherwise."""
    channels_last = values if order == "NHWC" else values.transpose(0, 2, 3, 1)
    n, height, width, channels = channels_last.shape

    def back(images: Array) -> Array:
        moved = images if order == "NHWC" else images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(moved, np.float32)

    pixels = _to_pixels(channels_last, steps)
    found = {what: back(images) for what, images in _ranges(pixels).items()}
    if channels == 3:
        is_bgr = any(isinstance(s, Channels) and s.order == "BGR" for s in steps)
        swapped = _from_pixels(pixels[..., ::-1], channels_last, pixels)
        found["in RGB order" if is_bgr else "in BGR order"] = back(swapped)
    if height == width:
        found["with height and width exchanged"] = back(channels_last.swapaxes(1, 2))
    if order == "NCHW":
        # What lies in memory as HWC was taken for CHW without moving it.
        other = values.reshape(n, height, width, channels).transpose(0, 3, 1, 2)
        found["with the bytes read as height, width, channel"] = np.ascontiguousarray(other)
    else:
        other = values.reshape(n, channels, height, width).transpose(0, 2, 3, 1)
        found["with the bytes read as channel, height, width"] = np.ascontiguousarray(other)
    spread = float(np.ptp(values)) or 1.0
    return {w: a for w, a in found.items() if float(np.abs(a - values).max()) > _SAME * spread}


def _ranges(pixels: Array) -> dict[str, Array]:
    """Return pixels of 0 to 255 in the ranges that models are usually trained on."""
    found = {
        "with values of 0 to 255": pixels,
        "with values of 0 to 1": pixels / 255,
        "with values of -1 to 1": pixels / 127.5 - 1,
    }
    if pixels.shape[-1] == 3:
        found["with ImageNet's mean and deviation"] = (
            pixels / 255 - np.array(_IMAGENET_MEAN)
        ) / np.array(_IMAGENET_STD)
    return found


def _to_pixels(values: Array, steps: tuple[PreprocessStep, ...]) -> Array:
    """Return pixels of 0 to 255, in the declared channel order, that ``values`` were made of.

    Undoes the declared steps. Where that gives no pixels (arrays that were prepared otherwise),
    the range of the values says what they are.
    """
    pixels = values.astype(np.float64)
    for step in reversed(steps):
        if isinstance(step, Normalize):
            pixels = pixels * np.asarray(step.std) + np.asarray(step.mean)
        elif isinstance(step, Rescale) and step.scale:
            pixels = (pixels - step.offset) / step.scale
    low, high = float(pixels.min()), float(pixels.max())
    if low >= -1 and 2 < high <= 256:
        return pixels
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1.01:
        return values.astype(np.float64) * 255
    if low >= -1.01 and high <= 1.01:
        return (values.astype(np.float64) + 1) * 127.5
    if low >= -1 and high <= 256:
        return values.astype(np.float64)
    # Standardized: 0 to 255 over what is there keeps the picture.
    return (values.astype(np.float64) - low) * (255 / (high - low or 1))


def _from_pixels(changed: Array, values: Array, pixels: Array) -> Array:
    """Return changed pixels in the range of ``values``, which ``pixels`` were made of."""
    # Per channel, values are a straight line over pixels.
    made = np.empty_like(changed)
    for c in range(values.shape[-1]):
        x, y = pixels[..., c].ravel(), values[..., c].ravel().astype(np.float64)
        variance = float(np.var(x))
        slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / variance if variance else 0.0
        made[..., c] = (changed[..., c] - x.mean()) * slope + y.mean()
    return made


# --- verdict -----------------------------------------------------------------------------------


def _by_accuracy(
    declared: npt.NDArray[np.bool_], hits: Mapping[str, npt.NDArray[np.bool_]]
) -> Diagnosis:
    base = float(declared.mean())
    ways = sorted((Way(w, float(h.mean())) for w, h in hits.items()), key=lambda w: -w.quality)
    best = ways[0] if ways else None
    if best is not None:
        # Bonferroni: the best of several tries looks good by chance.
        p = len(ways) * mcnemar_p(paired_counts(declared, hits[best.what]))
        if best.quality - base < MIN_GAIN or p > MAX_P:
            best = None
    text = ""
    if best is not None:
        text = (
            f"Preprocessing looks wrong: the source model is right on {base:.0%} of "
            f"{len(declared)} images as declared, and on {best.quality:.0%} {best.what}; "
            "check [[preprocess]] in the model card."
        )
    return Diagnosis("accuracy", len(declared), base, tuple(ways), best, text)


def _by_certainty(declared: Array, scores: Mapping[str, Array]) -> Diagnosis:
    base = certainty(declared)
    ways = sorted((Way(w, certainty(s)) for w, s in scores.items()), key=lambda w: -w.quality)
    best = ways[0] if ways and ways[0].quality - base >= MIN_CERTAINTY_GAIN else None
    text = ""
    if best is not None:
        text = (
            f"Preprocessing may be wrong: over {len(declared)} images the source model's answers "
            f"are surer and more various {best.what} ({best.quality:.0%}) than as declared "
            f"({base:.0%}); check [[preprocess]] in the model card, or give labels to be certain."
        )
    return Diagnosis("certainty", len(declared), base, tuple(ways), best, text)


def certainty(scores: Array) -> float:
    """Return how sure answers are of each sample and how various over all of them, 0 to 1.

    The mutual information of sample and answer, the entropy of the mean answer less the mean
    entropy (Bridle, Heading and MacKay 1991, "Unsupervised classifiers, mutual information and
    'phantom targets'", NIPS 4), over the most that n samples of k classes can have. Sureness alone
    would not do: wrongly scaled inputs make many models very sure of always the same class.

    Args:
        scores: Probabilities, or scores before a softmax, [n, classes].
    """
    is_probability = scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-2)
    if is_probability:
        shares = scores / scores.sum(axis=1, keepdims=True)
    else:
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = powers / powers.sum(axis=1, keepdims=True)
    most = np.log(min(scores.shape))
    gained = _entropy(shares.mean(axis=0)) - float(np.mean([_entropy(row) for row in shares]))
    return float(np.clip(gained / most, 0, 1)) if most > 0 else 0.0


def _entropy(shares: Array) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())
