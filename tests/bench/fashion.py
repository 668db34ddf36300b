"""ResNet-8 on Fashion-MNIST: how small it gets, and what that costs of its accuracy.

``python -m tests.bench.fashion [MINUTES]`` converts as a user would: quantized alone, and with
time to prune and to distil without labels. Judged on all 10,000 labelled test images.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from aid_edge.pipeline.findings import CHOSEN, Candidate, ProfileFinding, Report
from examples.catalogue import Example, prepare
from tests.bench.figures import Bench, Figure

DATA = Path("build/examples")
BUILD = Path("build/bench/fashion")
PROFILE = "generic-x86_64"
RUNTIME = "onnx_runtime"
NAME = "resnet8"
UNLABELLED = "unlabelled.npz"
RECOVERY_MINUTES = 15.0
"""Per pruned net; on an idle machine ten epochs end it earlier."""

QUANTIZED = "static-int8-corrected"


def fashion(bench: Bench, minutes: float = RECOVERY_MINUTES) -> None:
    """Convert ResNet-8 twice and add size, multiply-adds and the drop of top-1 in points."""
    example = prepare(NAME, DATA)
    quantized = convert(example, "quantized")
    figures(bench, quantized)
    # Distillation needs many inputs, but no labels.
    pruned = convert(
        replace(example, calibration=UNLABELLED), "pruned", "--recovery-minutes", f"{minutes:g}"
    )
    figures(bench, pruned)


def convert(example: Example, folder: str, *more: str) -> Path:
    """Run ``aid-edge convert`` and return its report.

    Raises:
        RuntimeError: There is none.
    """
    out = BUILD / folder
    shutil.rmtree(out, ignore_errors=True)
    words = [
        sys.executable, "-m", "aid_edge.cli", "convert", *example.arguments(DATA),
        "--profile", PROFILE, "--runtime", RUNTIME, "--out", str(out), *more,
    ]  # fmt: skip
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
    if not (out / "report.json").is_file():
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode} and without a report")
    return out / "report.json"


def figures(bench: Bench, report_file: Path) -> None:
    """Add the figures of the report at ``report_file``: of every pruned net, else of int8 alone.

    Raises:
        RuntimeError: The report has no candidate of that kind that was judged on labelled data.
    """
    report = msgspec.json.decode(report_file.read_bytes(), type=Report)
    for found in report.profiles:
        big = found.candidate(f"{RUNTIME}/float32")
        pruned = [c for c in found.candidates if c.training is not None and c.digest]
        small = pruned or [c for c in found.candidates if c.recipe_key == QUANTIZED and c.digest]
        if big is None or not small or any(c.accuracy is None for c in (big, *small)):
            raise RuntimeError(f"{report_file}: {_why(found)}")
        print(f"\n{found.verdict}")
        for candidate in small:
            _compare(bench, candidate, big)


def _compare(bench: Bench, small: Candidate, big: Candidate) -> None:
    training, accuracy = small.training, small.accuracy
    outcome = "" if small.outcome is None else small.outcome.code
    size, whole = small.value("artifact_bytes"), big.value("artifact_bytes")
    if size is not None:
        goal = "at most 0.15x" if training is not None else "at most 0.27x"
        bench.add(Figure(f"{small.id}: size", size, whole, "B", f"float; {outcome}", goal))
    if training is not None:
        epochs = len(training.points) - 1
        bench.add(
            Figure(
                f"{small.id}: multiply-adds", training.macs_after, training.macs_before, "",
                f"source; {epochs} epochs, ended by {training.stopped}", "at most 0.5x",
            )
        )  # fmt: skip
    if accuracy is not None:
        interval = f"[{100 * accuracy.drop_low:.2f}, {100 * accuracy.drop_high:.2f}]"
        limit = "1" if training is not None else "0.5"
        bench.add(
            Figure(
                f"{small.id}: drop of top-1", 100 * accuracy.drop, None, "points",
                f"{100 * accuracy.candidate:.2f} %, source {100 * accuracy.source:.2f} %, "
                f"95 % {interval}",
                f"at most {limit}", accuracy.n,
            )
        )  # fmt: skip


def _why(found: ProfileFinding) -> str:
    said = [
        f"{c.id}: {c.outcome.text}"
        for c in found.candidates
        if c.outcome is not None and c.outcome.code != CHOSEN
    ]
    return "; ".join(said) or "nothing to compare"


def main(arguments: Sequence[str]) -> None:
    """Write ``build/bench/fashion/figures.json``."""
    bench = Bench()
    BUILD.mkdir(parents=True, exist_ok=True)
    fashion(bench, float(arguments[0]) if arguments else RECOVERY_MINUTES)
    bench.write(BUILD / "figures.json")


if __name__ == "__main__":
    main(sys.argv[1:])
