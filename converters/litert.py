"""LiteRT (TensorFlow Lite): ``.tflite`` models in float and in integers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from aid_edge.converter import Arrays, Artifact
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe
from converters.litert_plan import ACCEPTS, check_model
from device_agent.contract.profile import HardwareProfile


class LiteRtConverter:
    """Exports models of every framework and quantizes the flatbuffer."""

    runtime: ClassVar[str] = "litert"
    accepts: ClassVar[frozenset[str]] = ACCEPTS
    methods: ClassVar[frozenset[str]] = frozenset(
        {"float32", "float16", "dynamic-int8", "static-int8", "static-int8-percentile",
         "static-int8-mse", "static-int16x8", "weight-only-int8", "weight-only-int4",
         "keep-float"}
    )  # fmt: skip
    reads: ClassVar[tuple[str, ...]] = (
        "layout.preferred", "numerics.int8_io", "numerics.op_rules",
    )  # fmt: skip

    def check(self, model: SourceModel, profile: HardwareProfile) -> None:
        """Return if ``model`` can be converted for ``profile``; does no work.

        Raises:
            UnsupportedModelError: It cannot; names operators, nodes, rules and ways out.
        """
        check_model(model, profile, self.runtime)

    def convert(
        self,
        model: SourceModel,
        recipe: Recipe,
        calibration: Arrays | None,
        profile: HardwareProfile,
        out: Path,
    ) -> Artifact:
        """Write ``model.tflite`` into ``out``; see :class:`aid_edge.converter.Converter`."""
        # The toolchain takes seconds to import and is only there with the extra `convert`.
        from converters.litert_build import Work, build  # noqa: PLC0415

        return build(Work(model, recipe, calibration, profile, out))
