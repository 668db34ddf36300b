"""The search with an engine of our own in place of worker processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aid_edge.catalogue.draft import read_draft
from aid_edge.diagnose import LayerRecord
from aid_edge.errors import ConversionError, DataError, UsageError
from aid_edge.pipeline import cache as cache_module
from aid_edge.pipeline.convert import run
from aid_edge.pipeline.findings import Candidate, ProfileFinding
from aid_edge.recipe import StaticInt8
from aid_edge.runner import ConversionRequest, ConversionResult
from device_agent.contract.manifest import Measurement
from tests.aid_edge.pipeline.test_convert import WEIGHTS, Engine, World

ID = "generic-x86_64"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    # These figures are of an x86 host wherever the tests run.
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return World(tmp_path)


def found(profile: ProfileFinding, name: str) -> Candidate:
    candidate = profile.candidate(f"onnx_runtime/{name}")
    assert candidate is not None, [c.id for c in profile.candidates]
    return candidate


class Graded(Engine):
    """Int8 is bad unless it keeps ``needed`` layers in float or is of a method in ``good``."""

    def __init__(self, needed: int = 99, good: str = "none") -> None:
        super().__init__(error=5.0)
        self.needed, self.good = needed, good

    def convert(self, request: ConversionRequest, *, on_progress: Any = None) -> ConversionResult:
        result = super().convert(request, on_progress=on_progress)
        quantize = request.recipe.quantize
        is_good = isinstance(quantize, StaticInt8) and (
            len(quantize.keep_float) >= self.needed or quantize.method == self.good
        )
        if is_good:
            result.artifact.write_bytes(result.artifact.read_bytes().replace(b"int8", b"good"))
        return result


def write(world: World, name: str, n: int) -> None:
    x = np.random.default_rng(9).normal(size=(n, 4)).astype(np.float32)
    np.savez(world.folder / f"{name}.npz", x=x, labels=(x @ WEIGHTS).argmax(axis=1))


def test_what_has_clearly_lost_sees_only_the_first_samples(world: World) -> None:
    write(world, "many", 3000)
    world.engine = Graded(good="percentile")
    profile = world.convert(evaluation=world.data("many"), search="full").profile(ID)
    lost = found(profile, "static-int8-corrected")
    assert lost.accuracy is not None
    assert lost.accuracy.n == 512
    assert lost.outcome is not None
    assert lost.outcome.code == "accuracy-dropped"
    assert lost.outcome.text.startswith("stopped after 512 of 3000 samples: drop")
    assert lost.value("latency_p50") is None, "losers are not timed"
    chosen = found(profile, "static-int8-percentile")
    assert (chosen.id, chosen.accuracy and chosen.accuracy.n) == (profile.chosen, 3000)
    baseline = found(profile, "float32")
    assert baseline.accuracy is not None
    assert baseline.accuracy.n == 3000
    assert profile.search is not None
    assert "512 of 3000 samples" in profile.search.rounds[0]
    assert set(profile.pareto) <= {c.id for c in profile.candidates if c.value("latency_p50")}


def test_rounds_find_what_one_look_at_all_finds(world: World) -> None:
    write(world, "many", 1500)
    profile = world.convert(evaluation=world.data("many")).profile(ID)
    int8 = found(profile, "static-int8-corrected")
    inputs = dict(np.load(world.data("many")))
    assert int8.fidelity is not None
    assert int8.fidelity.n == 1500
    # The double draws its noise per call, so only the exact float answers can be compared.
    exact = found(profile, "float32").fidelity
    assert exact is not None
    assert (exact.agreement, exact.max_abs) == (1.0, 0.0), "answers are put back in order"
    assert len(inputs["x"]) == 1500


def test_int8_that_misses_keeps_the_fewest_layers_in_float(world: World) -> None:
    world.engine = Graded(needed=3)
    world.engine.records = tuple(
        LayerRecord(f"layer{i}", "MatMul", 5.0 + i, -1.0, 1.0, 3.0, 0.0, "integer")
        for i in range(10)
    )
    profile = world.convert().profile(ID)
    assert profile.chosen == "onnx_runtime/static-int8-nncf-mixed3" or profile.chosen in {
        "onnx_runtime/static-int8-mixed3", "onnx_runtime/static-int8-corrected-mixed3",
        "onnx_runtime/static-int8-percentile-mixed3",
    }  # fmt: skip
    explained = [c for c in profile.candidates if c.layers and c.id != profile.chosen]
    assert len(explained) == 1
    assert explained[0].layers[0].name == "layer0"
    assert "enough" in explained[0].layers[0].tried
    assert profile.search is not None
    assert any("mixed precision in onnx_runtime" in line for line in profile.search.rounds)


class InOne(Graded):
    """Int8 is bad, but in LiteRT."""

    def convert(self, request: ConversionRequest, *, on_progress: Any = None) -> ConversionResult:
        self.needed = 0 if request.runtime == "litert" else 99
        return super().convert(request, on_progress=on_progress)


@pytest.mark.parametrize(("search", "mixes"), [("quick", False), ("full", True)])
def test_layers_stay_float_only_where_no_other_runtime_is_good_enough(
    world: World, search: str, mixes: bool
) -> None:
    world.engine = InOne()
    world.engine.records = (LayerRecord("layer", "MatMul", 5.0, -1.0, 1.0, 3.0, 0.0, "integer"),)
    profile = world.convert(runtimes=("onnx_runtime", "litert"), search=search).profile(ID)
    assert profile.search is not None
    lines = [line for line in profile.search.rounds if "mixed precision in onnx_runtime" in line]
    assert len(lines) == 1
    assert lines[0].startswith("no mixed precision") is not mixes
    assert any("mixed1" in d for d in world.engine.done) is mixes


def test_models_are_pruned_where_recovery_may_take_time(world: World) -> None:
    x = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    np.savez(world.folder / "hundred.npz", x=x)
    asked = {"calibration": world.data("hundred"), "recovery_minutes": 1.0}
    profile = world.convert(**asked).profile(ID)
    pruned = found(profile, "pruned50-distilled-static-int8-corrected")
    assert pruned.training is not None
    assert pruned.training.macs_after == 6
    assert pruned.accuracy is not None, "judged against the original"
    assert sum(d.startswith("prepare") for d in world.engine.done) == 2
    world.engine.done.clear()
    world.convert(**asked, out=world.folder / "again")
    assert world.engine.done == [], "training is cached"


@pytest.mark.parametrize(("minutes", "seen"), [(0.0, 70), (1.0, 100)])
def test_distillation_sees_all_inputs_where_calibration_sees_some(
    world: World, monkeypatch: pytest.MonkeyPatch, minutes: float, seen: int
) -> None:
    monkeypatch.setattr("aid_edge.pipeline.loading.MAX_CALIBRATION_SAMPLES", 70)
    x = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    np.savez(world.folder / "hundred.npz", x=x)
    report = world.convert(calibration=world.data("hundred"), recovery_minutes=minutes).report
    assert [d.n for d in report.data if d.role == "calibration"] == [seen]


def test_what_cannot_be_brought_over_is_not_planned_to_be_pruned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aid_edge.compress.preparation._FRAMEWORKS", frozenset({"torch"}))
    profile = world.convert(recovery_minutes=1.0).profile(ID)
    assert profile.chosen is not None
    assert not any("pruned" in c.id for c in profile.candidates)
    assert any("onnx models are not brought over to PyTorch" in note for note in profile.notes)


def test_too_few_inputs_are_not_distilled_on(world: World) -> None:
    profile = world.convert(recovery_minutes=1.0).profile(ID)
    refused = found(profile, "pruned50-distilled-static-int8-corrected").outcome
    assert refused is not None
    assert "16 calibration inputs are too few" in refused.text


def test_a_search_that_is_out_of_time_judges_what_it_has(world: World) -> None:
    profile = world.convert(search="full", time_budget_s=1e-9).profile(ID)
    assert profile.chosen == "onnx_runtime/float32", "the baseline is made in any case"
    cut = [c for c in profile.candidates if c.outcome and c.outcome.code == "time-budget"]
    assert len(cut) >= 5
    assert profile.search is not None
    assert profile.search.stopped == "time-budget"


def test_a_search_that_was_cut_short_is_taken_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(world.engine, "benchmark", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.convert()
    world.engine.done.clear()
    first = world.convert().profile(ID)
    assert not [d for d in world.engine.done if "/" in d]
    assert first.search is not None
    assert first.search.resumed
    with monkeypatch.context() as patch:
        patch.setattr(world.engine, "convert", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.convert(seed=5)
    again = world.convert(seed=5).profile(ID)
    assert again.search is not None
    assert again.search.resumed


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_random_calibration_marks_report_and_release(world: World) -> None:
    result = world.convert(calibration="random")
    profile = result.profile(ID)
    assert any(n.startswith("Calibrated on random data") for n in profile.notes)
    assert next(d for d in result.report.data if d.role == "calibration").random
    assert profile.chosen == "onnx_runtime/static-int8-corrected"
    assert read_draft(result.releases[ID]).recipe.endswith("[calibrated on random data]")


def test_few_calibration_inputs_are_said(world: World) -> None:
    notes = world.convert().profile(ID).notes
    assert any("Only 16 independent samples" in n for n in notes)


def test_overlap_is_refused_unless_it_is_allowed_and_then_said(world: World) -> None:
    asked = {"calibration": world.data("evaluation")}
    with pytest.raises(DataError, match="also in the calibration data"):
        world.convert(**asked)
    notes = world.convert(**asked, allow_overlap=True).profile(ID).notes
    assert any("400 of 400 samples of the evaluation data" in n for n in notes)


def test_a_metric_that_was_asked_for_decides(world: World) -> None:
    world.engine.error = 1.0
    profile = world.convert(metric="f1").profile(ID)
    int8 = found(profile, "static-int8-corrected")
    (metric,) = int8.metrics
    assert (metric.name, metric.n) == ("f1", 400)
    gate = next(g for g in int8.gates if g.gate == "accuracy")
    assert gate.text.startswith("f1 ")
    assert gate.status == "fail"
    assert profile.chosen == "onnx_runtime/float32"
    with pytest.raises(UsageError, match="no metric 'best'"):
        world.convert(metric="best")
    with pytest.raises(UsageError, match="needs labelled data"):
        world.convert(metric="f1", evaluation=None, fidelity=world.data("fidelity"))


def test_a_metric_that_the_data_cannot_be_judged_by_is_refused_before_work(world: World) -> None:
    release = world.convert().releases[ID]
    world.engine.done.clear()
    for name in ("rmse", "top-3"):
        with pytest.raises(DataError, match=f"metric {name}: "):
            world.convert(metric=name)
    assert world.engine.done == []
    assert read_draft(release).name == "tiny", "the release of an earlier run stays"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": "deep"}, "--search deep"),
        ({"recovery_minutes": -1.0}, "-1 minutes of recovery"),
        ({"train": "x.npz"}, "no time to train"),
        ({"recovery_minutes": 1.0, "calibration": None}, "nothing to recover on"),
        ({"executor": "spark://x:1"}, "no address of a cluster"),
        ({"inputs": ("x",)}, "no name"),
    ],
)
def test_what_cannot_be_meant_is_refused(world: World, changes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        world.convert(**changes)
    assert world.engine.done == []


def unseen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    good = world.engine.convert

    def convert(request: ConversionRequest, **rest: Any) -> ConversionResult:
        return replace(good(request, **rest), executed=False, closeness=None)

    monkeypatch.setattr(world.engine, "convert", convert)


def test_what_cannot_be_run_here_is_chosen_only_where_nothing_can(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen(world, monkeypatch)
    result = world.convert()
    profile = result.profile(ID)
    assert profile.chosen == "onnx_runtime/float32"
    assert "converted, not executed" in profile.verdict
    assert not any("predict" in d or "benchmark" in d for d in world.engine.done)
    int8 = found(profile, "static-int8-corrected")
    assert int8.accuracy is None
    assert int8.outcome is not None
    assert int8.outcome.code == "not-executed"
    assert read_draft(result.releases[ID]).golden.min_cosine < 0.999


def test_figures_of_a_device_stand_apart_and_decide_its_latency(world: World) -> None:
    def measure(finalists: Any) -> dict[tuple[str, str], list[Measurement]]:
        slow = Measurement("latency_p95", 9.9, "s", "device", "on pi-7", 100, 9.8, 10.0)
        return {(f.profile.id, f.id): [slow] for f in finalists if "int8" in f.id}

    profile = run(world.request(), engine=world.engine, measure_on=measure).profile(ID)
    int8 = found(profile, "static-int8-corrected")
    assert int8.figure("latency_p95") != int8.device_figure("latency_p95")
    gate = next(g for g in int8.gates if g.gate == "latency-p95")
    assert (gate.status, gate.value) == ("fail", 9.9)
    assert "on a device" in gate.text

    def wrong(finalists: Any) -> dict[tuple[str, str], list[Measurement]]:
        host = Measurement("latency_p95", 9.9, "s", "host", "here", 1)
        return {(f.profile.id, f.id): [host] for f in finalists}

    with pytest.raises(ConversionError, match="not a device's figure"):
        run(world.request(), engine=world.engine, measure_on=wrong)


def test_an_arena_is_what_a_model_takes_on_a_microcontroller(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = world.engine.convert

    def convert(request: ConversionRequest, **rest: Any) -> ConversionResult:
        arena = Measurement("arena_bytes", 10**10, "B", "host", "interpreter", 1)
        return replace(good(request, **rest), figures=(arena,), notes=("needs a resolver",))

    monkeypatch.setattr(world.engine, "convert", convert)
    int8 = found(world.convert().profile(ID), "static-int8-corrected")
    assert int8.outcome is not None
    assert int8.outcome.code == "memory-over-limit"
    assert int8.notes == ("needs a resolver",)


def test_the_cache_is_trimmed_at_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "RECENT_S", -1.0)
    monkeypatch.setenv("AID_EDGE_CACHE_BYTES", "0")
    assert world.convert().report.is_complete
    assert list((world.folder / "cache").rglob("entry.json")) == []
