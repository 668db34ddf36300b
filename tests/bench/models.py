"""Every example model for two profiles: what convert chooses against the best that peers make.

``python -m tests.bench.models [NAME ...]``. A peer competes where its artifact passes the same
quality gates; the profile's objective decides, measured in turn in fresh processes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from aid_edge import isolate, runner
from aid_edge.catalogue.draft import read_draft
from aid_edge.errors import HostError
from aid_edge.evaluate.data import DataSet, load
from aid_edge.model import SourceModel
from aid_edge.pipeline.findings import AccuracyFinding, FidelityFinding, ProfileFinding, Report
from aid_edge.pipeline.gates import accuracy_gate, fidelity_gates
from aid_edge.pipeline.measure import accuracy_finding, fidelity_finding, in_order
from aid_edge.profiles import load_profile
from aid_edge.recipe import Float32, Recipe
from aid_edge.runner import ConversionRequest, ConversionResult
from aid_edge.sources.inspection import NUMPY_NAMES
from aid_edge.sources.opening import open_source
from device_agent.contract.manifest import MAX_BLOB_BYTES
from device_agent.contract.profile import HardwareProfile
from device_agent.contract.tensors import decode_frame
from examples.catalogue import EXAMPLES, Example, prepare
from tests.bench.figures import Bench, Figure, median
from tests.bench.peers import PEERS, SAMPLES, Peer

DATA = Path("build/examples")
BUILD = Path("build/bench/models")
PROFILES = ("generic-x86_64", "raspberry-pi-4")
ROUNDS = 3
RUNS = 60
TIE = 1.03
"""Latencies this close are a tie: medians of a busy machine differ by more."""


@dataclass(frozen=True)
class Rival:
    """An artifact that competes: ours, or a peer's."""

    name: str
    path: Path
    runtime: str
    inputs: dict[str, NDArray[Any]]
    quality: str
    passes: bool


@dataclass(frozen=True)
class Subject:
    """The example's model, the data that all artifacts are judged on, and its own outputs."""

    model: SourceModel
    calibration: DataSet
    fidelity: DataSet
    evaluation: DataSet | None
    source: dict[str, list[NDArray[Any]]]


def models(bench: Bench, names: Sequence[str]) -> None:
    """Convert the examples ``names`` and compare them with what the peers make."""
    for name in names:
        print(f"\n== {name}", flush=True)
        example = prepare(name, DATA)
        report = convert(example)
        if report is None:
            continue
        subject = _subject(example)
        floats = {r: _float(subject, r) for r in ("onnx_runtime", "litert")}
        for found in report.profiles:
            _compare(bench, example, subject, found, floats)


def convert(example: Example) -> Report | None:
    """Run ``aid-edge convert`` on the example as a user would; return the report."""
    out = BUILD / example.name
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "aid_edge.cli", "convert", *example.arguments(DATA)]
    words += [w for p in PROFILES for w in ("--profile", p)]
    done = subprocess.run([*words, "--out", str(out)], check=False, capture_output=True, text=True)
    if not (out / "report.json").is_file():
        print(f"convert failed: {done.stderr.strip()[-2000:]}")
        return None
    print(done.stdout)
    return msgspec.json.decode((out / "report.json").read_bytes(), type=Report)


def _subject(example: Example) -> Subject:
    from aid_edge.sources.inputs import parse_input

    base = DATA / example.data
    source = example.source if ":" in example.source else str(base / example.source)
    model = open_source(
        source,
        weights=base / example.weights if example.weights else None,
        card=base / example.card if example.card else None,
        inputs=[parse_input(text) for text in example.inputs] or None,
    )
    evaluation = (
        load(str(base / example.evaluate), model, labelled=True) if example.evaluate else None
    )
    close = load(str(base / example.fidelity), model) if example.fidelity else evaluation
    if close is None:
        raise ValueError(f"{example.name}: nothing to judge on")
    source = {
        d.digest: in_order(model.outputs, runner.source_outputs(model, d.inputs, batch=16))
        for d in (close, evaluation)
        if d is not None
    }
    calibration = load(str(base / example.calibration), model, limit=SAMPLES)
    return Subject(model, calibration, close, evaluation, source)


def _float(subject: Subject, runtime: str) -> ConversionResult | None:
    """Return the float artifact that peers start from, made by our exporter."""
    out = Path(tempfile.mkdtemp(dir=BUILD, prefix=f"{runtime}-"))
    profile, _ = load_profile(PROFILES[0])
    request = ConversionRequest(
        subject.model, Recipe(Float32()), runtime, profile, subject.fidelity.take(range(4)), out
    )
    try:
        return runner.convert(request)
    except HostError as e:
        print(f"no float {runtime} artifact for the peers: {e}")
        return None


