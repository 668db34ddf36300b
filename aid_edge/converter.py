"""The protocol that a converter fulfils; see docs/writing-a-converter.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe
from device_agent.contract.manifest import Measurement
from device_agent.contract.profile import HardwareProfile

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays [n, ...]: one entry per input or output, all with the same n."""


@dataclass(frozen=True)
class Artifact:
    """What a converter made.

    Attributes:
        path: The model file, inside the folder that ``convert`` was given.
        axes: For each input whose axes were reordered: the permutation that takes an array as the
            source model wants it to one as the artifact wants it, as ``numpy.transpose`` takes it.
        tools: Name to version of every tool that had a hand in the bytes.
        extras: What goes with it, by name: further files inside the folder, such as the C array
            of a TFLite Micro model. They travel with the release folder, not to devices.
        figures: What only the converter can find, such as an arena or a compiler's cycle estimate;
            each says where and how.
        notes: What the reader of the report must know of this artifact.
    """

    path: Path
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Path] = field(default_factory=dict)
    figures: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()


class Converter(Protocol):
    """Turns a source model into a file for one runtime.

    Found by entry point ``aid_edge.converters``; the key is the runtime's name. Its module may
    import heavy packages only inside ``convert``: ``check`` is called in the main process.

    Attributes:
        runtime: Name as it stands in manifests and profiles.
        accepts: Frameworks of source models it takes.
        methods: What recipes may ask of it: it carries out a recipe whose ``needs`` are among them.
        executes: Optional. False where artifacts cannot be run on any host of this kind: the
            outcome is then inspected instead, and reports say so. True without it.
        reads: Optional. All that the bytes depend on in the profile, as dotted keys, where
            ``runtime`` is the entry of this runtime: ``("runtime.opset_max", "shapes.static")``.
            Profiles that agree in these share the artifact; without it none do.
    """

    runtime: ClassVar[str]
    accepts: ClassVar[frozenset[str]]
    methods: ClassVar[frozenset[str]]

    def check(self, model: SourceModel, profile: HardwareProfile) -> None:
        """Return if ``model`` can be converted for ``profile``; does no work.

        Raises:
            UnsupportedModelError: It cannot; one reason per refusal.
        """

    def convert(
        self,
        model: SourceModel,
        recipe: Recipe,
        calibration: Arrays | None,
        profile: HardwareProfile,
        out: Path,
    ) -> Artifact:
        """Write an artifact into the folder ``out`` and return it. Runs in a worker process.

        Args:
            model: The source model; it passed ``check``.
            recipe: What to do.
            calibration: Real inputs in the source model's layout and element types, or None for
                a recipe that needs none. Usually :class:`aid_edge.samples.Samples`, which lie on
                disk: go through them in batches and memory stays flat.
            profile: What the artifact is for.
            out: An existing empty folder.

        Raises:
            ConversionError: The framework or runtime failed; says where.
            UnsupportedModelError: Something only the conversion could find out.
        """
