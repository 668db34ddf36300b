"""TensorFlow Lite Micro: a model as C, its operators, and the memory it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from aid_edge.converter import Arrays, Artifact
from aid_edge.errors import UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe, StaticInt8
from converters.litert_plan import ACCEPTS, check_model
from device_agent.contract.profile import HardwareProfile


class TfliteMicroConverter:
    """Makes a LiteRT model that the micro interpreter runs, and the sources around it."""

    runtime: ClassVar[str] = "tflite_micro"
    accepts: ClassVar[frozenset[str]] = ACCEPTS
    # No hybrid kernels: nothing with weights in other types than activations.
    methods: ClassVar[frozenset[str]] = frozenset(
        {"float32", "static-int8", "static-int8-percentile", "static-int8-mse", "static-int16x8",
         "keep-float"}
    )  # fmt: skip
    reads: ClassVar[tuple[str, ...]] = (
        "id", "layout.preferred", "numerics.int8_io", "numerics.op_rules", "memory", "accelerator",
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
        """Write model and sources into ``out``; see :class:`aid_edge.converter.Converter`.

        Raises:
            ConversionError: The toolchain failed.
            UnsupportedModelError: TFLite Micro lacks an operator, or the model is too big for the
                memory of ``profile``.
        """
        # The toolchain takes seconds to import and is only there with the extra `convert`.
        from converters import (  # noqa: PLC0415
            litert_flatbuffer,
            tflite_micro_code,
            tflite_micro_memory,
        )
        from converters.litert_build import Work, build  # noqa: PLC0415

        made = build(Work(model, recipe, calibration, profile, out))
        found, _ = litert_flatbuffer.read(made.path)
        if lacking := tflite_micro_code.lacking(found):
            raise UnsupportedModelError(
                f"{model.spec} cannot run in TFLite Micro",
                lacking,
                hint="Choose a profile with litert, or change the model where it is named.",
            )
        arena, arena_note = tflite_micro_memory.arena(made.path, found)
        tflite_micro_memory.check_fits(made.path, found, int(arena.value), profile)
        title = f"{model.name} {model.version}, {recipe.title}, for {profile.id}; by AID Edge"
        about = (title, int(arena.value), f"{arena.where}: {arena.how}")
        extras = tflite_micro_code.write(made.path, found, about)
        figures, notes = [arena], [*made.notes, *([arena_note] if arena_note else [])]
        accelerator = profile.accelerator if isinstance(recipe.quantize, StaticInt8) else None
        if accelerator is not None:
            expected, compiled, note = tflite_micro_memory.compile_for(accelerator, made.path)
            figures += expected
            notes += [note] if note else []
            if compiled is not None:
                extras["model_vela.tflite"] = compiled
        tools = dict(made.tools) | tflite_micro_memory.tools(accelerated=accelerator is not None)
        return replace(made, tools=tools, extras=extras, figures=tuple(figures), notes=tuple(notes))
