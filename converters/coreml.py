"""Core ML: ML programs in half precision, with weights in 8 bits or in a table of few values."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe
from aid_edge.sources.opening import is_on_tensorflow
from aid_edge.sources.operators import refused, shape_refusals
from device_agent.contract.profile import HardwareProfile

_INPUT_TYPES = frozenset({"FP32", "FP16", "INT32", "INT64"})


class CoreMlConverter:
    """Writes an ``.mlpackage`` as one archive. It cannot be run here, only inspected."""

    runtime: ClassVar[str] = "coreml"
    accepts: ClassVar[frozenset[str]] = frozenset({"torch", "torchscript", "keras"})
    methods: ClassVar[frozenset[str]] = frozenset(
        {"float32", "float16", "weight-only-int8", "palettized"}
    )
    executes: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def check(self, model: SourceModel, profile: HardwareProfile) -> None:
        """Return if ``model`` can be converted for ``profile``; does no work.

        Raises:
            UnsupportedModelError: It cannot; names operators, nodes, rules and ways out.
        """
        reasons = []
        if model.framework not in self.accepts:
            reasons.append(
                f"{model.framework} models are not read by Core ML Tools: give the PyTorch model "
                "it was exported from"
            )
        elif model.framework == "keras" and is_on_tensorflow(model.framework):
            reasons.append("Keras models must be on torch: unset KERAS_BACKEND")
        reasons += [
            f"input {tensor.name} is {tensor.datatype}; Core ML takes floats and 32-bit integers"
            for tensor in model.inputs
            if tensor.datatype not in _INPUT_TYPES
        ]
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
        """Write ``model.mlpackage.zip`` into ``out``; see :class:`aid_edge.converter.Converter`."""
        # The toolchain takes ten seconds to import and is only there with its extra.
        from converters import coreml_package  # noqa: PLC0415

        del calibration, profile
        final = out / "model.mlpackage.zip"
        program = coreml_package.export(model, recipe)
        coreml_package.write(coreml_package.compress(program, recipe), final)
        return Artifact(final, tools=coreml_package.tools(model))
