"""The verdict in plain words, and what to do next; written from the findings. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from aid_edge.evaluate.statistics import samples_to_pass
from aid_edge.pipeline.findings import (
    Candidate,
    ConditionFinding,
    Gate,
    ProfileFinding,
    Report,
)
from aid_edge.pipeline.text import percent, points, ratio, size

MAX_STEPS = 5
NOTABLE_GAP = 0.02
"""Points by which a condition hurts the candidate more than the source, from which it is named."""


def headline(found: ProfileFinding, baselines: Mapping[str, Candidate]) -> str:
    """Return the verdict in one plain sentence.

    Args:
        found: The profile with its choice.
        baselines: The float candidate of each runtime.
    """
    chosen = found.candidate(found.chosen)
    if chosen is None:
        return f"No candidate may be released for {found.title}: {_why_none(found)}."
    base = baselines.get(chosen.runtime)
    said = []
    if chosen.compressed and base is not None:
        said = _against(chosen, base, found)
    elif (value := chosen.value("artifact_bytes")) is not None:
        said = [f"{size(value)}"]
    quality = _quality(chosen)
    what = "the float model" if not chosen.compressed else f"{chosen.recipe}"
    return f"For {found.title}, take {what} in {chosen.runtime}: {', '.join([*said, quality])}."


def _why_none(found: ProfileFinding) -> str:
    codes = [c.outcome.code for c in found.candidates if c.outcome is not None]
    if not codes:
        return "none was made"
    counts = {code: codes.count(code) for code in dict.fromkeys(codes)}
    return ", ".join(f"{n} x {code}" for code, n in counts.items())


def _against(chosen: Candidate, base: Candidate, found: ProfileFinding) -> list[str]:
    said = []
    a, b = chosen.value("artifact_bytes"), base.value("artifact_bytes")
    if a is not None and b:
        said.append(f"{ratio(a, b)} the size of float")
    a, b = chosen.value("latency_p50"), base.value("latency_p50")
    if a is not None and b and found.latency != "uncalibrated":
        doubt = "" if found.latency == "host" else " (estimate)"
        said.append(f"{ratio(a, b)} its time{doubt}")
    return said


def _quality(chosen: Candidate) -> str:
    if chosen.accuracy is not None:
        a = chosen.accuracy
        return (
            f"top-1 {percent(a.candidate)} where the source has {percent(a.source)} "
            f"(drop {points(a.drop)} points, 95 % interval {points(a.drop_low)} to "
            f"{points(a.drop_high)})"
        )
    if chosen.metrics:
        m = chosen.metrics[0]
        return f"{m.name} {m.candidate:.4g} where the source has {m.source:.4g}"
    if chosen.fidelity is None:
        return "its answers were not compared, since it cannot run here"
    if chosen.fidelity.agreement is not None:
        return f"the same answer as the source on {percent(chosen.fidelity.agreement)} of inputs"
    return f"cosine to the source {chosen.fidelity.cosine:.4f}"


def harm(found: ProfileFinding, baselines: Mapping[str, Candidate]) -> str:
    """Return the do-no-harm verdict: whether compressing helped on this profile at all."""
    chosen = found.candidate(found.chosen)
    compressed = [c for c in found.candidates if c.compressed]
    if chosen is None:
        return "Do no harm: nothing is released, and an earlier release is withdrawn."
    if not chosen.compressed:
        if not compressed:
            return "Do no harm: float is released as it is; nothing else was tried."
        codes = Counter(c.outcome.code for c in compressed if c.outcome is not None)
        how = ", ".join(f"{n} {code}" for code, n in codes.most_common())
        return (
            f"Do no harm: float is better here, ranked by {', '.join(found.rank_by)}. "
            f"Compressed candidates: {how or 'not judged'}."
        )
    base = baselines.get(chosen.runtime)
    if base is None:
        return "Do no harm: there is no float baseline of this runtime to compare with."
    gains = _gains(chosen, base, found)
    return f"Do no harm: better than float here, {' and '.join(gains) or 'within its gates'}."


def _gains(chosen: Candidate, base: Candidate, found: ProfileFinding) -> list[str]:
    gains = []
    pairs = [("artifact_bytes", "smaller"), ("arena_bytes", "leaner"), ("peak_rss", "leaner")]
    if found.latency != "uncalibrated":
        pairs.append(("latency_p50", "faster"))
    for what, word in pairs:
        a, b = chosen.value(what), base.value(what)
        if a is not None and b is not None and a < b:
            gains.append(f"{word} ({ratio(a, b)})")
    return gains


def next_steps(report: Report, found: ProfileFinding) -> tuple[str, ...]:
    """Return what to do next, most important first; commands stand in backticks."""
    steps = []
    chosen = found.candidate(found.chosen)
    if any(d.role == "calibration" and (d.random or d.spec == "random") for d in report.data):
        steps.append("Calibrate on real inputs before anyone relies on this: the data were random.")
    if found.search is not None and found.search.stopped in {"time-budget", "interrupted"}:
        steps.append(
            f"The search ended early ({found.search.stopped}): run the same command again, and it "
            "goes on where it stopped."
        )
    steps += _towards_a_choice(found) if chosen is None else _after_a_choice(found, chosen)
    return tuple(steps[:MAX_STEPS])


def _towards_a_choice(found: ProfileFinding) -> list[str]:
    failed = {g.gate: g for c in found.candidates for g in c.gates if g.status == "fail"}
    steps = []
    if failed.keys() & {"accuracy", "agreement", "cosine"}:
        steps.append(
            "Answers are too far off: give a training set with `--train DATA` (or more time with "
            "`--recovery-minutes`), and look at the worst layers below."
        )
    if failed.keys() & {"artifact-size", "peak-memory"}:
        gate = failed.get("artifact-size") or failed["peak-memory"]
        steps.append(
            f"The model is too big for the profile ({gate.text}): prune it or take a smaller one."
        )
    if "latency-p95" in failed:
        steps.append(
            f"It is too slow for the profile ({failed['latency-p95'].text}): a smaller input or "
            "model, or a device with an accelerator."
        )
    if not failed:
        steps.append("Nothing could be judged: read the reasons under `Gates and reasons`.")
    return steps


def _after_a_choice(found: ProfileFinding, chosen: Candidate) -> list[str]:
    steps = []
    if not chosen.executed:
        steps.append(
            f"Run it on a device before you publish: {chosen.id} was converted, not executed, "
            "since this host cannot run it."
        )
    measured = any(m.where == "device" for m in chosen.measurements)
    if found.latency == "uncalibrated" and not measured:
        steps.append(
            "Latency is not known: measure on a device of this kind with `--measure-on DEVICE`, "
            "or calibrate the profile with `aid-edge profiles calibrate DEVICE`."
        )
    steps += _about_accuracy(chosen)
    worst = worst_condition(chosen)
    if worst is not None:
        steps.append(
            f"Under {worst.condition} of severity {worst.severity} it falls "
            f"{points(worst.source - worst.candidate)} points behind the source: test there "
            "before you rely on it."
        )
    steps.append("Publish the release folder with `aid-edge publish`, to a few devices first.")
    return steps


def _about_accuracy(chosen: Candidate) -> list[str]:
    gate: Gate | None = next((g for g in chosen.gates if g.gate == "accuracy"), None)
    if gate is None or gate.status == "pass":
        return []
    if gate.status == "not-measured":
        return ["Give labelled data with `--evaluate`: accuracy was not measured."]
    if gate.status == "undecided" and chosen.accuracy is not None and gate.limit > 0:
        needed = samples_to_pass(gate.limit)
        text = (
            f"Evaluate on at least {needed} labelled samples: {chosen.accuracy.n} cannot decide a "
            f"drop of {points(gate.limit)} points."
        )
        return [text]
    return []


def worst_condition(candidate: Candidate) -> ConditionFinding | None:
    """Return where the candidate falls furthest behind the source, for sure and by enough."""
    sure = [
        c
        for c in candidate.conditions
        if c.severity > 0
        and c.source - c.candidate >= NOTABLE_GAP
        and (c.drop_low is None or c.drop_low > 0)
    ]
    return max(sure, key=lambda c: c.source - c.candidate, default=None)