def _compare(
    bench: Bench, example: Example, subject: Subject, found: ProfileFinding,
    floats: dict[str, ConversionResult | None],
) -> None:  # fmt: skip
    profile, _ = load_profile(found.id)
    if found.chosen is None:
        print(f"{example.name} for {found.id}: NO RELEASE: {found.verdict}")
        return
    ours = _ours(example, found)
    made = [
        _rival(peer, start, subject, profile)
        for peer in PEERS
        if (start := floats[peer.runtime]) is not None
    ]
    rivals = [r for r in made if r is not None]
    fit = [r for r in rivals if r.passes]
    objective = found.rank_by[0]
    if objective == "latency":
        figures = _latencies([ours, *fit])
    else:
        figures = [float(r.path.stat().st_size) for r in (ours, *fit)]
    unit = "s" if objective == "latency" else "B"
    for rival in rivals:
        mark = "" if rival.passes else "  (misses the gate)"
        print(f"    {rival.name}: {rival.quality}{mark}")
    best = min(range(len(fit)), key=lambda i: figures[i + 1]) if fit else None
    bench.add(
        Figure(
            f"{example.name} {found.id}: {objective} of {found.chosen}",
            figures[0],
            None if best is None else figures[best + 1],
            unit,
            f"{'no peer passes' if best is None else fit[best].name}; ours {ours.quality}",
            f"at most {TIE:g}x" if best is not None else "",
            n=RUNS * ROUNDS if objective == "latency" else 1,
        )
    )


def _ours(example: Example, found: ProfileFinding) -> Rival:
    folder = BUILD / example.name / found.id / "release"
    draft = read_draft(folder)
    candidate = found.candidate(found.chosen)
    if candidate is None:
        raise ValueError(f"{example.name}: {found.chosen} is not in the report")
    return Rival(
        candidate.id,
        next(p for p in folder.iterdir() if p.stem == "model"),
        candidate.runtime,
        golden_inputs(folder, [t.name for t in draft.inputs]),
        _quality(candidate.accuracy, candidate.fidelity),
        passes=True,
    )


def _rival(
    peer: Peer, start: ConversionResult, subject: Subject, profile: HardwareProfile
) -> Rival | None:
    target = start.artifact.with_name(f"{peer.name.replace(' ', '-')}{start.artifact.suffix}")
    judged = [d for d in (subject.evaluation, subject.fidelity) if d is not None]
    try:
        isolate.run(
            peer.make, start.artifact, start.to_artifact(subject.calibration.inputs), target
        )
        outputs = {
            d.digest: in_order(
                subject.model.outputs,
                runner.predict(target, peer.runtime, start.to_artifact(d.inputs), batch=16),
            )
            for d in judged
        }
    except HostError as e:
        print(f"    {peer.name}: {str(e).splitlines()[0][:160]}")
        return None
    close = fidelity_finding(
        subject.source[subject.fidelity.digest], outputs[subject.fidelity.digest],
        subject.fidelity, classification=subject.evaluation is not None, seed=0,
    )  # fmt: skip
    accurate = None
    if subject.evaluation is not None:
        digest = subject.evaluation.digest
        accurate = accuracy_finding(
            subject.source[digest][0], outputs[digest][0], subject.evaluation
        )
    hard = profile.constraints.hard
    gates = [accuracy_gate(accurate, hard.accuracy_share), *fidelity_gates(close, hard)]
    return Rival(
        peer.name, target, peer.runtime, start.to_artifact(subject.fidelity.take(range(8))),
        _quality(accurate, close), passes=all(g.status != "fail" for g in gates),
    )  # fmt: skip


def _quality(accurate: AccuracyFinding | None, close: FidelityFinding | None) -> str:
    parts = []
    if accurate is not None:
        parts.append(f"top-1 {accurate.candidate:.4f} (drop {accurate.drop:+.4f}, n={accurate.n})")
    if close is not None and close.agreement is not None:
        parts.append(f"agreement {close.agreement:.3f}")
    if close is not None:
        parts.append(f"cosine {close.cosine:.4f}")
    return ", ".join(parts)


def _latencies(rivals: Sequence[Rival]) -> list[float]:
    """Return each one's median latency in seconds, measured in turn, so noise hits all."""
    found: list[list[float]] = [[] for _ in rivals]
    for _ in range(ROUNDS):
        for rival, values in zip(rivals, found, strict=True):
            one = runner.benchmark(rival.path, rival.runtime, rival.inputs, runs=RUNS)
            values.extend(one.latencies_s)
    return [median(values) for values in found]


def golden_inputs(folder: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the inputs of a release's golden vectors, [n, ...] per input of the artifact."""
    tensors, _ = decode_frame((folder / "golden.tensors").read_bytes(), max_bytes=MAX_BLOB_BYTES)
    arrays = {
        t.name: np.frombuffer(t.data, NUMPY_NAMES[t.datatype]).reshape(t.shape) for t in tensors
    }
    found = {}
    for name in names:
        keys = [f"{i}/in/{name}" for i in range(len(arrays))]
        found[name] = np.concatenate([arrays[key] for key in keys if key in arrays])
    return found


def main() -> None:
    """Compare the examples named on the command line, or all."""
    bench = Bench()
    BUILD.mkdir(parents=True, exist_ok=True)
    models(bench, sys.argv[1:] or list(EXAMPLES))
    bench.write(BUILD / "figures.json")


if __name__ == "__main__":
    main()
