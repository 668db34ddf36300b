from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aid_edge.errors import ConversionError
from aid_edge.evaluate.data import DataSet
from aid_edge.model import ModelCard, SourceModel
from aid_edge.outcome import Closeness
from aid_edge.pipeline.findings import Candidate
from aid_edge.pipeline.insight import CONDITIONS_S, bounded, looked_into
from aid_edge.pipeline.judging import Judge, Subject
from aid_edge.pipeline.making import Made, Maker
from aid_edge.pipeline.measure import Host
from aid_edge.pipeline.search.space import Plan
from aid_edge.recipe import Float32, Recipe, StaticInt8
from aid_edge.runner import ConversionResult
from aid_edge.runtimes import Placement
from device_agent.contract.manifest import Measurement
from device_agent.contract.tensors import TensorInfo

DIGEST = "sha256:" + "0" * 64
RANDOM = np.random.default_rng(8)
LABELS = RANDOM.integers(0, 2, 60).astype(np.int64)
IMAGES = (RANDOM.random((60, 1, 8, 8)) * 0.5).astype(np.float32)
IMAGES[LABELS == 1, :, :, :4] += 0.3
NAMES = ("dim", "bright")
Array = npt.NDArray[Any]


def scores(images: Array, bias: float) -> dict[str, Array]:
    left = images[:, 0, :, :4].mean(axis=(1, 2)) - images[:, 0, :, 4:].mean(axis=(1, 2))
    return {"y": np.stack([np.zeros(len(left)), 20 * (left - 0.15 - bias)], axis=1)}


@dataclass
class Steps:
    """Answers at once in place of worker processes; the quantized artifact is biased."""

    runs: list[tuple[str, int]] = field(default_factory=list)
    broken: bool = False

    def source_outputs(self, _model: Any, data: DataSet, _told: Any) -> Mapping[str, Array]:
        self.runs.append(("source", len(data)))
        return scores(np.asarray(data.inputs["x"]), 0.0)

    def outputs(
        self, result: ConversionResult, data: DataSet, _told: Any, chosen: Any = None
    ) -> Mapping[str, Array]:
        self.runs.append((result.recipe.key, len(data)))
        if self.broken and len(data) > len(LABELS):
            raise ConversionError("the runtime died")
        images = np.asarray(data.inputs["x"])
        images = images if chosen is None else images[list(chosen)]
        return scores(images, 0.0 if result.recipe.key == "float32" else 0.06)


def made(recipe: Recipe, *, executed: bool = True) -> Made:
    plan = Plan("litert", recipe)
    tensors = (TensorInfo("x", "FP32", (-1, 1, 8, 8)),)
    outputs = (TensorInfo("y", "FP32", (-1, 2)),)
    close = Closeness(n=4, max_abs=0.0, cosine=1.0, agreement=1.0, batches=(1,))
    result = ConversionResult(
        artifact=Path("model"), recipe=recipe, runtime="litert", runtime_version="2", size_bytes=1,
        digest=DIGEST, inputs=tensors, outputs=outputs, axes={},
        placement=Placement(integer=1, floating=0, operators={}),
        closeness=close if executed else None, seconds=1.0, peak_rss_bytes=1, tools={},
        executed=executed,
    )  # fmt: skip
    candidate = Candidate(
        id=plan.id, runtime="litert", recipe=recipe.title, recipe_key=recipe.key,
        compressed=recipe.is_compressed, digest=DIGEST, executed=executed,
    )  # fmt: skip
    return Made(plan, candidate, result)


def maker(*, labelled: bool = True, broken: bool = False, inputs: Array = IMAGES) -> Maker:
    card = ModelCard(
        Path("model.toml"), "light", "1.0.0", "Light", "classification", NAMES, "", (), (), (), ()
    )
    model = SourceModel(
        "light.onnx", "onnx", None, (TensorInfo("x", "FP32", (-1, 1, 8, 8)),),
        (TensorInfo("y", "FP32", (-1, 2)),), (), 1, DIGEST, card,
    )  # fmt: skip
    data = DataSet(
        "d.npz", {"x": inputs}, LABELS if labelled else None, None,
        tuple(f"#{i}" for i in range(60)), None, DIGEST, (),
    )  # fmt: skip
    subject = Subject(model, None, data if labelled else None, data, classification=True)
    steps: Any = Steps(broken=broken)
    return Maker(steps, Judge(steps, subject, 0), Host("x86_64", "here"))


