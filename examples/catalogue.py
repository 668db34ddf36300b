"""The example models with what they are converted from, calibrated on and judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples import fashion_nets, har
from examples.fetch import fetch

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Example:
    """One model; paths are relative to the folder of all examples.

    Attributes:
        data: The set that ``examples.fetch`` brings.
        source: What ``aid-edge convert`` takes.
        evaluate: Labelled data, where there are any that decide.
        inputs: Shapes given to inputs that leave them open, ``NAME=SHAPE``.
    """

    name: str
    data: str
    source: str
    calibration: str
    fidelity: str
    weights: str = ""
    card: str = ""
    evaluate: str = ""
    inputs: tuple[str, ...] = ()
    metric: str = ""

    def arguments(self, folder: Path) -> list[str]:
        """Return the words of ``aid-edge convert`` up to profiles and output."""
        base = folder / self.data
        source = self.source if ":" in self.source else str(base / self.source)
        words = [source, "--calibration", str(base / self.calibration)]
        for option, value in (
            ("--weights", self.weights), ("--model-card", self.card),
            ("--evaluate", self.evaluate), ("--fidelity", self.fidelity),
        ):  # fmt: skip
            words += [option, str(base / value)] if value else []
        for given in self.inputs:
            words += ["--input", given]
        return words + (["--metric", self.metric] if self.metric else [])


EXAMPLES = {
    example.name: example
    for example in (
        Example(
            "efficientnet-lite0", "efficientnet-lite0",
            f"{ROOT}/efficientnet_lite0.py:efficientnet_lite0", "calibration", "fidelity",
            weights="weights.pth", evaluate="evaluation",
        ),
        Example("cifar-10", "cifar-10", "model.h5", "calibration.npz", "fidelity.npz",
                evaluate="evaluation"),
        Example(
            "resnet8", "fashion-mnist", f"{ROOT}/fashion_nets.py:resnet8", "calibration.npz", "",
            weights="resnet8.safetensors", card="resnet8.toml", evaluate="evaluation.npz",
        ),
        Example(
            "dscnn", "fashion-mnist", f"{ROOT}/fashion_nets.py:dscnn", "calibration.npz", "",
            weights="dscnn.safetensors", card="dscnn.toml", evaluate="evaluation.npz",
        ),
        Example(
            "har", "har", f"{ROOT}/har.py:har_net", "calibration.npz", "",
            weights="har.safetensors", evaluate="evaluation.npz",
        ),
        Example(
            "minilm", "minilm", f"{ROOT}/minilm.py:minilm", "calibration.npz", "fidelity.npz",
            weights="weights.safetensors",
        ),
        Example("ocr-recognizer", "ocr-recognizer", "recognizer.onnx", "calibration.npz",
                "fidelity.npz", inputs=("x=-1x3x48x320",)),
        Example("ocr-detector", "ocr-detector", "detector.onnx", "calibration.npz",
                "fidelity.npz", inputs=("x=-1x3x320x320",)),
        Example("silero-vad", "silero-vad", "silero_vad.onnx", "calibration.npz", "fidelity.npz"),
        Example("centerface", "centerface", "centerface.onnx", "calibration.npz", "fidelity.npz",
                inputs=("input.1=-1x3x224x224",)),
    )
}  # fmt: skip


def prepare(name: str, folder: Path) -> Example:
    """Fetch and train what the example ``name`` needs into ``folder``; return the example."""
    example = EXAMPLES[name]
    base = fetch(example.data, folder)
    if name in fashion_nets.NETS:
        fashion_nets.train(name, base)
    if name == "har":
        har.train(base)
    return example
