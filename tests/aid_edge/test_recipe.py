"""Recipes: names, bounds and what they need."""

from __future__ import annotations

import pytest

from aid_edge.errors import UsageError
from aid_edge.recipe import MAX_CALIBRATION_SAMPLES, Float32, Recipe, StaticInt8


def test_float_needs_no_data() -> None:
    recipe = Recipe(Float32())
    assert (recipe.key, recipe.title, recipe.needs_calibration) == ("float32", "float32", False)


def test_titles_say_what_was_done() -> None:
    assert Recipe(StaticInt8()).title == "static int8 (per-channel weights, uint8 activations)"
    other = StaticInt8(per_channel=False, activations="int8", reduce_range=True, method="nncf")
    assert Recipe(other).title == (
        "static int8 (per-tensor weights, int8 activations, no saturation, NNCF bias correction)"
    )
    assert Recipe(other).key == "static-int8-nncf"
    assert Recipe(other).needs_calibration


@pytest.mark.parametrize("samples", [0, -1, MAX_CALIBRATION_SAMPLES + 1])
def test_samples_are_bounded(samples: int) -> None:
    with pytest.raises(UsageError, match="allowed: 1 to 4096"):
        StaticInt8(samples=samples)
