from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from aid_edge.evaluate.statistics import PairedCounts, paired_drop_interval
from aid_edge.pipeline.findings import (
    AccuracyFinding,
    Candidate,
    DataFinding,
    FidelityFinding,
    Flip,
    PlacementFinding,
    ProfileFinding,
    Provenance,
    Report,
    SourceFinding,
)
from aid_edge.profiles import load_profile
from device_agent.contract.manifest import Measurement
from device_agent.contract.profile import HardwareProfile

DIGEST = "sha256:" + "ab" * 32


def accuracy(losses: int, gains: int, n: int, right: int = 0) -> AccuracyFinding:
    counts = PairedCounts(right or n - losses - gains, losses, gains, 0)
    interval = paired_drop_interval(counts)
    return AccuracyFinding(
        n=n, source=(counts.both + losses) / n, candidate=(counts.both + gains) / n,
        low=0.5, high=0.99, drop=counts.drop, drop_low=interval.low, drop_high=interval.high,
        losses=losses, gains=gains, p_value=0.5, detectable_drop=0.02,
    )  # fmt: skip


def fidelity(**changes: Any) -> FidelityFinding:
    usual = FidelityFinding(
        data="photos", n=120, units=10, agreement=0.96, agreement_low=0.91, agreement_high=0.985,
        cosine=0.995, cosine_low=0.99, cosine_high=0.998, cosine_min=0.9, max_abs=0.4,
        sqnr_db=22.0, sqnr_low=21.0, sqnr_high=23.0,
    )  # fmt: skip
    return msgspec.structs.replace(usual, **changes)


def candidate(
    name: str = "onnx_runtime/float32",
    *,
    artifact: float = 20e6,
    p50: float = 0.020,
    memory: float = 120e6,
    where: str = "host",
    **changes: Any,
) -> Candidate:
    runtime, key = name.split("/")
    figures = (
        Measurement("artifact_bytes", artifact, "B", "host", "file", 1),
        Measurement("download_bytes", artifact * 0.9, "B", "host", "zstd", 1),
        *(
            Measurement(what, p50 * factor, "s", where, "alone", 200, p50 * factor * 0.99,
                        p50 * factor * 1.01)
            for what, factor in (("latency_p50", 1), ("latency_p95", 1.2), ("latency_p99", 1.4))
        ),
        Measurement("peak_rss", memory, "B", where, "alone", 2),
    )  # fmt: skip
    usual = Candidate(
        id=name, runtime=runtime, recipe=key, recipe_key=key, compressed=key != "float32",
        digest=DIGEST, measurements=figures, fidelity=fidelity(),
        placement=PlacementFinding(integer=4, floating=1, operators={"Conv": 5}),
    )  # fmt: skip
    return msgspec.structs.replace(usual, **changes)


@pytest.fixture
def make_candidate() -> Callable[..., Candidate]:
    return candidate


@pytest.fixture
def make_accuracy() -> Callable[..., AccuracyFinding]:
    return accuracy


@pytest.fixture
def make_fidelity() -> Callable[..., FidelityFinding]:
    return fidelity


@pytest.fixture
def profile() -> HardwareProfile:
    return load_profile("generic-x86_64")[0]


@pytest.fixture
def report() -> Report:
    """Two profiles: one measured, with a choice; one uncalibrated, where every gate is missed."""
    from aid_edge.pipeline.gates import judge
    from aid_edge.pipeline.verdict import choose

    found = []
    for name, latency, level in (
        ("generic-x86_64", "host", 0.98),
        ("raspberry-pi-4", "uncalibrated", 0.5),
    ):
        target = load_profile(name)[0]
        where = "host" if latency == "host" else "estimate"
        flip = Flip(
            sample="cat/<b>7</b>.png", kind="loss", label="cat", source_answer="cat",
            candidate_answer="dog", thumbnail="data:image/jpeg;base64,AAAA",
        )  # fmt: skip
        made = [
            candidate(where=where, fidelity=fidelity(cosine=level), accuracy=accuracy(0, 0, 20)),
            candidate(
                "onnx_runtime/static-int8", artifact=5e6, p50=0.01, where=where, flips=(flip,),
                fidelity=fidelity(cosine=level), accuracy=accuracy(1, 0, 20),
            ),
        ]  # fmt: skip
        known = latency == "host"
        made = [
            msgspec.structs.replace(c, gates=judge(c, target.constraints.hard, latency_known=known))
            for c in made
        ]
        choice = choose(made, target.constraints.rank_by, latency_known=known)
        found.append(
            ProfileFinding(
                id=name, title=target.title, digest=DIGEST, arch=target.arch, latency=latency,
                threads=1, rank_by=target.constraints.rank_by,
                candidates=tuple(
                    msgspec.structs.replace(c, outcome=choice.outcomes[c.id]) for c in made
                ),
                chosen=choice.chosen, verdict=choice.verdict, notes=("weigh this & that",),
            )
        )  # fmt: skip
    return Report(
        source=SourceFinding(
            name="tiny", version="1.0.0", title="Tiny <net>", spec="tiny:make", framework="torch",
            task="classification", parameters=1234, digest=DIGEST, inputs=("x: FP32 [-1, 4]",),
            outputs=("y: FP32 [-1, 3]",), operators={"conv2d": 3},
        ),
        data=(
            DataFinding(role="evaluation", spec="d", n=9, units=9, labelled=True, digest=DIGEST),
        ),
        profiles=tuple(found),
        provenance=Provenance(command="aid-edge convert", seed=0, host="here", tools={"onnx": "1"}),
    )  # fmt: skip
