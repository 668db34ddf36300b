"""The pipeline with an engine of our own in place of worker processes that convert."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from aid_edge import registry
from aid_edge.catalogue.draft import check_files, read_draft
from aid_edge.converter import Arrays
from aid_edge.diagnose import LayerRecord
from aid_edge.errors import (
    ConversionError,
    DataError,
    SourceError,
    StepCrashedError,
    UnknownRuntimeError,
    UnsupportedModelError,
    UsageError,
)
from aid_edge.model import SourceModel
from aid_edge.outcome import Closeness
from aid_edge.pipeline import release
from aid_edge.pipeline.convert import run
from aid_edge.pipeline.findings import TrainingFinding
from aid_edge.pipeline.release import OutputError
from aid_edge.pipeline.report import read_report
from aid_edge.pipeline.request import ConvertRequest, ConvertResult
from aid_edge.pipeline.steps import Inputs
from aid_edge.profiles import load_profile
from aid_edge.recipe import Recipe, StaticInt8
from aid_edge.runner import Benchmark, ConversionRequest, ConversionResult
from aid_edge.runtimes import Placement
from device_agent.contract.manifest import CenterCrop, Layout
from device_agent.contract.names import digest_of
from device_agent.contract.profile import Duration, HardwareProfile, Size
from device_agent.contract.tensors import TensorInfo, decode_frame

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class Engine:
    """Computes ``x @ WEIGHTS``; int8 candidates are ``error`` off, and ``factor`` times as slow."""

    def __init__(self, error: float = 0.01, factor: float = 0.5) -> None:
        self.error, self.factor = error, factor
        self.done: list[str] = []
        self.crash: dict[str, Exception] = {}
        self.records: tuple[LayerRecord, ...] = ()

    def convert(self, request: ConversionRequest, *, on_progress: Any = None) -> ConversionResult:
        key = f"{request.runtime}/{request.recipe.key}"
        self.done.append(key)
        on_progress(0.5, "halfway")
        if key in self.crash:
            raise self.crash[key]
        is_int8 = isinstance(request.recipe.quantize, StaticInt8)
        assert (request.calibration is not None) == is_int8
        data = f"{key} {request.recipe.quantize}".encode() * (20 if is_int8 else 200)
        request.out.mkdir(parents=True, exist_ok=True)
        artifact = request.out / "model.onnx"
        artifact.write_bytes(data)
        return ConversionResult(
            artifact=artifact, runtime=request.runtime, runtime_version="1.2",
            recipe=request.recipe, size_bytes=len(data), digest=digest_of(data),
            inputs=(TensorInfo("x", "FP32", (-1, 4)),), outputs=(TensorInfo("y", "FP32", (-1, 3)),),
            axes={}, placement=Placement(int(is_int8), int(not is_int8), {"MatMul": 1}),
            closeness=Closeness(1, 0.0, 1.0, 1.0, (1,)), seconds=0.1, peak_rss_bytes=1000,
            tools={"onnx": "1"},
        )  # fmt: skip

    def predict(
        self, artifact: Path, runtime: str, inputs: Arrays, *, threads: int = 1, batch: int = 1,
        on_progress: Any = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        self.done.append(f"predict {runtime}")
        exact = inputs["x"] @ WEIGHTS
        noise = np.random.default_rng(1).normal(size=exact.shape) * self.error
        return {"y": (exact + noise * (b"int8" in artifact.read_bytes())).astype(np.float32)}

    def source_outputs(
        self, model: SourceModel, inputs: Arrays, *, batch: int = 8, on_progress: Any = None
    ) -> dict[str, np.ndarray]:
        self.done.append("source")
        return {"y": inputs["x"] @ WEIGHTS}

    def benchmark(
        self, artifact: Path, runtime: str, inputs: Arrays, *, threads: int = 1, runs: int = 100
    ) -> Benchmark:
        self.done.append(f"benchmark {runtime}")
        scale = 0.01 * (self.factor if b"int8" in artifact.read_bytes() else 1)
        times = tuple(scale * (1 + i / 1000) for i in range(runs))
        return Benchmark(times, 10, threads, 0.1, 50_000_000, 20_000_000, "1.2")

    def layers(
        self, floating: Path, quantized: Path, runtime: str, inputs: Arrays
    ) -> tuple[LayerRecord, ...]:
        return self.records

    def prepare(
        self, model: SourceModel, recipe: Recipe, data: Inputs, out: Path, on_progress: Any
    ) -> tuple[SourceModel, TrainingFinding | None]:
        self.done.append(f"prepare {recipe.key}")
        out.mkdir()
        copy = Path(shutil.copy(model.spec, out / "pruned.onnx"))
        training = TrainingFinding(
            method="distill", quality="agreement", points=(), best_epoch=0, stopped="epochs",
            macs_before=12, macs_after=6, parameters_before=12, parameters_after=6,
        )  # fmt: skip
        return replace(model, spec=str(copy), digest=digest_of(recipe.key.encode())), training


class World:
    """A tiny ONNX model with data, and a way to convert it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine()
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor("w", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.ravel())],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / "tiny.onnx")
        (folder / "labels.txt").write_text("ant\nbee\ncat\n")
        (folder / "model.toml").write_text(
            'schema = 1\nname = "tiny"\nversion = "1.0.0"\ntask = "classification"\n'
            'labels = "labels.txt"\nlicence = "MIT"\n[[postprocess]]\ntype = "softmax"\n'
        )
        generator = np.random.default_rng(3)
        for name, n in (("calibration", 16), ("evaluation", 400), ("few", 20), ("fidelity", 60)):
            x = generator.normal(size=(n, 4)).astype(np.float32)
            labels = (x @ WEIGHTS).argmax(axis=1)
            content = {"x": x, "labels": labels} if name in {"evaluation", "few"} else {"x": x}
            np.savez(folder / f"{name}.npz", **content)

    def data(self, name: str) -> str:
        return str(self.folder / f"{name}.npz")

    def request(self, *profiles: HardwareProfile, **changes: Any) -> ConvertRequest:
        named = profiles or (load_profile("generic-x86_64")[0],)
        usual: dict[str, Any] = {
            "source": str(self.folder / "tiny.onnx"),
            "targets": tuple((p, digest_of(p.id.encode())) for p in named),
            "out": self.folder / "out", "calibration": self.data("calibration"),
            "evaluation": self.data("evaluation"), "cache": self.folder / "cache",
            "runtimes": ("onnx_runtime",), "command": "test",
        }  # fmt: skip
        return ConvertRequest(**{**usual, **changes})

    def convert(self, *profiles: HardwareProfile, **changes: Any) -> ConvertResult:
        return run(self.request(*profiles, **changes), engine=self.engine)


