from __future__ import annotations

from collections.abc import Callable

import msgspec

from aid_edge.pipeline.findings import Candidate, Refusal
from aid_edge.pipeline.search.cost import estimate, in_order
from aid_edge.pipeline.search.front import pareto, why_not_cheaper
from aid_edge.pipeline.search.space import Plan
from aid_edge.recipe import Float32, Recipe, Recover, StaticInt8, Structured


def test_the_front_holds_what_nothing_beats(make_candidate: Callable[..., Candidate]) -> None:
    whole = make_candidate("a/float32", artifact=20e6, p50=0.02)
    small = make_candidate("a/static-int8", artifact=5e6, p50=0.01)
    beaten = make_candidate("a/dynamic-int8", artifact=6e6, p50=0.03)
    unmeasured = msgspec.structs.replace(whole, id="a/x", measurements=())
    found = pareto([whole, small, beaten, unmeasured], latency_known=True)
    assert found == ("a/static-int8",), "smaller, faster, as lean and as close"
    lean = make_candidate("a/float16", artifact=10e6, p50=0.02, memory=1e6)
    assert pareto([whole, small, lean], latency_known=True) == ("a/static-int8", "a/float16")


def test_unknown_latency_beats_nothing(make_candidate: Callable[..., Candidate]) -> None:
    fast = make_candidate("a/float32", artifact=20e6, p50=0.001)
    small = make_candidate("a/static-int8", artifact=5e6, p50=0.01)
    assert pareto([fast, small], latency_known=False) == ("a/static-int8",)


def test_the_next_cheaper_one_is_named_with_figures(
    make_candidate: Callable[..., Candidate],
) -> None:
    chosen = make_candidate("a/float32", p50=0.02)
    refusal = Refusal(code="accuracy-dropped", text="drop 7.00 points")
    near = make_candidate("a/static-int8", p50=0.01, outcome=refusal)
    far = make_candidate("a/other", p50=0.005, outcome=refusal)
    text = why_not_cheaper([chosen, near, far], "a/float32", ["latency"])
    assert text == (
        "a/static-int8 would be cheaper by latency, 10 ms against 20 ms (0.50x), but: "
        "accuracy-dropped: drop 7.00 points"
    )
    assert why_not_cheaper([chosen], "a/float32", ["latency"]).startswith("Nothing cheaper")
    assert why_not_cheaper([near], None, ["latency"]) == ""


def test_float_is_first_and_what_takes_long_is_last() -> None:
    whole, int8 = Recipe(Float32()), Recipe(StaticInt8())
    slow = Recipe(StaticInt8(method="entropy", samples=4000))
    pruned = Recipe(StaticInt8(), 0, Structured(0.5), Recover("distill", 10))
    plans = [Plan("onnx_runtime", r) for r in (pruned, slow, int8, whole)]
    order = [p.recipe for p in in_order(plans, 1_000_000)]
    assert order == [whole, int8, slow, pruned]


def test_estimates_follow_bits_and_pruning() -> None:
    def of(recipe: Recipe) -> tuple[float, float]:
        found = estimate(Plan("onnx_runtime", recipe), 1_000_000)
        return found.artifact_bytes, found.latency

    assert of(Recipe(Float32()))[0] > 3.5 * of(Recipe(StaticInt8()))[0]
    half = Recipe(StaticInt8(), 0, Structured(0.5), Recover())
    assert of(half)[0] < 0.4 * of(Recipe(StaticInt8()))[0]
    assert of(half)[1] == of(Recipe(StaticInt8()))[1] / 4
