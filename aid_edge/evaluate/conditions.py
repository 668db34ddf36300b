"""Real-life conditions: what bad light, a shaken camera or a missing word does to the answers.

Inputs are spoiled as the model takes them, after preprocessing. Each condition has five severities.
Where ImageNet-C has the condition, they are its own (Hendrycks and Dietterich 2019,
arXiv:1903.12261, with the authors' ``make_imagenet_c.py``), sizes in pixels scaled from 224; the
others are ours, and marked so below.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling

from aid_edge.errors import DataError
from aid_edge.evaluate.modality import Kind, Modality

SEVERITIES = (1, 3, 5)
"""Of the five, those that are measured unless others are asked for."""

REFERENCE_PIXELS = 224
MIN_SAMPLES, MAX_SAMPLES = 32, 256
MAX_VALUES = 10_000_000
"""Input values per condition and severity: bounds samples of large inputs."""

Array = npt.NDArray[Any]
_Spoil = Callable[[Array, float, Modality, np.random.Generator], Array]


@dataclass(frozen=True)
class Condition:
    """One way in which inputs go bad.

    Attributes:
        name: Stable.
        title: For people.
        levels: What each severity means, for severities 1 to 5.
        meaning: What a level is, with its unit.
        source: Where the levels are from.
    """

    name: str
    kind: Kind
    title: str
    levels: tuple[float, float, float, float, float]
    meaning: str
    source: str


_IMAGENET_C = "ImageNet-C"
_OWN = "own choice"

CONDITIONS: tuple[Condition, ...] = (
    Condition("dark", "image", "bad light", (1.8, 3, 5, 9, 16), "linear light divided by", _OWN),
    Condition("contrast", "image", "haze", (0.4, 0.3, 0.2, 0.1, 0.05), "contrast left",
              _IMAGENET_C),
    Condition("blur", "image", "out of focus", (1, 2, 3, 4, 6), "Gaussian sigma, px of 224",
              _IMAGENET_C),
    Condition("motion", "image", "camera shaken", (5, 9, 15, 21, 31), "path, px of 224", _OWN),
    Condition("noise", "image", "sensor noise", (0.08, 0.12, 0.18, 0.26, 0.38),
              "standard deviation, share of range", _IMAGENET_C),
    Condition("missing", "image", "part missing", (0.05, 0.1, 0.2, 0.35, 0.5),
              "share of the area hidden by a square", _OWN),
    Condition("jpeg", "image", "strong JPEG", (25, 18, 15, 10, 7), "quality", _IMAGENET_C),
    Condition("tilt", "image", "camera tilted", (3, 7, 12, 20, 30), "degrees", _OWN),
    Condition("noise", "series", "noise", (20, 15, 10, 5, 0), "signal to noise ratio, dB", _OWN),
    Condition("gap", "series", "piece lost", (0.02, 0.05, 0.1, 0.2, 0.35),
              "share of the time lost", _OWN),
    Condition("quiet", "series", "weak signal", (6, 12, 18, 24, 30), "attenuation, dB", _OWN),
    Condition("clipped", "series", "overdriven", (0.01, 0.03, 0.08, 0.15, 0.25),
              "share of values cut", _OWN),
    Condition("dead-channel", "series", "channel dead", (0.1, 0.2, 0.3, 0.4, 0.5),
              "share of channels, at least one", _OWN),
    Condition("missing-words", "tokens", "words missing", (0.02, 0.05, 0.1, 0.2, 0.35),
              "share of tokens lost, at least one", _OWN),
    Condition("word-order", "tokens", "words swapped", (0.02, 0.05, 0.1, 0.2, 0.35),
              "share of tokens that swap with the next, at least one pair", _OWN),
    Condition("wrong-words", "tokens", "wrong words", (0.02, 0.05, 0.1, 0.2, 0.35),
              "share of tokens replaced by others of the data, at least one", _OWN),
    Condition("cut-off", "tokens", "end missing", (0.1, 0.25, 0.4, 0.55, 0.7),
              "share of the sentence cut off", _OWN),
    Condition("missing", "table", "values missing", (0.02, 0.05, 0.1, 0.2, 0.35),
              "share of values that become the mean, at least one", _OWN),
    Condition("noise", "table", "inexact values", (0.02, 0.05, 0.1, 0.15, 0.25),
              "standard deviation, share of range", _OWN),
)  # fmt: skip


def suited(modality: Modality) -> tuple[Condition, ...]:
    """Return the conditions that inputs of this kind meet in real life."""
    has_channels = modality.axis is not None and modality.low.size > 1
    return tuple(
        c
        for c in CONDITIONS
        if c.kind == modality.kind and (c.name != "dead-channel" or has_channels)
    )


def samples_for(n: int, values_per_sample: int) -> int:
    """Return how many of ``n`` samples each condition is measured on: bounded cost."""
    allowed = MAX_VALUES // max(1, values_per_sample)
    return min(n, max(MIN_SAMPLES, min(MAX_SAMPLES, allowed)))


def apply(
    name: str, severity: int, inputs: Mapping[str, Array], modality: Modality, seed: int = 0
) -> dict[str, Array]:
    """Return spoiled copies of ``inputs``, in the same shapes and element types.

    Each sample draws from a generator of its own, so that it comes out the same in whatever
    company. Masks beside tokens lose the same places as the tokens.

    Args:
        name: Of a condition that suits the modality.
        severity: 1 (mild) to 5.
        inputs: Array [n, ...] per input.
        modality: What the main input holds.
        seed: Of all random choices.

    Raises:
        DataError: There is no such condition or severity for the modality.
    """
    known = {c.name: c for c in suited(modality)}
    if name not in known or not 1 <= severity <= len(known[name].levels):
        raise DataError(
            f"there is no condition {name!r} of severity {severity} for {modality.kind} inputs",
            hint=f"Known: {', '.join(known)}; severities 1 to 5.",
        )
    level = known[name].levels[severity - 1]
    main = inputs[modality.input]
    spoiled = {key: array.copy() for key, array in inputs.items()}
    for i in range(len(main)):
        random = np.random.default_rng(_seed(name, i, seed))
        if modality.kind == "tokens":
            order, tokens = _SENTENCES[name](main[i], level, modality, random)
            for key, array in inputs.items():
                if array.shape == main.shape:
                    spoiled[key][i] = _rearranged(array[i], order, modality, key)
            spoiled[modality.input][i, : len(order)] = tokens
            continue
        changed = _SPOILERS[modality.kind, name](
            main[i].astype(np.float64), level, modality, random
        )
        if main.dtype.kind in "iu":
            bounds = np.iinfo(main.dtype)
            changed = np.clip(np.rint(changed), bounds.min, bounds.max)
        spoiled[modality.input][i] = changed
    return spoiled


def _seed(name: str, index: int, seed: int) -> int:
    # Not of the severity: a worse one hides more of the same sample, not other parts of it.
    text = f"{name} {index} {seed}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


# --- images: [H, W, C] with values 0 to 1 --------------------------------------------------------


def _on_pixels(work: Callable[[Array, float, np.random.Generator], Array]) -> _Spoil:
    """Return ``work``, which takes pixels [H, W, C] of 0 to 1, for the model's samples."""

    def spoil(sample: Array, level: float, modality: Modality, random: Any) -> Array:
        span = np.where(modality.high > modality.low, modality.high - modality.low, 1.0)
        axis = modality.axis or 0
        pixels = np.moveaxis((sample - modality.low) / span, axis, -1)
        changed = np.clip(work(np.clip(pixels, 0, 1), level, random), 0, 1)
        return np.moveaxis(changed, -1, axis) * span + modality.low

    return spoil


