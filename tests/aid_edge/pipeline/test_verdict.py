from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from aid_edge.pipeline.findings import Candidate, Refusal
from aid_edge.pipeline.gates import judge
from aid_edge.pipeline.verdict import Choice, choose, is_faster
from device_agent.contract.profile import HardwareProfile

Make = Callable[..., Candidate]
FLOAT, INT8 = "onnx_runtime/float32", "onnx_runtime/static-int8"


def decide(
    candidates: Sequence[Candidate],
    profile: HardwareProfile,
    rank_by: Sequence[str] = ("latency", "size"),
    *,
    known: bool = True,
) -> Choice:
    hard = profile.constraints.hard
    judged = [
        msgspec.structs.replace(c, gates=judge(c, hard, latency_known=known)) for c in candidates
    ]
    return choose(judged, rank_by, latency_known=known)


def codes(choice: Choice) -> dict[str, str]:
    return {name: refusal.code for name, refusal in choice.outcomes.items()}


def test_the_faster_and_smaller_is_chosen(make_candidate: Make, profile: HardwareProfile) -> None:
    choice = decide([make_candidate(FLOAT), make_candidate(INT8, artifact=5e6, p50=0.008)], profile)
    assert choice.chosen == INT8
    assert codes(choice) == {INT8: "chosen", FLOAT: "outranked"}
    assert "size 5 MB against 20 MB (0.25x)" in choice.verdict
    assert "p50 8 ms against 20 ms (0.40x)" in choice.verdict


def test_do_no_harm_refuses_what_is_slower_larger_and_no_better(
    make_candidate: Make, profile: HardwareProfile
) -> None:
    worse = make_candidate(INT8, artifact=21e6, p50=0.03, memory=125e6)
    choice = decide([make_candidate(FLOAT), worse], profile)
    assert choice.chosen == FLOAT
    assert choice.outcomes[INT8].code == "float-is-better"
    assert "21 MB against 20 MB (1.05x)" in choice.outcomes[INT8].text
    assert choice.verdict.startswith("float is better here: ")
    assert f"Not chosen: {INT8} (float-is-better): size 21 MB against 20 MB" in choice.verdict


def test_smaller_but_slower_loses_where_latency_ranks_first(
    make_candidate: Make, profile: HardwareProfile
) -> None:
    slower = make_candidate(INT8, artifact=5e6, p50=0.03)
    by_latency = decide([make_candidate(FLOAT), slower], profile)
    assert by_latency.chosen == FLOAT
    assert codes(by_latency)[INT8] == "outranked"
    assert "ahead by latency" in by_latency.outcomes[INT8].text
    assert "float is better here" in by_latency.verdict
    assert "1.50x" in by_latency.verdict
    by_size = decide([make_candidate(FLOAT), slower], profile, ("size", "latency"))
    assert by_size.chosen == INT8


def test_latency_within_noise_is_a_tie_and_size_decides(
    make_candidate: Make, profile: HardwareProfile
) -> None:
    close = make_candidate(INT8, artifact=5e6, p50=0.0203)
    assert not is_faster(make_candidate(FLOAT), close)
    assert decide([make_candidate(FLOAT), close], profile).chosen == INT8


def test_unknown_latency_neither_ranks_nor_harms(
    make_candidate: Make, profile: HardwareProfile
) -> None:
    slower = make_candidate(INT8, artifact=5e6, p50=0.05, where="estimate")
    choice = decide([make_candidate(FLOAT, where="estimate"), slower], profile, known=False)
    assert choice.chosen == INT8
    assert "unknown (uncalibrated)" in choice.verdict
    larger = make_candidate(INT8, artifact=21e6, p50=0.001, where="estimate")
    choice = decide([make_candidate(FLOAT, where="estimate"), larger], profile, known=False)
    assert codes(choice)[INT8] == "float-is-better"


def test_a_missed_gate_refuses_with_its_reason_code(
    make_candidate: Make,
    make_fidelity: Callable[..., object],
    make_accuracy: Callable[..., object],
    profile: HardwareProfile,
) -> None:
    hard = profile.constraints.hard
    cases = {
        "artifact-too-large": make_candidate("r/a", artifact=hard.artifact + 1),
        "memory-over-limit": make_candidate("r/b", memory=hard.peak_ram + 1),
        "latency-over-limit": make_candidate("r/c", p50=hard.latency_p95 * 2),
        "agreement-low": make_candidate("r/d", fidelity=make_fidelity(agreement=0.5)),
        "cosine-low": make_candidate("r/e", fidelity=make_fidelity(cosine=0.5)),
        "accuracy-dropped": make_candidate("r/f", accuracy=make_accuracy(900, 0, 10_000)),
        "not-decided": make_candidate("r/g", fidelity=None),
    }
    choice = decide(list(cases.values()), profile)
    assert choice.chosen is None
    assert codes(choice) == {c.id: code for code, c in cases.items()}
    assert choice.verdict.startswith("gate missed")
    assert all(code in choice.verdict for code in cases)


def test_undecided_accuracy_rests_on_fidelity(
    make_candidate: Make, make_accuracy: Callable[..., object], profile: HardwareProfile
) -> None:
    small = make_candidate(INT8, artifact=5e6, p50=0.008, accuracy=make_accuracy(1, 0, 20))
    choice = decide([make_candidate(FLOAT, accuracy=make_accuracy(0, 0, 20)), small], profile)
    assert choice.chosen == INT8
    assert "n = 20, undecided" in choice.verdict
    assert "agrees with the source on 96.0 % of 120" in choice.verdict


def test_a_failed_conversion_keeps_its_reason(
    make_candidate: Make, profile: HardwareProfile
) -> None:
    failed = make_candidate(
        INT8, gates=(), measurements=(), outcome=Refusal(code="step-crashed", text="out of memory")
    )
    choice = decide([make_candidate(FLOAT), failed], profile)
    assert choice.chosen == FLOAT
    assert choice.outcomes[INT8].code == "step-crashed"


def test_equals_are_settled_by_the_profiles_order(
    make_candidate: Make, profile: HardwareProfile
) -> None:
    first, second = make_candidate("onnx_runtime/float32"), make_candidate("litert/float32")
    choice = decide([first, second], profile)
    assert choice.chosen == first.id
    assert "the profile's order" in choice.outcomes[second.id].text


def test_ranking_by_memory_and_accuracy(
    make_candidate: Make, make_accuracy: Callable[..., object], profile: HardwareProfile
) -> None:
    lean = make_candidate(INT8, memory=60e6, p50=0.03)
    assert decide([make_candidate(FLOAT), lean], profile, ("memory",)).chosen == INT8
    exact = make_candidate(FLOAT, accuracy=make_accuracy(0, 0, 50_000))
    lossy = make_candidate(INT8, artifact=5e6, accuracy=make_accuracy(300, 0, 50_000))
    assert decide([lossy, exact], profile, ("accuracy",)).chosen == FLOAT