def hardened(**changes: Any) -> HardwareProfile:
    profile = load_profile("generic-x86_64")[0]
    hard = msgspec.structs.replace(profile.constraints.hard, **changes)
    constraints = msgspec.structs.replace(profile.constraints, hard=hard)
    return msgspec.structs.replace(profile, constraints=constraints)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    # These figures are of an x86 host wherever the tests run.
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return World(tmp_path)


def test_a_conversion_leaves_report_and_release(world: World) -> None:
    result = world.convert()
    assert result.report.is_complete
    found = result.profile("generic-x86_64")
    assert found.chosen == "onnx_runtime/static-int8-corrected"
    assert read_report(result.folder) == result.report
    place = result.releases["generic-x86_64"]
    assert place == world.folder / "out" / "generic-x86_64" / "release"
    draft = read_draft(place)
    assert {blob.role for blob in check_files(place, draft)} == {
        "model", "golden", "labels", "report", "report-data", "provenance",
    }  # fmt: skip
    assert (draft.name, draft.version, draft.task) == ("tiny", "1.0.0", "classification")
    assert draft.source_digest == result.report.source.digest
    assert draft.calibration_digest == result.report.data[0].digest
    assert draft.licence == "MIT"
    assert (place / "report.html").read_bytes() == result.html.read_bytes()
    assert {p.name for p in (world.folder / "out").iterdir()} == {
        "generic-x86_64", "report.html", "report.json",
    }  # fmt: skip


def test_golden_vectors_are_the_artifacts_own_answers(world: World) -> None:
    place = world.convert().releases["generic-x86_64"]
    draft = read_draft(place)
    tensors, _ = decode_frame((place / "golden.tensors").read_bytes(), max_bytes=10**6)
    named = {t.name: np.frombuffer(t.data, "<f4") for t in tensors}
    assert len(named) == 2 * draft.golden.vectors
    whole = world.engine.predict(
        place / "model.onnx", "onnx_runtime", dict(np.load(world.data("evaluation")))
    )["y"]
    for i in range(draft.golden.vectors):
        assert any(np.array_equal(named[f"{i}/out/y"], row) for row in whole)
        assert named[f"{i}/in/x"].shape == (4,)


