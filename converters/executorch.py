"""ExecuTorch: float, static and dynamic int8 programs for the XNNPACK backend."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe, StaticInt8
from aid_edge.sources.opening import is_on_tensorflow
from aid_edge.sources.operators import refused, shape_refusals
from converters.calibration import Feeds
from device_agent.contract.profile import HardwareProfile


class ExecuTorchConverter:
    """Exports with ``torch.export``, quantizes with PT2E and lowers to XNNPACK.

    ``static-int8`` takes the smallest and largest value seen of each activation,
    ``static-int8-mse`` searches the range with the least squared error in a histogram.
    """

    runtime: ClassVar[str] = "executorch"
    accepts: ClassVar[frozenset[str]] = frozenset({"torch", "keras"})
    methods: ClassVar[frozenset[str]] = frozenset(
        {"float32", "static-int8", "static-int8-mse", "dynamic-int8"}
    )
    reads: ClassVar[tuple[str, ...]] = ("numerics.op_rules",)

    def check(self, model: SourceModel, profile: HardwareProfile) -> None:
        """Return if ``model`` can be converted for ``profile``; does no work.

        Raises:
            UnsupportedModelError: It cannot; names operators, nodes, rules and ways out.
        """
        reasons = []
        if model.framework not in self.accepts:
            reasons.append(
                f"{model.framework} models are not read by torch.export: give the PyTorch model "
                "it was exported from"
            )
        elif is_on_tensorflow(model.framework):
            reasons.append("Keras models must be on torch: unset KERAS_BACKEND")
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
        """Write ``model.pte`` into ``out``; see :class:`aid_edge.converter.Converter`."""
        # The toolchain takes seconds to import and is only there with its extra.
        from converters import executorch_program, executorch_quantize  # noqa: PLC0415

        feeds = None
        if isinstance(recipe.quantize, StaticInt8):
            if recipe.quantize.activations != "int8":
                raise ConversionError(
                    "XNNPACK computes with signed 8-bit activations",
                    hint="Ask for activations='int8' where the runtime is executorch.",
                )
            if calibration is not None:
                feeds = Feeds(model, calibration, recipe.quantize.samples)
        program = executorch_program.export(model)
        program = executorch_quantize.apply(program, recipe, feeds, profile)
        final = out / "model.pte"
        executorch_program.lower(program, model, final)
        return Artifact(final, tools=executorch_program.tools(model, recipe))
