"""How a device compares with this host: the cost table of its hardware profile.

The probe pack runs on both; the factor is the median of device latency by host latency, and its
error the median of what the factor of the other probes gets wrong about each one.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aid_edge import registry, runner
from aid_edge.errors import ConversionError, HostError, UsageError
from aid_edge.hub.on_device import Bench, Progress, TrialModel
from aid_edge.hub.probes import PROBES
from aid_edge.pipeline.search.space import default_int8
from aid_edge.recipe import Float32, Recipe
from aid_edge.runner import ConversionRequest, ConversionResult
from aid_edge.sources.opening import open_source
from device_agent.contract.profile import Cost, HardwareProfile, decode_profile
from device_agent.contract.tensors import TensorInfo

MIN_POINTS = 3
"""Fewer pairs of latencies say nothing about their spread."""

MAX_ERROR = 1.0
CALIBRATION_SAMPLES = 16
HOST_RUNS = 100
_NONE = "# No [cost]"


@dataclass(frozen=True)
class Point:
    """One probe on both machines: medians in seconds."""

    probe: str
    host_s: float
    device_s: float

    @property
    def ratio(self) -> float:
        """Device latency divided by host latency."""
        return self.device_s / self.host_s


@dataclass(frozen=True)
class Calibration:
    """What was found, and what could not be measured and why."""

    cost: Cost
    points: tuple[Point, ...]
    failed: tuple[str, ...]


def calibrate(
    bench: Bench, profile: HardwareProfile, digest: str, on_progress: Progress
) -> Calibration:
    """Run the probe pack on this host and on the device, and return the profile's cost table.

    Args:
        bench: The device.
        profile: Of the device.
        digest: Of the profile's file.
        on_progress: Told how far it is.

    Raises:
        ConversionError: Too few probes could be made and measured on both.
        HubError: The hub refuses, cannot be asked, or the device is silent.
    """
    failed: list[str] = []
    names: list[str] = []
    models: list[TrialModel] = []
    with tempfile.TemporaryDirectory() as scratch:
        wanted = _wanted(profile)
        for i, (probe, runtime, recipe) in enumerate(wanted):
            name = f"{probe} {runtime} {recipe.key}"
            on_progress(0.5 * i / len(wanted), name)
            try:
                made = _make(probe, runtime, recipe, profile, Path(scratch) / str(i))
            except HostError as e:
                failed.append(f"{name}: {str(e).splitlines()[0]}")
                continue
            names.append(name)
            models.append(TrialModel(profile, digest, made, made.to_artifact(_inputs(probe, 4))))
        hosts = [_host_s(model) for model in models]
        results = bench.measure(models, lambda share, what: on_progress(0.5 + 0.5 * share, what))
    points = []
    tools: dict[str, str] = {}
    for name, host_s, result in zip(names, hosts, results, strict=True):
        if result.outcome == "failed":
            failed.append(f"{name}: {result.reason}")
            continue
        points.append(Point(name, host_s, float(np.median(result.latencies_s))))
        tools[result.runtime] = result.runtime_version
    return Calibration(cost_of(points, tools, failed), tuple(points), tuple(failed))


def cost_of(points: Sequence[Point], tools: dict[str, str], failed: Sequence[str] = ()) -> Cost:
    """Return the cost table that ``points`` make.

    Raises:
        ConversionError: They are too few, or too far apart to predict anything.
    """
    if len(points) < MIN_POINTS:
        raise ConversionError(
            f"only {len(points)} probes were measured on both machines; {MIN_POINTS} are needed",
            cause="; ".join(failed[:5]),
        )
    ratios = np.array([p.ratio for p in points])
    others = [float(np.median(np.delete(ratios, i))) for i in range(len(ratios))]
    error = float(np.median(np.abs(np.array(others) / ratios - 1)))
    if error > MAX_ERROR:
        raise ConversionError(
            f"the probes' latencies have no common factor: their ratios are "
            f"{', '.join(f'{r:.2g}' for r in sorted(ratios))}",
            hint="Is the device or this host busy? Try again when both are quiet.",
        )
    return Cost(
        latency_factor=float(np.median(ratios)),
        error=error,
        points=len(points),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        tools=dict(sorted(tools.items())),
    )


def with_cost(text: str, cost: Cost, source: str) -> str:
    """Return the profile ``text`` with its cost table replaced; all else stays, comments too.

    Raises:
        ProfileError: What comes of it is not a profile.
    """
    kept, is_cost = [], False
    for line in text.splitlines():
        if line.strip().startswith("["):
            is_cost = line.strip().startswith(("[cost]", "[cost."))
        if not is_cost and not line.startswith(_NONE):
            kept.append(line)
    lines = [
        "[cost]",
        f"latency_factor = {cost.latency_factor:.4g}",
        f"error = {cost.error:.3f}",
        f"points = {cost.points}",
        f'date = "{cost.date}"',
        "",
        "[cost.tools]",
        *[f'{name} = "{version}"' for name, version in cost.tools.items()],
    ]
    found = "\n".join(kept).rstrip() + "\n\n" + "\n".join(lines) + "\n"
    decode_profile(found.encode(), source)
    return found


def check_out(path: Path, profile: HardwareProfile) -> None:
    """Return if the calibrated profile may be written to ``path``.

    Raises:
        UsageError: It is there already, or its name is not the profile's.
    """
    if path.exists():
        raise UsageError(f"{path}: is there already", hint="Name another file with --out.")
    if path.stem != profile.id or path.suffix != ".toml":
        raise UsageError(
            f"{path}: a profile's file has its name", hint=f"Call it {profile.id}.toml."
        )


def _wanted(profile: HardwareProfile) -> list[tuple[str, str, Recipe]]:
    """Return probe, runtime and recipe of the pack: all on the runtime that the profile prefers.

    One factor stands for the device, so probes of several runtimes would only blur it.
    """
    for entry in profile.runtimes:
        if entry.name not in registry.available():
            continue
        converter = registry.load(entry.name)
        if not getattr(converter, "executes", True) or "torch" not in converter.accepts:
            continue
        recipes = [Recipe(Float32())] if "float32" in profile.numerics.dtypes else []
        if (int8 := default_int8(profile, entry.name, converter.methods)) is not None:
            recipes.append(Recipe(int8))
        return [
            (probe, entry.name, recipe)
            for probe in PROBES
            for recipe in recipes
            if recipe.needs <= converter.methods
        ]
    return []


def _make(
    probe: str, runtime: str, recipe: Recipe, profile: HardwareProfile, out: Path
) -> ConversionResult:
    model = open_source(f"aid_edge.hub.probes:{probe}", inputs=[PROBES[probe]])
    samples = _inputs(probe, CALIBRATION_SAMPLES)
    return runner.convert(
        ConversionRequest(
            model, recipe, runtime, profile, {n: a[:4] for n, a in samples.items()}, out,
            calibration=samples if recipe.needs_calibration else None,
        )
    )  # fmt: skip


def _inputs(probe: str, count: int) -> dict[str, NDArray[np.float32]]:
    info: TensorInfo = PROBES[probe]
    draws = np.random.default_rng(0)
    return {info.name: draws.standard_normal((count, *info.shape[1:])).astype(np.float32)}


def _host_s(model: TrialModel) -> float:
    runtime = model.profile.runtime(model.result.runtime)
    found = runner.benchmark(
        model.result.artifact, model.result.runtime, model.inputs,
        threads=1 if runtime is None else runtime.threads, runs=HOST_RUNS,
    )  # fmt: skip
    return float(np.median(found.latencies_s))