FLOAT, INT8 = Recipe(quantize=Float32()), Recipe(quantize=StaticInt8())


def test_the_chosen_and_its_baseline_are_looked_into() -> None:
    one = maker()
    told: list[float] = []
    pair = [made(FLOAT), made(INT8)]
    baseline, chosen = looked_into(one, pair, pair[1].plan.id, lambda s, _: told.append(s))
    found = chosen.candidate
    assert found.classes[0].label == "bright", "the bias costs the bright ones"
    assert found.classes[0].candidate < found.classes[0].source
    assert {(c.label, c.answer) for c in found.confusion} >= {("bright", "dim")}
    assert found.conditions[0].severity == 0
    assert {c.condition for c in found.conditions} >= {"bad light", "part missing"}
    assert all(c.n == 60 for c in found.conditions)
    assert told == sorted(told)
    assert told
    reason = found.explanations[0]
    assert (reason.source_answer, reason.candidate_answer) == ("bright", "dim")
    assert reason.source_margin > 0 >= reason.candidate_margin
    assert reason.correlation == pytest.approx(1.0)
    assert reason.picture.startswith("data:image/png")
    assert reason.source_map.startswith("data:image/png")
    assert "noise tipped" in reason.summary or "margin moved" in reason.summary
    assert baseline.candidate.conditions
    assert all(c.source == c.candidate for c in baseline.candidate.conditions)
    assert baseline.candidate.explanations == ()


def test_each_model_is_run_a_few_times_on_many_inputs() -> None:
    one = maker()
    pair = [made(FLOAT), made(INT8)]
    looked_into(one, pair, pair[1].plan.id)
    runs: list[tuple[str, int]] = one.steps.runs  # type: ignore[attr-defined]
    assert len([r for r in runs if r[0] == "source"]) == 3, "data, conditions, explanations"
    assert max(n for _, n in runs) == 25 * 60


def test_without_labels_the_source_is_taken_for_right() -> None:
    pair = [made(FLOAT), made(INT8)]
    found = looked_into(maker(labelled=False), pair, pair[1].plan.id)[1].candidate
    assert found.classes == ()
    assert found.confusion
    assert found.conditions[0].metric == "agreement with the source on clean inputs"
    assert found.explanations[0].label == ""


def test_a_look_that_fails_is_a_note() -> None:
    pair = [made(FLOAT), made(INT8)]
    found = looked_into(maker(broken=True), pair, pair[1].plan.id)[1].candidate
    assert found.notes == ("It could not be looked into further: the runtime died",)
    assert found.classes, "what was found before stays"


@pytest.mark.parametrize("chosen", [None, "litert/static-int8"])
def test_nothing_is_looked_into_without_a_choice_that_runs(chosen: str | None) -> None:
    pair = [made(FLOAT), made(INT8, executed=False)]
    one = maker()
    assert looked_into(one, pair, chosen if chosen is None else pair[1].plan.id) == tuple(pair)
    assert one.steps.runs == []  # type: ignore[attr-defined]


def test_inputs_of_no_known_kind_have_no_conditions() -> None:
    strange = np.repeat(IMAGES, 9, axis=1)  # nine channels
    pair = [made(FLOAT), made(INT8)]
    found = looked_into(maker(inputs=strange), pair, pair[1].plan.id)[1].candidate
    assert found.conditions == ()
    assert found.explanations == ()
    assert found.classes


def test_slow_models_are_looked_into_on_less() -> None:
    assert bounded(8, [0.0001, 0.0002]) == ((1, 3, 5), 256)
    assert bounded(8, [None]) == ((1, 3, 5), None)
    severities, most = bounded(8, [0.05, 0.05])
    assert severities == (3,), "severities go first"
    assert most is not None
    assert most >= 16
    assert most * 9 * 0.2 <= CONDITIONS_S
    assert bounded(8, [5.0]) == ((3,), 16), "there are always some"


def test_latencies_bound_the_samples_of_conditions() -> None:
    one = maker()
    latency = Measurement(
        what="latency_p50", value=0.1, unit="s", where="host", how="100 runs", n=100
    )
    slow = made(FLOAT).changed(measurements=(latency,))
    (found,) = looked_into(one, [slow], slow.plan.id)
    assert {c.severity for c in found.candidate.conditions} == {0, 3}
    assert all(c.n < len(IMAGES) for c in found.candidate.conditions)