def test_no_figure_is_without_where_how_and_n(world: World) -> None:
    result = world.convert()
    for candidate in result.profile("generic-x86_64").candidates:
        assert len(candidate.measurements) >= 10
        assert all(m.how and m.n > 0 and m.unit for m in candidate.measurements)
        assert candidate.accuracy is not None
        assert candidate.accuracy.n == 400


def test_the_same_measurements_give_the_same_bytes(world: World) -> None:
    first = world.convert(out=world.folder / "one")
    world.engine.done.clear()
    second = world.convert(out=world.folder / "two")
    assert world.engine.done == [], "everything came from the cache"
    files = sorted(p.relative_to(first.folder) for p in first.folder.rglob("*") if p.is_file())
    assert files
    for file in files:
        assert (first.folder / file).read_bytes() == (second.folder / file).read_bytes(), file


def test_a_damaged_cache_is_made_again(world: World) -> None:
    world.convert()
    for file in (world.folder / "cache").rglob("model.onnx"):
        file.write_bytes(b"damaged")
    world.engine.done.clear()
    result = world.convert()
    assert "onnx_runtime/static-int8-corrected" in world.engine.done
    assert result.report.is_complete
    assert (result.releases["generic-x86_64"] / "model.onnx").read_bytes() != b"damaged"


def test_another_seed_or_calibration_is_another_candidate(world: World) -> None:
    world.convert()
    world.engine.done.clear()
    world.convert(calibration=world.data("fidelity"))
    assert [d for d in world.engine.done if "/" in d] == ["onnx_runtime/static-int8-corrected"]
    world.engine.done.clear()
    world.convert(seed=1)
    assert len([d for d in world.engine.done if "/" in d]) == 2


def test_all_missed_gates_are_reported_and_an_old_release_is_withdrawn(world: World) -> None:
    earlier = world.convert().releases["generic-x86_64"]
    result = world.convert(hardened(artifact=Size(10)))
    assert not result.report.is_complete
    assert result.releases == {}
    assert not earlier.exists()
    assert "Gate missed" in result.html.read_text()
    codes = {c.outcome.code for c in result.profile("generic-x86_64").candidates if c.outcome}
    assert codes == {"artifact-too-large"}


def test_one_profile_may_miss_while_another_is_released(world: World) -> None:
    arm = load_profile("raspberry-pi-4")[0]
    result = world.convert(hardened(latency_p95=Duration(1e-6)), arm)
    assert list(result.releases) == ["raspberry-pi-4"]
    assert result.profile("generic-x86_64").chosen is None
    assert result.profile("raspberry-pi-4").latency == "uncalibrated"
    assert any("not known for aarch64" in n for n in result.profile("raspberry-pi-4").notes)


def test_a_slower_int8_is_not_chosen(world: World) -> None:
    world.engine.factor = 3.0
    found = world.convert().profile("generic-x86_64")
    assert found.chosen == "onnx_runtime/float32"
    assert found.verdict.startswith("float is better here")


def test_few_labels_leave_accuracy_undecided_and_fidelity_decides(world: World) -> None:
    found = world.convert(evaluation=world.data("few"), fidelity=world.data("fidelity"))
    profile = found.profile("generic-x86_64")
    chosen = profile.candidate(profile.chosen)
    assert chosen is not None
    accuracy = next(g for g in chosen.gates if g.gate == "accuracy")
    assert accuracy.status == "undecided"
    assert any("20 labelled samples cannot decide" in note for note in profile.notes)
    assert chosen.fidelity is not None
    assert chosen.fidelity.n == 60
    assert {d.role: d.n for d in found.report.data} == {
        "calibration": 16, "evaluation": 20, "fidelity": 60,
    }  # fmt: skip


def test_unlabelled_inputs_are_enough(world: World) -> None:
    found = world.convert(evaluation=None, fidelity=world.data("fidelity"))
    chosen = found.profile("generic-x86_64").candidate("onnx_runtime/static-int8-corrected")
    assert chosen is not None
    assert chosen.accuracy is None
    assert any("No labelled data" in n for n in found.profile("generic-x86_64").notes)


