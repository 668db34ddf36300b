"""OpenVINO: float, half-precision, weight-compressed and static int8 models in one file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe, StaticInt8
from aid_edge.sources.operators import refused, shape_refusals
from converters.calibration import Feeds
from device_agent.contract.profile import HardwareProfile

OPSET = 20
"""What is exported to on the way: OpenVINO reads all operators of it."""


class OpenVinoConverter:
    """Goes through ONNX, and quantizes OpenVINO's own graph with NNCF.

    ``static-int8`` takes the smallest and largest value seen of each activation,
    ``static-int8-nncf`` the mean of the smallest and largest per sample as NNCF does by default,
    ``static-int8-percentile`` the mean of per-sample quantiles; all with fast bias correction.
    ``bias-correction`` is NNCF's slow, more exact algorithm in its place.

    There is no ``smooth-quant``: OpenVINO 2026.4 answers wrongly where NNCF has smoothed, a little
    for one input at a time and entirely from the 65th row of a batch on.
    """

    runtime: ClassVar[str] = "openvino"
    accepts: ClassVar[frozenset[str]] = frozenset({"torch", "keras", "onnx"})
    methods: ClassVar[frozenset[str]] = frozenset(
        {"float32", "float16", "static-int8", "static-int8-nncf", "static-int8-percentile",
         "bias-correction", "keep-float", "weight-only-int8", "weight-only-int4"}
    )  # fmt: skip
    reads: ClassVar[tuple[str, ...]] = ("shapes.static", "numerics.op_rules")

    def check(self, model: SourceModel, profile: HardwareProfile) -> None:
        """Return if ``model`` can be converted for ``profile``; does no work.

        Raises:
            UnsupportedModelError: It cannot; names operators, nodes, rules and ways out.
        """
        reasons = []
        if model.framework not in self.accepts:
            reasons.append(f"{model.framework} models are not read on the way to OpenVINO")
        reasons += [verdict.reason for verdict in refused(model.uses, profile)]
        reasons += shape_refusals(model, profile)
        if profile.runtime(self.runtime) is None:
            reasons.append(f"{profile.id} has no runtime {self.runtime}")
        if reasons:
            raise UnsupportedModelError(
                f"{model.spec} cannot be converted to {self.runtime} for {profile.id}",
                reasons,
                hint="Choose another profile or runtime, or change the model where it is named.",
            )

    def convert(
        self,
        model: SourceModel,
        recipe: Recipe,
        calibration: Arrays | None,
        profile: HardwareProfile,
        out: Path,
    ) -> Artifact:
        """Write ``model.openvino`` into ``out``; see :class:`aid_edge.converter.Converter`."""
        # The toolchain takes seconds to import and is only there with the extras.
        from converters import onnx_export, openvino_model, openvino_quantize  # noqa: PLC0415

        floating, final = out / "float.onnx", out / "model.openvino"
        onnx_export.export(model, profile, OPSET, floating)
        found = openvino_model.read(floating, model)
        floating.unlink()
        feeds = None
        if isinstance(recipe.quantize, StaticInt8) and calibration is not None:
            feeds = Feeds(model, calibration, recipe.quantize.samples)
        found, notes = openvino_quantize.apply(found, recipe, feeds, profile)
        openvino_model.write(found, recipe, final)
        tools = onnx_export.tools(model) | openvino_quantize.tools(recipe)
        return Artifact(final, tools=tools, notes=notes)
