"""What a conversion is asked for, and what it gives back."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aid_edge.pipeline.findings import Candidate, ProfileFinding, Report
from aid_edge.pipeline.text import milliseconds, percent, points, size
from device_agent.contract.profile import HardwareProfile

HTML_NAME = "report.html"
JSON_NAME = "report.json"

Progress = Callable[[str, float, str], None]
"""Called with the task, the share of it that is done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class ConvertRequest:
    """One conversion: a source model for one or more profiles.

    Attributes:
        source: Path of a model, or ``module:factory``.
        targets: Profiles with the digests of their files.
        out: Folder for report and releases.
        card: Model card; else ``model.toml`` beside the model.
        calibration: Data to calibrate int8 on; no labels needed.
        evaluation: Labelled data to measure accuracy on.
        fidelity: Unlabelled data to compare outputs on; the evaluation inputs when None.
        runtimes: Only these; empty means all of each profile.
        name: Of the releases; else the card's.
        version: Of the releases; else the card's.
        cache: Folder of the step cache; None is the default one.
        jobs: Pieces of work that run at once; None means as many as is sensible here. Figures do
            not depend on it: what is timed always runs alone.
        command: How the user asked for it, for the provenance.
        inputs: Sizes of inputs, each ``NAME=SHAPE``.
        preprocess: File with preprocessing steps; else the card's.
        train: Labelled data to fine-tune on.
        recovery_minutes: Of training per pruned model; 0 means that nothing is pruned.
        metric: Task metric that decides instead of top-1: its name, or ``module:function``.
        search: ``quick`` is what pays nearly always, ``full`` all that the converters can do.
        time_budget_s: When the search ends; None means when it is done.
        executor: Address of a cluster, ``dask://HOST:PORT`` or ``ray://HOST:PORT``.
        allow_overlap: Whether calibration data may be data that are judged on; it is then said.
    """

    source: str
    targets: tuple[tuple[HardwareProfile, str], ...]
    out: Path
    weights: Path | None = None
    card: Path | None = None
    calibration: str | None = None
    evaluation: str | None = None
    fidelity: str | None = None
    runtimes: tuple[str, ...] = ()
    name: str | None = None
    version: str | None = None
    cache: Path | None = None
    seed: int = 0
    jobs: int | None = None
    command: str = ""
    inputs: tuple[str, ...] = ()
    preprocess: Path | None = None
    train: str | None = None
    recovery_minutes: float = 0.0
    metric: str | None = None
    search: Literal["quick", "full"] = "quick"
    time_budget_s: float | None = None
    executor: str | None = None
    allow_overlap: bool = False


@dataclass(frozen=True)
class ConvertResult:
    """What came of a conversion.

    Attributes:
        report: Everything that was found.
        folder: Where ``report.html``, ``report.json`` and the releases are.
        releases: Profile id to release folder; a profile whose every candidate missed a gate
            has none.
    """

    report: Report
    folder: Path
    releases: Mapping[str, Path]

    @property
    def html(self) -> Path:
        """The report for people."""
        return self.folder / HTML_NAME

    def profile(self, name: str) -> ProfileFinding:
        """Return what was found for the profile with this id.

        Raises:
            KeyError: It was not converted for.
        """
        for profile in self.report.profiles:
            if profile.id == name:
                return profile
        raise KeyError(name)

    def _repr_html_(self) -> str:
        """Show verdicts and candidates in a notebook, with the way to the whole report."""
        from aid_edge.pipeline.report import summary  # noqa: PLC0415 -- it reads this module

        path = html.escape(str(self.html))
        return f'{summary(self.report)}<p>Full report: <a href="{path}">{path}</a></p>'


HEADINGS = ("", "PROFILE", "CANDIDATE", "SIZE", "P50", "P95", "QUALITY (DROP)", "AGREES", "OUTCOME")


def rows(report: Report) -> list[tuple[str, ...]]:
    """Return one line per candidate under ``HEADINGS``; ``~`` marks estimates."""
    lines: list[tuple[str, ...]] = []
    for profile in report.profiles:
        for c in profile.candidates:
            fidelity = c.fidelity
            agreement = None if fidelity is None else fidelity.agreement
            lines.append(
                (
                    "*" if c.id == profile.chosen else "",
                    profile.id,
                    c.id,
                    _show(c.value("artifact_bytes"), size),
                    _latency(profile, c.value("latency_p50")),
                    _latency(profile, c.value("latency_p95")),
                    _quality(c),
                    _show(agreement, percent),
                    "" if c.outcome is None else c.outcome.code,
                )
            )
    return lines


def _quality(candidate: Candidate) -> str:
    if candidate.metrics:
        m = candidate.metrics[0]
        return f"{m.name} {m.candidate:.4g} ({m.drop:.2g}, n={m.n})"
    accuracy = candidate.accuracy
    if accuracy is None:
        return "-" if candidate.executed or not candidate.digest else "not executed"
    return f"top-1 {percent(accuracy.candidate)} ({points(accuracy.drop)}, n={accuracy.n})"


def _latency(profile: ProfileFinding, seconds: float | None) -> str:
    mark = "" if profile.latency == "host" else "~"
    return mark + _show(seconds, milliseconds)


def _show(value: float | None, how: Callable[[float], str]) -> str:
    return "-" if value is None else how(value)
