from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aid_edge.errors import ConversionError
from aid_edge.evaluate.data import DataSet
from aid_edge.pipeline.measure import (
    Host,
    accuracy_finding,
    in_order,
    latency_source,
    run_figures,
    size_figures,
)
from aid_edge.runner import Benchmark
from device_agent.contract.profile import Cost, HardwareProfile
from device_agent.contract.tensors import TensorInfo

HOST = Host("x86_64", "a PC")
BENCHMARKS = [
    Benchmark(tuple(np.linspace(0.010, 0.012, 100)), 10, 2, 0.1, 90_000_000, 20_000_000, "1.2"),
    Benchmark(tuple(np.linspace(0.011, 0.013, 100)), 10, 2, 0.3, 95_000_000, 20_000_000, "1.2"),
]


def test_sizes_say_what_travels(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(bytes(100_000))
    whole, packed = size_figures(tmp_path / "m")
    assert whole.value == 100_000
    assert packed.value < 1000
    assert "zstd" in packed.how


def test_figures_of_this_architecture_are_measured(profile: HardwareProfile) -> None:
    figures = {m.what: m for m in run_figures(BENCHMARKS, profile, HOST)}
    p50 = figures["latency_p50"]
    assert (p50.where, p50.n, p50.unit) == ("host", 200, "s")
    assert p50.low is not None
    assert p50.high is not None
    assert p50.value == pytest.approx(0.0115, abs=1e-4)
    assert p50.low < p50.value < p50.high
    assert "2 threads, 2 fresh processes of 100 runs after 10, on a PC" in p50.how
    assert figures["peak_rss"].value == 95_000_000
    assert figures["load_time"].value == pytest.approx(0.2)
    assert p50.value < figures["latency_p95"].value < figures["latency_p99"].value


def test_figures_for_another_architecture_are_estimates(profile: HardwareProfile) -> None:
    arm = msgspec.structs.replace(profile, arch="aarch64")
    assert latency_source(arm, HOST) == "uncalibrated"
    figures = run_figures(BENCHMARKS, arm, HOST)
    assert {m.where for m in figures} == {"estimate"}
    assert all("uncalibrated" in m.how for m in figures)


def test_a_cost_table_scales_and_widens(profile: HardwareProfile) -> None:
    cost = Cost(latency_factor=4.0, error=0.1, points=12, date="2026-01-01")
    arm = msgspec.structs.replace(profile, arch="aarch64", cost=cost)
    assert latency_source(arm, HOST) == "calibrated"
    plain = run_figures(BENCHMARKS, profile, HOST)[0]
    scaled = run_figures(BENCHMARKS, arm, HOST)[0]
    assert scaled.where == "estimate"
    assert scaled.value == pytest.approx(4 * plain.value)
    assert scaled.low == pytest.approx(4 * 0.9 * plain.low)  # type: ignore[operator]
    assert scaled.high == pytest.approx(4 * 1.1 * plain.high)  # type: ignore[operator]
    assert "12 points" in scaled.how


def test_outputs_are_matched_by_name_else_by_place() -> None:
    tensors = [TensorInfo("a", "FP32", (-1,)), TensorInfo("b", "FP32", (-1,))]
    one, two = np.zeros(1), np.ones(1)
    assert in_order(tensors, {"b": two, "a": one}) == [one, two]
    assert in_order(tensors, {"x": one, "y": two}) == [one, two]
    with pytest.raises(ConversionError, match="has 1 outputs; the source has 2"):
        in_order(tensors, {"a": one})


def test_crops_of_one_photo_decide_less_than_as_many_photos() -> None:
    n = 100
    source = np.eye(2)[np.zeros(n, int)]
    candidate = source.copy()
    candidate[:10] = candidate[:10, ::-1]  # the first photo's crops all flip
    labels = np.zeros(n, np.int64)
    apart = DataSet("d", {}, labels, None, tuple(map(str, range(n))), None, "", ("",) * n)
    crops = replace(apart, groups=tuple(str(i // 10) for i in range(n)))
    loose, tight = (accuracy_finding(source, candidate, d) for d in (crops, apart))
    assert loose.drop == tight.drop == pytest.approx(0.1)
    assert loose.drop_high - loose.drop_low > tight.drop_high - tight.drop_low
    assert loose.detectable_drop > tight.detectable_drop