def scaled(pixels: Array, length_px: float) -> float:
    """Return a length on an image of 224 pixels for the size of ``pixels`` [H, W, C]."""
    return float(length_px * min(pixels.shape[:2]) / REFERENCE_PIXELS)


def _dark(pixels: Array, divisor: float, _: np.random.Generator) -> Array:
    # Light adds up linearly; pixel values are about its 2.2th root (sRGB, IEC 61966-2-1).
    return np.asarray((pixels**2.2 / divisor) ** (1 / 2.2))


def _contrast(pixels: Array, left: float, _: np.random.Generator) -> Array:
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return np.asarray((pixels - mean) * left + mean)


def gaussian(pixels: Array, sigma: float) -> Array:
    """Return ``pixels`` [H, W, C] blurred with a Gaussian of ``sigma`` pixels, edges repeated."""
    reach = max(1, int(np.ceil(3 * sigma)))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        widths = [(reach, reach) if i == axis else (0, 0) for i in range(pixels.ndim)]
        padded = np.pad(pixels, widths, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis=axis)
        pixels = windows @ weights
    return pixels


_SMALL_SIGMA_PX = {1: 0.4, 2: 0.6, 3: 0.7, 4: 0.8, 6: 1.0}
"""Least blur for small pictures, by sigma on 224 pixels: CIFAR-10-C's (``make_cifar_c.py``)."""


def _blur(pixels: Array, sigma: float, _: np.random.Generator) -> Array:
    return gaussian(pixels, max(scaled(pixels, sigma), _SMALL_SIGMA_PX[int(sigma)]))


_SMALL_PATH_PX = {5: 1.0, 9: 1.5, 15: 2.0, 21: 2.5, 31: 3.0}
"""Least path on small pictures, by that on 224 pixels: less than a pixel would shake nothing."""


