"""The hard constraints of a profile, judged on figures. Pure: values in, verdict out."""

from __future__ import annotations

import msgspec

from aid_edge.evaluate.statistics import samples_to_pass
from aid_edge.pipeline.findings import (
    AccuracyFinding,
    Candidate,
    FidelityFinding,
    Gate,
    GateName,
    MetricFinding,
    Status,
)
from aid_edge.pipeline.text import milliseconds, percent, points, size
from device_agent.contract.manifest import Measurement
from device_agent.contract.profile import Hard


def judge(candidate: Candidate, hard: Hard, *, latency_known: bool) -> tuple[Gate, ...]:
    """Return every gate that applies to ``candidate``.

    Args:
        candidate: With its figures.
        hard: The profile's hard constraints.
        latency_known: Whether latency figures stand for the device: measured on its architecture
            or estimated by a calibrated cost table.
    """
    # On a microcontroller the arena is all the memory that a model takes.
    memory = candidate.figure("arena_bytes") or candidate.figure("peak_rss")
    limit_s = float(hard.latency_p95)
    on_device = candidate.device_figure("latency_p95")
    if on_device is not None:
        latency = _latency(on_device, limit_s, known=True)
    else:
        latency = _latency(candidate.figure("latency_p95"), limit_s, known=latency_known)
    quality = (
        metric_gate(candidate.metrics[0], hard.accuracy_share)
        if candidate.metrics
        else accuracy_gate(candidate.accuracy, hard.accuracy_share)
    )
    gates = [
        _at_most("artifact-size", candidate.figure("artifact_bytes"), float(hard.artifact), "B"),
        _at_most("peak-memory", memory, float(hard.peak_ram), "B"),
        latency,
        quality,
    ]
    if candidate.fidelity is not None:
        overruled = is_decided_by_labels(candidate, quality)
        close = fidelity_gates(candidate.fidelity, hard)
        gates += [_overruled(g) for g in close] if overruled else close
    return tuple(gates)


def is_decided_by_labels(candidate: Candidate, quality: Gate) -> bool:
    """Return whether labels alone decide on the quality of ``candidate``.

    A net that was pruned or trained is another net: it may be as right as the source without
    giving its numbers, so that what labelled data show without doubt overrules closeness to the
    source. Quantization alone is to give the source's numbers, whatever the labels say.
    """
    metric = candidate.metrics[0] if candidate.metrics else None
    labelled = candidate.accuracy is not None if metric is None else metric.labelled
    return candidate.training is not None and labelled and quality.status == "pass" and quality.firm


def _overruled(gate: Gate) -> Gate:
    """Return a gate of closeness as it is where labels decide: what it misses refuses nothing."""
    if gate.status != "fail":
        return gate
    text = f"overruled: {gate.text}. Of a pruned or trained net labels decide, and they pass it"
    return msgspec.structs.replace(gate, status="undecided", firm=False, text=text)


def accuracy_gate(accuracy: AccuracyFinding | None, share: float) -> Gate:
    """Judge the accuracy drop by its paired interval against what the profile lets go.

    The gate allows a drop of ``(1 - share)`` times the source's accuracy. It passes when the whole
    interval is at or under that, fails when the whole interval is over it, and is undecided else.
    """
    if accuracy is None:
        return Gate(
            gate="accuracy", status="not-measured", limit=1 - share, unit="share", firm=False,
            text="not measured: no labelled data were given; fidelity to the source decides",
        )  # fmt: skip
    margin = (1 - share) * accuracy.source
    status: Status = "undecided"
    if accuracy.drop_high <= margin:
        status = "pass"
    elif accuracy.drop_low > margin:
        status = "fail"
    interval = f"[{points(accuracy.drop_low)}, {points(accuracy.drop_high)}]"
    found = f"drop {points(accuracy.drop)} points, 95 % interval {interval}, n = {accuracy.n}"
    text = f"{found}; allowed {points(margin)}"
    if status == "undecided":
        enough = f"; at least {samples_to_pass(margin)} samples could decide" if margin > 0 else ""
        text = (
            f"undecided: {text}. {accuracy.n} labelled samples find a drop of "
            f"{points(accuracy.detectable_drop)} points or more{enough}; "
            "fidelity to the source decides"
        )
    return Gate(
        gate="accuracy", status=status, limit=margin, unit="share", value=accuracy.drop,
        low=accuracy.drop_low, high=accuracy.drop_high, firm=status != "undecided", text=text,
    )  # fmt: skip


def metric_margin(metric: MetricFinding, share: float) -> float:
    """Return how much worse than the source a candidate may be, in the metric's unit.

    Of what is right, ``share`` must stay: of a score its own value; of an error rate (better when
    lower, in shares or errors per word) what it leaves of one. Other errors, such as a root mean
    square, may grow by the same share of themselves; one that the source does not have at all,
    such as the relative error to the source's own answers, up to that share of its unit.
    """
    base = abs(metric.source)
    if not metric.higher_is_better:
        is_rate = metric.unit == "share" or metric.unit.startswith("errors per")
        if is_rate or metric.source == 0:
            base = max(0.0, 1 - metric.source)
    return (1 - share) * base


