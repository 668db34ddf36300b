"""Turns what a candidate did into figures: size, latency, memory, accuracy, fidelity."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zstandard

from aid_edge.errors import ConversionError
from aid_edge.evaluate import accuracy, fidelity
from aid_edge.evaluate.data import DataSet
from aid_edge.evaluate.statistics import CONFIDENCE, quantile_interval
from aid_edge.pipeline.findings import AccuracyFinding, FidelityFinding, MetricFinding
from aid_edge.pipeline.search.space import VNNI
from aid_edge.runner import Benchmark
from device_agent.contract.manifest import Measurement
from device_agent.contract.profile import Cost, HardwareProfile
from device_agent.contract.tensors import TensorInfo

ZSTD_LEVEL = 12
"""What the download size is measured at; higher levels gain a per cent and cost minutes."""

Array = npt.NDArray[Any]
LatencySource = Literal["host", "calibrated", "uncalibrated"]
_QUANTILES = {"latency_p50": 0.5, "latency_p95": 0.95, "latency_p99": 0.99}
_SAME_ARCH = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Host:
    """The machine that measures.

    Attributes:
        arch: As profiles name it.
        title: Processor and system, for people.
        saturates: Whether 8-bit products are summed in 16 bits that overflow: x86 without VNNI.
    """

    arch: str
    title: str
    saturates: bool = False


def this_host() -> Host:
    """Return the machine that this runs on."""
    machine = platform.machine().lower()
    arch = _SAME_ARCH.get(machine, machine)
    facts: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    except OSError:
        pass  # not Linux
    cpu = facts.get("model name") or platform.processor() or machine
    saturates = arch == "x86_64" and "flags" in facts and not VNNI & set(facts["flags"].split())
    return Host(arch, f"{cpu}, {platform.system()} {machine}", saturates)


def latency_source(profile: HardwareProfile, host: Host) -> LatencySource:
    """Return what latency figures made on ``host`` say about devices of ``profile``."""
    if profile.cost is not None:
        return "calibrated"
    return "host" if profile.arch == host.arch else "uncalibrated"


def size_figures(artifact: Path) -> list[Measurement]:
    """Return the size of the artifact as a file, and as it travels compressed.

    Raises:
        OSError: It cannot be read.
    """
    data = artifact.read_bytes()
    packed = len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data))
    how = f"zstd level {ZSTD_LEVEL} of the file"
    return [
        Measurement("artifact_bytes", len(data), "B", "host", "size of the file", 1),
        Measurement("download_bytes", packed, "B", "host", how, 1),
    ]


def run_figures(
    benchmarks: Sequence[Benchmark], profile: HardwareProfile, host: Host
) -> list[Measurement]:
    """Return latency and memory; several benchmarks of one artifact are pooled.

    Figures of another architecture are estimates: scaled by the profile's cost table, or, without
    one, the host's own figures marked as uncalibrated.
    """
    latencies = [value for b in benchmarks for value in b.latencies_s]
    first = benchmarks[0]
    how = (
        f"batch 1, {first.threads} thread{'s' if first.threads > 1 else ''}, "
        f"{len(benchmarks)} fresh process{'es' if len(benchmarks) > 1 else ''} of "
        f"{len(first.latencies_s)} runs after {first.warmup}, on {host.title}"
    )
    source = latency_source(profile, host)
    figures = [_latency(what, latencies, how, source, profile.cost) for what in _QUANTILES]
    is_own = profile.arch == host.arch
    memory = max(b.peak_rss_bytes for b in benchmarks)
    load = float(np.median([b.load_s for b in benchmarks]))
    where: Literal["host", "estimate"] = "host" if is_own else "estimate"
    note = "" if is_own else f"; taken over for {profile.arch}, uncalibrated"
    peak = f"peak resident memory of the process with Python and runtime; {how}{note}"
    return [
        *figures,
        Measurement("peak_rss", memory, "B", where, peak, len(benchmarks)),
        Measurement("load_time", load, "s", where, f"median; {how}{note}", len(benchmarks)),
    ]


def _latency(
    what: str, values: Sequence[float], how: str, source: LatencySource, cost: Cost | None
) -> Measurement:
    q = _QUANTILES[what]
    value = float(np.quantile(values, q))
    interval = quantile_interval(values, q)
    if source == "host":
        return Measurement(what, value, "s", "host", how, len(values), interval.low, interval.high)
    if cost is None:
        note = f"not scaled: uncalibrated for this architecture; {how}"
        return Measurement(
            what, value, "s", "estimate", note, len(values), interval.low, interval.high
        )
    note = (
        f"host latency x {cost.latency_factor:g} (cost table of {cost.date}, {cost.points} points, "
        f"median error {cost.error:.0%}); {how}"
    )
    low, high = interval.low * (1 - cost.error), interval.high * (1 + cost.error)
    factor = cost.latency_factor
    return Measurement(
        what, value * factor, "s", "estimate", note, len(values), low * factor, high * factor
    )


def in_order(tensors: Sequence[TensorInfo], outputs: Mapping[str, Array]) -> list[Array]:
    """Return outputs in the order of ``tensors``.

    Names are matched where they are the same; else the order in which the runtime gave them is
    the model's, as ONNX and TFLite files both keep it.

    Raises:
        ConversionError: There are fewer or more outputs.
    """
    if len(tensors) != len(outputs):
        raise ConversionError(f"has {len(outputs)} outputs; the source has {len(tensors)}")
    if all(t.name in outputs for t in tensors):
        return [outputs[t.name] for t in tensors]
    return list(outputs.values())


def accuracy_finding(source: Array, candidate: Array, data: DataSet) -> AccuracyFinding:
    """Return top-1 accuracy of candidate and source on the labelled ``data``.

    Args:
        source: First output of the source model, [n, classes].
        candidate: First output of the candidate, [n, classes].
        data: With labels.

    Raises:
        ConversionError: The data have no labels.
    """
    if data.labels is None:
        raise ConversionError(f"{data.spec} has no labels")
    paired = accuracy.compare(source, candidate, data.labels, data.groups)
    return AccuracyFinding(
        n=paired.n,
        source=paired.source,
        candidate=paired.candidate,
        low=paired.candidate_interval.low,
        high=paired.candidate_interval.high,
        drop=paired.drop,
        drop_low=paired.drop_interval.low,
        drop_high=paired.drop_interval.high,
        losses=paired.counts.first_only,
        gains=paired.counts.second_only,
        p_value=paired.p_value,
        detectable_drop=paired.detectable_drop,
    )


def fidelity_finding(
    source: Sequence[Array],
    candidate: Sequence[Array],
    data: DataSet,
    *,
    classification: bool,
    seed: int,
) -> FidelityFinding:
    """Return closeness of the candidate's outputs to the source's on ``data``.

    Raises:
        ConversionError: Outputs are not finite or of other shapes.
    """
    found = fidelity.compare(
        source, candidate, classification=classification, groups=data.groups, seed=seed
    )
    agreement, cosine, sqnr = found.agreement_interval, found.cosine_interval, found.sqnr_interval
    return FidelityFinding(
        data=data.spec,
        n=found.n,
        units=found.units,
        agreement=found.agreement,
        agreement_low=None if agreement is None else agreement.low,
        agreement_high=None if agreement is None else agreement.high,
        cosine=found.cosine,
        cosine_low=None if cosine is None else cosine.low,
        cosine_high=None if cosine is None else cosine.high,
        cosine_min=found.cosine_min,
        max_abs=found.max_abs,
        sqnr_db=found.sqnr_db,
        sqnr_low=None if sqnr is None else sqnr.low,
        sqnr_high=None if sqnr is None else sqnr.high,
    )


def quality_figures(
    found_accuracy: AccuracyFinding | None,
    found: FidelityFinding | None,
    metrics: Sequence[MetricFinding] = (),
) -> list[Measurement]:
    """Return accuracy and fidelity as measurements for the release's manifest."""
    level = f"{CONFIDENCE:.0%}"
    figures = []
    if found_accuracy is not None:
        a = found_accuracy
        paired = f"source less candidate on the same samples, Tango's paired {level} interval"
        figures += [
            Measurement(
                "top1", a.candidate, "share", "host", f"Wilson {level} interval", a.n, a.low, a.high
            ),
            Measurement("top1_drop", a.drop, "share", "host", paired, a.n, a.drop_low, a.drop_high),
        ]
    for m in metrics:
        paired = f"how much worse than the source on the same samples, paired {level} interval"
        figures += [
            Measurement(m.name, m.candidate, m.unit, "host", f"source: {m.source:.6g}", m.n),
            Measurement(
                f"{m.name}_drop", m.drop, m.unit, "host", paired, m.n, m.drop_low, m.drop_high
            ),
        ]
    if found is not None:
        how = f"against the source model, {found.units} independent inputs, {level} interval"
        if found.agreement is not None:
            figures.append(
                Measurement(
                    "agreement", found.agreement, "share", "host", f"top-1 {how}", found.n,
                    found.agreement_low, found.agreement_high,
                )
            )  # fmt: skip
        figures += [
            Measurement(
                "cosine", found.cosine, "cosine", "host", f"mean {how}", found.n,
                found.cosine_low, found.cosine_high,
            ),
            Measurement(
                "sqnr", found.sqnr_db, "dB", "host", how, found.n, found.sqnr_low, found.sqnr_high
            ),
        ]  # fmt: skip
    return figures
