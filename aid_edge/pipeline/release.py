"""Writes the release folder of a chosen candidate, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aid_edge import leftovers
from aid_edge.catalogue.draft import (
    FILE_NAME,
    DraftFile,
    ReleaseDraft,
    draft_file,
    write_draft,
)
from aid_edge.catalogue.files import sync_folder
from aid_edge.errors import HostError
from aid_edge.model import SourceModel
from aid_edge.pipeline.findings import Candidate
from aid_edge.runner import ConversionResult
from device_agent.contract.manifest import (
    Golden,
    Layout,
    Limits,
    PostprocessStep,
    PreprocessStep,
    ProfileRef,
    Role,
    RuntimeRef,
)
from device_agent.contract.profile import HardwareProfile

FOLDER = "release"
MIN_DEADLINE_S = 1.0
DEADLINE_FACTOR = 10.0
"""The default deadline of a request is this many times the profile's p95 bound."""

_NHWC_FROM_NCHW = (0, 2, 3, 1)
_NCHW_FROM_NHWC = (0, 3, 1, 2)


class OutputError(HostError):
    """The output folder cannot be written; what was there before is as it was."""

    code = "output"
    default_hint = "Free some space or name another folder with --out."


@dataclass(frozen=True)
class Chosen:
    """A chosen candidate with all that goes into its release.

    Attributes:
        golden: How golden vectors are judged.
        golden_frame: Their bytes.
        provenance: JSON of what it was made from and with.
    """

    candidate: Candidate
    result: ConversionResult
    profile: HardwareProfile
    profile_digest: str
    golden: Golden
    golden_frame: bytes
    provenance: bytes


@dataclass(frozen=True)
class About:
    """What all releases of one conversion share; ``report`` is HTML, ``report_data`` JSON."""

    model: SourceModel
    name: str
    version: str
    task: Literal["classification", "other"]
    calibration_digest: str | None
    report: bytes
    report_data: bytes


def check_writable(out: Path) -> None:
    """Return if ``out`` can be written; asked before any work, so nothing is left behind.

    Raises:
        OutputError: It cannot.
    """
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        for folder in missing:
            folder.rmdir()


@contextlib.contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Turn what goes wrong with files under ``out`` into :class:`OutputError`."""
    try:
        yield
    except OSError as e:
        # A copy names its source first; what could not be written is the other name.
        where = e.filename2 or e.filename or out
        raise OutputError(f"{where}: cannot be written: {e.strerror or e}") from e


def write_release(out: Path, about: About, chosen: Chosen) -> Path:
    """Write ``out/<profile>/release`` and return it; one that was there is replaced as a whole.

    Args:
        out: Folder of the conversion.
        about: What all its releases share.
        chosen: What is released.

    Raises:
        OutputError: It cannot be written.
    """
    place = out / chosen.profile.id / FOLDER
    with output_errors(out), _replacing(place) as folder:
        names: dict[Role, str] = {"model": f"model{chosen.result.artifact.suffix}"}
        shutil.copyfile(chosen.result.artifact, folder / names["model"])
        labels = about.model.card.labels if about.model.card is not None else ()
        contents: list[tuple[Role, str, bytes]] = [
            ("golden", "golden.tensors", chosen.golden_frame),
            ("report", "report.html", about.report),
            ("report-data", "report.json", about.report_data),
            ("provenance", "provenance.json", chosen.provenance),
        ]
        if labels:
            contents.append(("labels", "labels.txt", "".join(f"{x}\n" for x in labels).encode()))
        for role, name, data in contents:
            (folder / name).write_bytes(data)
            names[role] = name
        files = tuple(draft_file(folder, role, name) for role, name in names.items())
        write_draft(folder, _draft(about, chosen, files))
    return place


def remove_release(out: Path, profile_id: str) -> None:
    """Remove a release of an earlier conversion, so that nobody publishes what now misses a gate.

    Raises:
        OutputError: It cannot be removed.
    """
    place = out / profile_id / FOLDER
    if (place / FILE_NAME).is_file():
        with output_errors(out):
            shutil.rmtree(place)


def released_steps(
    steps: Sequence[PreprocessStep], axes: Sequence[int] | None
) -> tuple[PreprocessStep, ...]:
    """Return the preprocessing for the artifact, whose image axes may be reordered.

    Args:
        steps: From an image to the source model's input.
        axes: Permutation from the source's axes to the artifact's, or None when they are kept.
    """
    if not steps or axes is None or tuple(axes) not in {_NHWC_FROM_NCHW, _NCHW_FROM_NHWC}:
        return tuple(steps)
    kept = [step for step in steps if not isinstance(step, Layout)]
    return (*kept, Layout("NHWC" if tuple(axes) == _NHWC_FROM_NCHW else "NCHW"))


def _draft(about: About, chosen: Chosen, files: tuple[DraftFile, ...]) -> ReleaseDraft:
    profile, result = chosen.profile, chosen.result
    runtime = profile.runtime(result.runtime)
    if runtime is None:
        raise OutputError(f"profile {profile.id} has no runtime {result.runtime}")
    card, hard = about.model.card, profile.constraints.hard
    preprocess: tuple[PreprocessStep, ...] = ()
    postprocess: tuple[PostprocessStep, ...] = ()
    if card is not None:
        axes = result.axes.get(about.model.inputs[0].name)
        preprocess, postprocess = released_steps(card.preprocess, axes), card.postprocess
    return ReleaseDraft(
        name=about.name,
        version=about.version,
        profile=ProfileRef(profile.id, chosen.profile_digest),
        runtime=RuntimeRef(runtime.name, runtime.version, runtime.providers),
        task=about.task,
        inputs=result.inputs,
        outputs=result.outputs,
        preprocess=preprocess,
        postprocess=postprocess,
        limits=Limits(
            memory_bytes=int(hard.peak_ram),
            threads=runtime.threads,
            deadline_s=max(MIN_DEADLINE_S, DEADLINE_FACTOR * float(hard.latency_p95)),
        ),
        golden=chosen.golden,
        files=files,
        measurements=chosen.candidate.measurements,
        recipe=chosen.candidate.recipe,
        licence=card.licence if card is not None else "",
        source_digest=about.model.digest,
        calibration_digest=about.calibration_digest if chosen.candidate.compressed else None,
        tools=dict(result.tools),
    )


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of ``place`` when the block ends well."""
    place.parent.mkdir(parents=True, exist_ok=True)
    kind = f".{place.name}-"
    leftovers.clear(place.parent.glob(f"{kind}*"), kind)
    work = leftovers.make(place.parent, kind)
    fresh, old = work / "new", work / "old"
    try:
        fresh.mkdir()
        yield fresh
        for file in fresh.iterdir():
            _sync(file)
        if place.exists():
            place.rename(old)
        try:
            fresh.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise
        sync_folder(place.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
