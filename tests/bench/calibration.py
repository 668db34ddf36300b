"""Memory of calibration: with many samples against few. It should not grow.

``python -m tests.bench.calibration``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from aid_edge import runner
from aid_edge.evaluate.data import load
from aid_edge.profiles import load_profile
from aid_edge.recipe import MAX_CALIBRATION_SAMPLES, Method, Recipe, StaticInt8
from aid_edge.runner import ConversionRequest
from aid_edge.sources.opening import open_source
from examples.catalogue import prepare
from tests.bench.figures import Bench, Figure

DATA = Path("build/examples")
BUILD = Path("build/bench/calibration")
NAME = "resnet8"
FEW = 64
METHODS: tuple[tuple[str, Method], ...] = (
    ("onnx_runtime", "min-max"), ("onnx_runtime", "entropy"), ("litert", "min-max"),
)  # fmt: skip


def calibration(bench: Bench) -> None:
    """Quantize ResNet-8 with few samples and with the most that are allowed."""
    example = prepare(NAME, DATA)
    base = DATA / example.data
    model = open_source(example.source, weights=base / example.weights, card=base / example.card)
    data = load(str(base / "unlabelled.npz"), model, limit=MAX_CALIBRATION_SAMPLES)
    profile, _ = load_profile("raspberry-pi-4")
    for runtime, method in METHODS:
        corrected = runtime == "onnx_runtime"
        peaks = {}
        for count in (FEW, MAX_CALIBRATION_SAMPLES):
            quantize = StaticInt8(
                activations="int8", method=method, bias_correction=corrected, samples=count
            )
            with tempfile.TemporaryDirectory(dir=BUILD) as folder:
                request = ConversionRequest(
                    model, Recipe(quantize), runtime, profile, data.take(range(4)),
                    Path(folder) / "out", calibration=data.inputs,
                )  # fmt: skip
                peaks[count] = runner.convert(request).peak_rss_bytes
        bench.add(
            Figure(
                f"peak memory, {runtime} {method}, {MAX_CALIBRATION_SAMPLES} samples",
                peaks[MAX_CALIBRATION_SAMPLES], peaks[FEW], "B", f"{FEW} samples", "at most 1.1x",
            )
        )  # fmt: skip


def main() -> None:
    """Write ``build/bench/calibration/figures.json``."""
    bench = Bench()
    BUILD.mkdir(parents=True, exist_ok=True)
    calibration(bench)
    bench.write(BUILD / "figures.json")


if __name__ == "__main__":
    main()