def _motion(pixels: Array, path: float, random: np.random.Generator) -> Array:
    length = max(_SMALL_PATH_PX[int(path)], scaled(pixels, path))
    angle = random.uniform(-np.pi / 4, np.pi / 4)
    times = np.linspace(-length / 2, length / 2, 2 * int(np.ceil(length)) + 1)
    path_px = [(t * np.sin(angle), t * np.cos(angle)) for t in times]
    move = _shifted if length < _WHOLE_PIXELS else _moved
    return np.asarray(np.mean([move(pixels, *step) for step in path_px], axis=0))


_WHOLE_PIXELS = 6.0
"""Length of a path from which its steps are rounded to whole pixels: ten times as fast."""


def _moved(pixels: Array, down: float, right: float) -> Array:
    """Return ``pixels`` moved by whole pixels, edges repeated."""
    height, width = pixels.shape[:2]
    rows = np.clip(np.arange(height) - round(down), 0, height - 1)
    columns = np.clip(np.arange(width) - round(right), 0, width - 1)
    return np.asarray(pixels[rows][:, columns])


def _shifted(pixels: Array, down: float, right: float) -> Array:
    """Return ``pixels`` moved by parts of a pixel, bilinear, edges repeated."""
    height, width = pixels.shape[:2]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, other = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down_part = (rows - top)[:, None, None]
    right_part = (columns - left)[None, :, None]
    upper = pixels[top][:, left] * (1 - right_part) + pixels[top][:, other] * right_part
    lower = pixels[bottom][:, left] * (1 - right_part) + pixels[bottom][:, other] * right_part
    return np.asarray(upper * (1 - down_part) + lower * down_part)


def _noise(pixels: Array, deviation: float, random: np.random.Generator) -> Array:
    return pixels + random.normal(0.0, deviation, pixels.shape)


def _missing(pixels: Array, share: float, random: np.random.Generator) -> Array:
    height, width = pixels.shape[:2]
    high = min(height, max(1, round(height * share**0.5)))
    wide = min(width, max(1, round(width * share**0.5)))
    top, left = random.integers(height - high + 1), random.integers(width - wide + 1)
    changed = pixels.copy()
    changed[top : top + high, left : left + wide] = 0.0  # black, as a finger on the lens
    return changed


def _as_image(pixels: Array) -> Image.Image:
    whole = np.rint(pixels * 255).astype(np.uint8)
    return Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole)


def _from_image(image: Image.Image, like: Array) -> Array:
    return (np.asarray(image, np.float64) / 255).reshape(like.shape)


def _jpeg(pixels: Array, quality: float, _: np.random.Generator) -> Array:
    buffer = io.BytesIO()
    _as_image(pixels).save(buffer, "JPEG", quality=int(quality))
    with Image.open(buffer) as image:
        return _from_image(image, pixels)


def _tilt(pixels: Array, degrees: float, random: np.random.Generator) -> Array:
    angle = degrees * random.choice((-1, 1))
    # Padded by its own edge first, so that turned corners are not black.
    margin = (max(pixels.shape[:2]) + 1) // 2
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    turned = _from_image(_as_image(wide).rotate(angle, Resampling.BILINEAR), wide)
    return turned[margin:-margin, margin:-margin]


# --- series: [time], [time, channels] or [channels, time] ----------------------------------------


def _series_noise(
    sample: Array, ratio_db: float, modality: Modality, random: np.random.Generator
) -> Array:
    time = _time_axis(sample, modality)
    power = np.mean((sample - sample.mean(axis=time, keepdims=True)) ** 2)
    return sample + random.normal(0.0, np.sqrt(power / 10 ** (ratio_db / 10)), sample.shape)


def _gap(sample: Array, share: float, modality: Modality, random: np.random.Generator) -> Array:
    time = _time_axis(sample, modality)
    length = sample.shape[time]
    lost = max(1, round(length * share))
    start = int(random.integers(length - lost + 1))
    changed = sample.copy()
    places = tuple(
        slice(start, start + lost) if i == time else slice(None) for i in range(sample.ndim)
    )
    # What arrives when nothing does: silence of a waveform, the usual value of a sensor.
    changed[places] = np.broadcast_to(modality.mean, sample.shape)[places]
    return changed


def _quiet(sample: Array, loss_db: float, modality: Modality, _: np.random.Generator) -> Array:
    return np.asarray((sample - modality.mean) * 10 ** (-loss_db / 20) + modality.mean)


def _clipped(sample: Array, share: float, modality: Modality, _: np.random.Generator) -> Array:
    distance = np.abs(sample - modality.mean)
    limit = np.quantile(distance, 1 - share)
    return np.asarray(modality.mean + np.clip(sample - modality.mean, -limit, limit))


