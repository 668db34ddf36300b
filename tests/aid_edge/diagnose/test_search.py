"""The search for layers to keep in float: fewest, in few attempts, and honest about effects."""

from __future__ import annotations

import pytest

from aid_edge.diagnose import Judgement, LayerRecord, sensitivity
from aid_edge.errors import ConversionError, UsageError
from aid_edge.recipe import Float32, Recipe, StaticInt8

RECORDS = tuple(
    LayerRecord(f"l{i}", "Conv", 10.0 + i, 0.0, 1.0, 3.0, 0.0, "integer") for i in range(20)
)


def _needing(count: int, seen: list[int]) -> object:
    def attempt(recipe: Recipe) -> Judgement:
        assert isinstance(recipe.quantize, StaticInt8)
        kept = len(recipe.quantize.keep_float)
        seen.append(kept)
        return Judgement(kept >= count, kept / 20, f"agreement {kept / 20:.2f}")

    return attempt


@pytest.mark.parametrize("count", range(1, 11))
def test_the_fewest_that_pass_are_found(count: int) -> None:
    seen: list[int] = []
    found = sensitivity(Recipe(StaticInt8()), RECORDS, _needing(count, seen))
    assert found.recipe is not None
    assert found.recipe.quantize.keep_float == tuple(f"l{i}" for i in range(count))
    assert len(seen) == len(set(seen)) == len(found.attempts) <= 7


def test_effects_are_told_layer_by_layer() -> None:
    before = Judgement(False, 0.0, "agreement 0.00")
    found = sensitivity(Recipe(StaticInt8()), RECORDS, _needing(3, []), before=before)
    assert found.records[0].tried == (
        "1 layer in float: agreement 0.05, before agreement 0.00; not enough"
    )
    assert found.records[2].tried.startswith("3 layers in float: agreement 0.15")
    assert found.records[2].tried.endswith("enough")
    assert found.records[9].tried == ""


def test_half_of_the_layers_is_the_most_that_is_tried() -> None:
    seen: list[int] = []
    found = sensitivity(Recipe(StaticInt8()), RECORDS, _needing(11, seen))
    assert found.recipe is None
    assert max(seen) == 10


def test_attempts_are_bounded() -> None:
    seen: list[int] = []
    assert sensitivity(Recipe(StaticInt8()), RECORDS, _needing(9, seen), attempts=3).recipe is None
    assert seen == [1, 2, 4]


def test_a_failed_conversion_is_a_failed_attempt() -> None:
    def attempt(recipe: Recipe) -> Judgement:
        if len(recipe.quantize.keep_float) < 2:
            raise ConversionError("the tool failed")
        return Judgement(True, 1.0, "agreement 1.00")

    found = sensitivity(Recipe(StaticInt8()), RECORDS, attempt)
    assert found.attempts[0].judgement is None
    assert "the tool failed" in found.attempts[0].text
    assert found.recipe is not None


def test_layers_that_are_float_already_are_passed_over() -> None:
    seen: list[int] = []
    found = sensitivity(Recipe(StaticInt8(keep_float=("l0",))), RECORDS, _needing(3, seen))
    assert found.recipe.quantize.keep_float == ("l0", "l1", "l2")


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(UsageError, match="no layers to keep"):
        sensitivity(Recipe(Float32()), RECORDS, _needing(1, []))
    with pytest.raises(UsageError, match="0 attempts"):
        sensitivity(Recipe(StaticInt8()), RECORDS, _needing(1, []), attempts=0)