def test_a_fallback_is_made_only_when_quality_is_missed(world: World) -> None:
    world.convert()
    assert "onnx_runtime/static-int8-nncf" not in world.engine.done
    world.engine.error = 5.0
    found = world.convert(cache=world.folder / "other").profile("generic-x86_64")
    assert "onnx_runtime/static-int8-nncf" in world.engine.done
    assert found.chosen == "onnx_runtime/float32"


def test_a_crash_of_one_candidate_does_not_end_the_others(world: World) -> None:
    world.engine.crash["onnx_runtime/static-int8-corrected"] = StepCrashedError(
        "died", cause="signal 11"
    )
    found = world.convert().profile("generic-x86_64")
    assert found.chosen == "onnx_runtime/float32"
    crashed = found.candidate("onnx_runtime/static-int8-corrected")
    assert crashed is not None
    assert crashed.outcome is not None
    assert (crashed.outcome.code, crashed.outcome.text) == ("step-crashed", "died: signal 11")


def test_a_candidate_that_dies_in_the_benchmark_is_not_chosen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = world.engine.benchmark

    def benchmark(artifact: Path, *rest: Any, **more: Any) -> Benchmark:
        if b"int8" in artifact.read_bytes():
            raise StepCrashedError("ran out of memory")
        return good(artifact, *rest, **more)

    monkeypatch.setattr(world.engine, "benchmark", benchmark)
    found = world.convert().profile("generic-x86_64")
    assert found.chosen == "onnx_runtime/float32"
    lost = found.candidate("onnx_runtime/static-int8-corrected")
    assert lost is not None
    assert lost.outcome is not None
    assert lost.outcome.text == "ran out of memory"


def test_when_every_candidate_fails_the_report_stands_and_the_error_says_why(world: World) -> None:
    for key in ("float32", "static-int8-corrected"):
        world.engine.crash[f"onnx_runtime/{key}"] = ConversionError(f"no {key}")
    with pytest.raises(ConversionError, match="no candidate could be made") as caught:
        world.convert()
    assert "no float32" in caught.value.cause
    assert "no static-int8-corrected" in caught.value.cause
    assert (world.folder / "out" / "report.html").exists()


def test_nan_outputs_refuse_a_candidate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    good = world.engine.predict

    def predict(artifact: Path, runtime: str, inputs: Arrays, **rest: Any) -> Any:
        outputs = good(artifact, runtime, inputs, **rest)
        if b"int8" in artifact.read_bytes():
            outputs["y"][7] = np.nan
        return outputs

    monkeypatch.setattr(world.engine, "predict", predict)
    found = (
        world.convert().profile("generic-x86_64").candidate("onnx_runtime/static-int8-corrected")
    )
    assert found is not None
    assert found.outcome is not None
    assert found.outcome.code == "conversion"
    assert "NaN or infinity for 1 of 400 inputs" in found.outcome.text