def _dead(sample: Array, share: float, modality: Modality, random: np.random.Generator) -> Array:
    axis = modality.axis or 0
    channels = sample.shape[axis]
    count = max(1, round(channels * share))
    changed = np.moveaxis(sample.copy(), axis, 0)
    mean = np.moveaxis(np.broadcast_to(modality.mean, sample.shape), axis, 0)
    picked = random.permutation(channels)[:count]
    changed[picked] = mean[picked]
    return np.moveaxis(changed, 0, axis)


def _time_axis(sample: Array, modality: Modality) -> int:
    return sample.ndim - 1 if modality.axis is None else 1 - modality.axis


# --- tokens: the order in which places are taken, and the tokens ---------------------------------


def words(sentence: Array, modality: Modality) -> Array:
    """Return the places of a sentence [length] that hold words: neither padding nor frame."""
    return np.flatnonzero(~np.isin(sentence, list(modality.special)))


def _count(places: Array, share: float) -> int:
    return min(len(places), max(1, round(len(places) * share)))


def _without(sentence: Array, lost: Array) -> tuple[Array, Array]:
    order = np.setdiff1d(np.arange(len(sentence)), lost)
    return order, sentence[order]


def _drop(
    sentence: Array, share: float, modality: Modality, random: np.random.Generator
) -> tuple[Array, Array]:
    places = words(sentence, modality)
    # One word is always left: an empty sentence is no condition of life.
    lost = random.permutation(places)[: min(_count(places, share), max(0, len(places) - 1))]
    return _without(sentence, lost)


def _cut(
    sentence: Array, share: float, modality: Modality, _: np.random.Generator
) -> tuple[Array, Array]:
    places = words(sentence, modality)
    keep = max(1, len(places) - _count(places, share))
    return _without(sentence, places[keep:])


def _swap(
    sentence: Array, share: float, modality: Modality, random: np.random.Generator
) -> tuple[Array, Array]:
    places = words(sentence, modality)
    tokens = sentence.copy()
    if len(places) > 1:
        pairs = len(places) // 2
        for i in random.permutation(pairs)[: _count(places, share)]:
            one, other = places[2 * i], places[2 * i + 1]
            tokens[one], tokens[other] = sentence[other], sentence[one]
    return np.arange(len(sentence)), tokens


def _replace(
    sentence: Array, share: float, modality: Modality, random: np.random.Generator
) -> tuple[Array, Array]:
    places = words(sentence, modality)
    tokens = sentence.copy()
    if len(places) and modality.vocabulary:
        known = np.asarray(modality.vocabulary)
        drawn = random.integers(len(known), size=len(places))
        drawn = np.where(known[drawn] == sentence[places], (drawn + 1) % len(known), drawn)
        picked = random.permutation(len(places))[: _count(places, share)]
        tokens[places[picked]] = known[drawn[picked]]
    return np.arange(len(sentence)), tokens


def _rearranged(row: Array, order: Array, modality: Modality, name: str) -> Array:
    """Return ``row`` with its places in ``order``; what is left over at the end is padding."""
    changed = np.full_like(row, modality.pad if name == modality.input else 0)
    changed[: len(order)] = row[order]
    return changed


# --- tables --------------------------------------------------------------------------------------


def _holes(sample: Array, share: float, modality: Modality, random: np.random.Generator) -> Array:
    changed = sample.copy()
    picked = random.permutation(sample.size)[: max(1, round(sample.size * share))]
    changed[picked] = modality.mean[picked]
    return changed


def _inexact(sample: Array, share: float, modality: Modality, random: np.random.Generator) -> Array:
    return np.asarray(
        sample + random.normal(0.0, 1.0, sample.shape) * share * (modality.high - modality.low)
    )


_SPOILERS: dict[tuple[str, str], _Spoil] = {
    ("image", "dark"): _on_pixels(_dark),
    ("image", "contrast"): _on_pixels(_contrast),
    ("image", "blur"): _on_pixels(_blur),
    ("image", "motion"): _on_pixels(_motion),
    ("image", "noise"): _on_pixels(_noise),
    ("image", "missing"): _on_pixels(_missing),
    ("image", "jpeg"): _on_pixels(_jpeg),
    ("image", "tilt"): _on_pixels(_tilt),
    ("series", "noise"): _series_noise,
    ("series", "gap"): _gap,
    ("series", "quiet"): _quiet,
    ("series", "clipped"): _clipped,
    ("series", "dead-channel"): _dead,
    ("table", "missing"): _holes,
    ("table", "noise"): _inexact,
}
_SENTENCES: dict[
    str, Callable[[Array, float, Modality, np.random.Generator], tuple[Array, Array]]
] = {
    "missing-words": _drop,
    "word-order": _swap,
    "wrong-words": _replace,
    "cut-off": _cut,
}
