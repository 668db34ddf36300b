"""The cost table of a profile: what points say, and how it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from aid_edge.errors import ConversionError, UsageError
from aid_edge.hub.calibrate import Point, check_out, cost_of, with_cost
from aid_edge.hub.on_device import figures
from aid_edge.profiles import find_profile, load_profile
from device_agent.contract.messages import ReleaseRef, TrialResult
from device_agent.contract.profile import decode_profile

POINTS = [Point("a", 1e-3, 3e-3), Point("b", 2e-3, 6.6e-3), Point("c", 1e-3, 2.8e-3)]
TOOLS = {"onnx_runtime": "1.32.0"}


def test_the_factor_is_the_median_and_the_error_that_of_the_others() -> None:
    cost = cost_of(POINTS, TOOLS)
    assert (cost.latency_factor, cost.points, cost.tools) == (pytest.approx(3.0), 3, TOOLS)
    # Ratios 3, 3.3, 2.8: the others predict 3.05, 2.9 and 3.15.
    assert cost.error == pytest.approx(0.4 / 3.3)


def test_too_few_or_contradictory_points() -> None:
    with pytest.raises(ConversionError, match="only 2 probes") as caught:
        cost_of(POINTS[:2], TOOLS, ["c: no memory"])
    assert caught.value.cause == "c: no memory"
    apart = [Point("a", 1, 1), Point("b", 1, 10), Point("c", 1, 100), Point("d", 1, 1000)]
    with pytest.raises(ConversionError, match="no common factor"):
        cost_of(apart, TOOLS)


@pytest.mark.parametrize("name", ["raspberry-pi-4", "stm32h7", "generic-x86_64"])
def test_only_the_cost_table_of_a_profile_changes(name: str) -> None:
    text = find_profile(name).read_text()
    cost = cost_of(POINTS, TOOLS)
    written = with_cost(text, cost, name)
    before, after = load_profile(name)[0], decode_profile(written.encode(), name)
    assert before.cost is None
    assert after.cost is not None
    assert after.cost.latency_factor == pytest.approx(3.0)
    assert after.memory == before.memory
    assert "# " in written
    assert with_cost(written, cost, name) == written


def test_a_profile_is_not_overwritten_nor_misnamed(tmp_path: Path) -> None:
    profile, _ = load_profile("raspberry-pi-4")
    check_out(tmp_path / "raspberry-pi-4.toml", profile)
    with pytest.raises(UsageError, match=r"Call it raspberry-pi-4\.toml|has its name"):
        check_out(tmp_path / "mine.toml", profile)
    (tmp_path / "raspberry-pi-4.toml").write_text("")
    with pytest.raises(UsageError, match="is there already"):
        check_out(tmp_path / "raspberry-pi-4.toml", profile)


def test_figures_of_a_trial_say_where_and_how() -> None:
    result = TrialResult(
        boot_id="0" * 32, seq=1, at_unix_s=1.0, trial="t-1", outcome="ok",
        release=ReleaseRef("trial", "1", "sha256:" + "0" * 64), runtime="onnx_runtime",
        runtime_version="1.32.0", threads=2, latencies_s=tuple(i / 1000 for i in range(1, 101)),
        load_s=0.2, peak_rss_bytes=5, served=3,
    )  # fmt: skip
    found = {m.what: m for m in figures(result, "cam-1")}
    assert {m.where for m in found.values()} == {"device"}
    assert found["latency_p50"].value == pytest.approx(0.0505)
    assert "cam-1, onnx_runtime 1.32.0, batch 1, 2 threads" in found["latency_p95"].how
    assert "3 requests served meanwhile" in found["latency_p95"].how
    failed = TrialResult(
        boot_id="0" * 32, seq=1, at_unix_s=1.0, trial="t-1", outcome="failed", reason="no memory",
        release=ReleaseRef("trial", "1", "sha256:" + "0" * 64),
    )  # fmt: skip
    assert figures(failed, "cam-1") == ()