def metric_gate(metric: MetricFinding, share: float) -> Gate:
    """Judge the drop of a task metric by its paired interval; see :func:`accuracy_gate`."""
    margin = metric_margin(metric, share)
    status: Status = "undecided"
    if metric.drop_high <= margin:
        status = "pass"
    elif metric.drop_low > margin:
        status = "fail"
    found = (
        f"{metric.name} {metric.candidate:.4g}, source {metric.source:.4g}, worse by "
        f"{metric.drop:.4g}, 95 % interval [{metric.drop_low:.4g}, {metric.drop_high:.4g}], "
        f"n = {metric.n}; allowed {margin:.4g}"
    )
    if status == "undecided":
        enough = ""
        if metric.detectable_drop is not None:
            enough = f". {metric.n} samples find a drop of {metric.detectable_drop:.4g} or more"
        found = f"undecided: {found}{enough}; fidelity to the source decides"
    return Gate(
        gate="accuracy", status=status, limit=margin, unit=metric.unit, value=metric.drop,
        low=metric.drop_low, high=metric.drop_high, firm=status != "undecided", text=found,
    )  # fmt: skip


def fidelity_gates(fidelity: FidelityFinding, hard: Hard) -> list[Gate]:
    """Judge closeness to the source by its figures, and say whether the interval is as sure."""
    gates = []
    if fidelity.agreement is not None:
        gates.append(
            _at_least(
                "agreement", fidelity, fidelity.agreement, hard.agreement,
                (fidelity.agreement_low, fidelity.agreement_high),
            )
        )  # fmt: skip
    gates.append(
        _at_least(
            "cosine", fidelity, fidelity.cosine, hard.cosine,
            (fidelity.cosine_low, fidelity.cosine_high),
        )
    )  # fmt: skip
    return gates


def _at_most(name: GateName, figure: Measurement | None, limit: float, unit: str) -> Gate:
    if figure is None:
        return Gate(
            gate=name,
            status="not-measured",
            limit=limit,
            unit=unit,
            firm=False,
            text="not measured",
        )
    status: Status = "pass" if figure.value <= limit else "fail"
    kind = " (estimate)" if figure.where == "estimate" else ""
    return Gate(
        gate=name, status=status, limit=limit, unit=unit, value=figure.value,
        firm=figure.where != "estimate",
        text=f"{size(figure.value)}{kind}; at most {size(limit)}",
    )  # fmt: skip


def _latency(figure: Measurement | None, limit_s: float, *, known: bool) -> Gate:
    if figure is None or not known:
        why = "not measured" if figure is None else "uncalibrated: the host says nothing of it"
        return Gate(
            gate="latency-p95", status="not-measured", limit=limit_s, unit="s", firm=False,
            text=f"{why}; at most {milliseconds(limit_s)} on the device",
        )  # fmt: skip
    high = figure.high if figure.high is not None else figure.value
    low = figure.low if figure.low is not None else figure.value
    status: Status = "pass" if figure.value <= limit_s else "fail"
    firm = high <= limit_s if status == "pass" else low > limit_s
    kind = {"estimate": " (estimate)", "device": " (on a device)"}.get(figure.where, "")
    return Gate(
        gate="latency-p95", status=status, limit=limit_s, unit="s", value=figure.value,
        low=figure.low, high=figure.high, firm=firm,
        text=f"{milliseconds(figure.value)}{kind}, n = {figure.n}; at most {milliseconds(limit_s)}",
    )  # fmt: skip


def _at_least(
    name: GateName,
    fidelity: FidelityFinding,
    value: float,
    limit: float,
    interval: tuple[float | None, float | None],
) -> Gate:
    low, high = interval
    status: Status = "pass" if value >= limit else "fail"
    firm = (low is not None and low >= limit) if status == "pass" else (
        high is not None and high < limit
    )  # fmt: skip
    show = percent if name == "agreement" else (lambda v: f"{v:.4f}")
    bounds = f", 95 % interval [{show(low)}, {show(high)}]" if None not in {low, high} else ""  # type: ignore[arg-type]
    units = "" if fidelity.units == fidelity.n else f" from {fidelity.units} originals"
    text = f"{show(value)}{bounds}, n = {fidelity.n}{units}; at least {show(limit)}"
    if not firm:
        text += "; by the figure, the interval leaves it open"
    return Gate(
        gate=name, status=status, limit=limit, unit="share" if name == "agreement" else "cosine",
        value=value, low=low, high=high, firm=firm, text=text,
    )  # fmt: skip
