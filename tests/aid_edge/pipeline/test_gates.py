from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from aid_edge.pipeline.findings import Candidate, Gate, MetricFinding, TrainingFinding
from aid_edge.pipeline.gates import accuracy_gate, fidelity_gates, judge
from aid_edge.pipeline.verdict import missed
from device_agent.contract.manifest import Measurement
from device_agent.contract.profile import Duration, Hard, Size

Make = Callable[..., Candidate]
HARD = Hard(artifact=Size(10_000_000), peak_ram=Size(200_000_000), latency_p95=Duration(0.02))


def by_name(gates: tuple[Gate, ...]) -> dict[str, Gate]:
    return {g.gate: g for g in gates}


def test_sizes_and_latency_over_their_limits_fail(make_candidate: Make) -> None:
    over = make_candidate(artifact=10_000_001, memory=200_000_001, p50=0.02)
    gates = by_name(judge(over, HARD, latency_known=True))
    assert [gates[g].status for g in ("artifact-size", "peak-memory", "latency-p95")] == [
        "fail"
    ] * 3
    at = make_candidate(artifact=10_000_000, memory=200_000_000, p50=0.01)
    gates = by_name(judge(at, HARD, latency_known=True))
    assert [gates[g].status for g in ("artifact-size", "peak-memory", "latency-p95")] == [
        "pass"
    ] * 3


def test_host_latency_decides_nothing_for_another_architecture(make_candidate: Make) -> None:
    slow = make_candidate(p50=9.0, where="estimate")
    gate = by_name(judge(slow, HARD, latency_known=False))["latency-p95"]
    assert gate.status == "not-measured"
    assert "uncalibrated" in gate.text


def test_a_figure_within_noise_of_its_limit_is_not_firm(make_candidate: Make) -> None:
    near = make_candidate(p50=0.02 / 1.2)
    gate = by_name(judge(near, HARD, latency_known=True))["latency-p95"]
    assert (gate.status, gate.firm) == ("pass", False)


def test_figures_that_were_not_made_are_said_to_be_missing(make_candidate: Make) -> None:
    bare = make_candidate(measurements=(Measurement("artifact_bytes", 1, "B", "host", "", 1),))
    gates = by_name(judge(bare, HARD, latency_known=True))
    assert gates["peak-memory"].status == gates["latency-p95"].status == "not-measured"


@pytest.mark.parametrize(
    ("losses", "gains", "n", "status"),
    [
        (0, 0, 20, "undecided"),  # twenty equal answers leave 16 points open
        (10, 10, 20_000, "pass"),
        (900, 100, 10_000, "fail"),
        (12, 4, 1_000, "undecided"),
    ],
)
def test_accuracy_is_judged_by_the_whole_interval(
    make_accuracy: Callable[..., object], losses: int, gains: int, n: int, status: str
) -> None:
    gate = accuracy_gate(make_accuracy(losses, gains, n), 0.99)  # type: ignore[arg-type]
    assert gate.status == status
    assert gate.low is not None
    assert gate.low <= gate.value <= gate.high  # type: ignore[operator]


def test_an_undecided_gate_says_what_the_samples_can_show(
    make_accuracy: Callable[..., object],
) -> None:
    text = accuracy_gate(make_accuracy(0, 0, 20), 0.99).text  # type: ignore[arg-type]
    assert "undecided" in text
    assert "interval [-16.1, 16.1]" in text
    assert "n = 20" in text
    assert "20 labelled samples find a drop of 2.00 points or more" in text
    assert "at least 381 samples could decide" in text
    assert "fidelity to the source decides" in text


def test_no_labels_is_said() -> None:
    gate = accuracy_gate(None, 0.99)
    assert gate.status == "not-measured"
    assert "no labelled data" in gate.text


def test_fidelity_gates_say_when_only_the_figure_passes(
    make_fidelity: Callable[..., object],
) -> None:
    agreement, cosine = fidelity_gates(make_fidelity(agreement_low=0.88), HARD)  # type: ignore[arg-type]
    assert (agreement.status, agreement.firm) == ("pass", False)
    assert "from 10 originals" in agreement.text
    assert (cosine.status, cosine.firm) == ("pass", True)
    failing = fidelity_gates(make_fidelity(agreement=0.89, agreement_high=0.95), HARD)[0]  # type: ignore[arg-type]
    assert (failing.status, failing.firm) == ("fail", False)


def test_a_task_without_classes_is_judged_by_cosine(make_fidelity: Callable[..., object]) -> None:
    far = make_fidelity(agreement=None, agreement_low=None, agreement_high=None, cosine=0.5)
    only = fidelity_gates(far, HARD)  # type: ignore[arg-type]
    assert [(g.gate, g.status) for g in only] == [("cosine", "fail")]


def _trained() -> TrainingFinding:
    return TrainingFinding(
        method="distilled", quality="agreement with the source", points=(), best_epoch=9,
        stopped="epochs", macs_before=100, macs_after=30, parameters_before=100,
        parameters_after=30,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pruned", "losses", "gains", "n", "status"),
    [
        (True, 10, 10, 20_000, "undecided"),
        (False, 10, 10, 20_000, "fail"),  # only quantized: it is to give the source's numbers
        (True, 0, 0, 20, "fail"),  # too few labels to say anything
        (True, 900, 100, 10_000, "fail"),
    ],
)
def test_sure_labels_overrule_the_closeness_of_a_pruned_net(
    *,
    make_candidate: Make,
    make_accuracy: Callable[..., object],
    make_fidelity: Callable[..., object],
    pruned: bool,
    losses: int,
    gains: int,
    n: int,
    status: str,
) -> None:
    far = make_candidate(
        artifact=1e6,
        memory=1e6,
        accuracy=make_accuracy(losses, gains, n),
        fidelity=make_fidelity(cosine=0.9, cosine_low=0.89, cosine_high=0.91, agreement=0.5),
        training=_trained() if pruned else None,
    )
    gates = by_name(judge(far, HARD, latency_known=False))
    assert [gates[g].status for g in ("agreement", "cosine")] == [status] * 2
    assert ("overruled" in gates["cosine"].text) == (status == "undecided")
    assert (missed(_judged(far)) is None) == (status == "undecided")


def _judged(far: Candidate) -> Candidate:
    return msgspec.structs.replace(far, gates=judge(far, HARD, latency_known=False))


@pytest.mark.parametrize(("labelled", "status"), [(True, "undecided"), (False, "fail")])
def test_a_metric_overrules_closeness_only_where_labels_say_what_is_right(
    make_candidate: Make, make_fidelity: Callable[..., object], labelled: bool, status: str
) -> None:
    score = MetricFinding(
        name="map", unit="share", higher_is_better=True, n=5000, source=0.8, candidate=0.8,
        drop=0.0, drop_low=-0.001, drop_high=0.001, labelled=labelled,
    )  # fmt: skip
    far = make_candidate(
        metrics=(score,), training=_trained(), fidelity=make_fidelity(cosine=0.9, cosine_high=0.91)
    )
    assert by_name(judge(far, HARD, latency_known=False))["cosine"].status == status