def test_a_source_that_gives_nan_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        world.engine, "source_outputs", lambda *_, **__: {"y": np.full((400, 3), np.nan)}
    )
    with pytest.raises(ConversionError, match="source model gives NaN"):
        world.convert()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"calibration": None},
            DataError,
            "static-int8-corrected needs calibration data, and none are given",
        ),
        ({"evaluation": None}, UsageError, "nothing to judge candidates on"),
        ({"targets": ()}, UsageError, "no hardware profile"),
        ({"name": "Not A Name"}, UsageError, "cannot name a release"),
        ({"version": "1 0"}, UsageError, "cannot be a version"),
        ({"runtimes": ("litert", "nonsense")}, UnknownRuntimeError, "nonsense"),
        ({"source": "missing.onnx"}, SourceError, "missing.onnx"),
        ({"calibration": "missing.npz"}, DataError, "missing.npz"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(
    world: World, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        world.convert(**changes)
    assert world.engine.done == []
    assert not list(world.folder.glob("out/*"))


def test_data_that_overlap_are_refused(world: World) -> None:
    with pytest.raises(DataError, match="400 of 400 samples of the evaluation data"):
        world.convert(calibration=world.data("evaluation"))


def test_a_profile_named_twice_is_refused(world: World) -> None:
    profile = load_profile("generic-x86_64")[0]
    with pytest.raises(UsageError, match="twice"):
        world.convert(profile, profile)


def test_a_model_no_runtime_takes_is_refused_with_reasons(world: World) -> None:
    profile = load_profile("generic-x86_64")[0]
    shapes = msgspec.structs.replace(profile.shapes, max_rank=1)
    with pytest.raises(UnsupportedModelError) as caught:
        world.convert(msgspec.structs.replace(profile, shapes=shapes))
    assert "onnx_runtime:" in caught.value.cause
    assert world.engine.done == []


def test_an_output_folder_that_cannot_be_written_is_named(world: World) -> None:
    (world.folder / "file").write_text("")
    with pytest.raises(OutputError, match="file") as caught:
        world.convert(out=world.folder / "file" / "out")
    assert "--out" in caught.value.hint
    assert world.engine.done == []


def test_a_disk_that_fills_up_leaves_the_old_release_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = world.convert().releases["generic-x86_64"]
    before = {p.name: p.read_bytes() for p in place.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(release.shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left on device"):
        world.convert(version="2.0.0")
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before
    assert [p.name for p in place.parent.iterdir()] == ["release"], "nothing half-written is left"


def test_an_interrupt_leaves_nothing_half_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(world.engine, "benchmark", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.convert()
    assert not (world.folder / "out").exists()
    assert list((world.folder / "cache").rglob(".new-*")) == []
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    world.engine.done.clear()
    assert world.convert().report.is_complete
    assert not [d for d in world.engine.done if "/" in d], "what was done is not done again"


@pytest.mark.parametrize("jobs", [1, 4])
def test_profiles_share_what_does_not_differ_between_them(world: World, jobs: int) -> None:
    profile = load_profile("generic-x86_64")[0]
    twin = msgspec.structs.replace(profile, id="twin", cores=1)
    arm = load_profile("raspberry-pi-4")[0]
    world.convert(profile, twin, arm, jobs=jobs)
    assert sorted(d for d in world.engine.done if "/" in d) == [
        "onnx_runtime/float32", "onnx_runtime/float32",
        "onnx_runtime/static-int8-corrected", "onnx_runtime/static-int8-corrected",
    ], "the twin takes what was made; the converter reads the architecture"  # fmt: skip
    fixed = msgspec.structs.replace(profile.shapes, static=not profile.shapes.static)
    world.engine.done.clear()
    world.convert(msgspec.structs.replace(profile, shapes=fixed), jobs=jobs)
    assert len([d for d in world.engine.done if "/" in d]) == 2


def test_the_outcome_does_not_depend_on_how_much_runs_at_once(world: World) -> None:
    targets = [load_profile(name)[0] for name in ("generic-x86_64", "raspberry-pi-4")]
    reports = [
        world.convert(*targets, jobs=jobs, cache=world.folder / f"cache-{jobs}").html.read_bytes()
        for jobs in (1, 3)
    ]
    assert reports[0] == reports[1]


def test_timing_begins_when_all_else_is_done(world: World) -> None:
    targets = [load_profile(name)[0] for name in ("generic-x86_64", "raspberry-pi-4")]
    world.convert(*targets, jobs=4)
    begun = next(i for i, d in enumerate(world.engine.done) if d.startswith("benchmark"))
    ended = max(i for i, d in enumerate(world.engine.done) if d.startswith("benchmark"))
    # A closer look at the chosen comes after; nothing else runs while something is timed.
    assert all(d.startswith("benchmark") for d in world.engine.done[begun : ended + 1])


def test_no_jobs_are_refused(world: World) -> None:
    with pytest.raises(UsageError, match="0 jobs"):
        world.convert(jobs=0)


def test_progress_ends_at_one_for_every_task(world: World) -> None:
    seen: dict[str, list[float]] = {}
    run(
        world.request(),
        engine=world.engine,
        on_progress=lambda task, share, _what: seen.setdefault(task, []).append(share),
    )
    assert {"source", "benchmark", "report"} < set(seen)
    for task, shares in seen.items():
        assert shares == sorted(shares), task
        assert shares[-1] == 1.0, task


def test_reordered_axes_are_told_to_whoever_prepares_images() -> None:
    steps = (CenterCrop(height=8, width=8), Layout(order="NCHW"))
    assert release.released_steps(steps, None) == steps
    assert release.released_steps(steps, (0, 2, 3, 1)) == (steps[0], Layout("NHWC"))
    assert release.released_steps(steps, (0, 3, 1, 2)) == (steps[0], Layout("NCHW"))


def test_every_installed_converter_can_be_planned_for() -> None:
    for name in registry.available():
        assert "float32" in registry.load(name).methods
