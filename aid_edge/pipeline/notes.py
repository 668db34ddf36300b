"""What a reader must know to weigh a verdict; written from the findings. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aid_edge.pipeline.findings import Candidate, ProfileFinding
from aid_edge.pipeline.measure import Host
from aid_edge.pipeline.text import percent, points

INTEGER_SHARE_EXPECTED = 0.9
SMALL_SAMPLE = 30


def notes(
    found: ProfileFinding, host: Host, shared_groups: Sequence[str], full_range: Sequence[str]
) -> tuple[str, ...]:
    """Return the notes on one profile, most important first.

    Args:
        found: The profile with its verdict.
        host: The machine that measured.
        shared_groups: Originals of which calibration and fidelity data both have samples.
        full_range: Candidates of ONNX Runtime with eight-bit weights.
    """
    lines = []
    if found.latency == "uncalibrated":
        lines.append(
            f"Latency is not known for {found.arch}: it was run on {host.title}, and the profile "
            "has no cost table. The figures are marked as estimates, rank nothing and decide no "
            "gate."
        )
    elif found.latency == "calibrated":
        lines.append(f"Latency is estimated from {host.title} by the profile's cost table.")
    chosen = found.candidate(found.chosen)
    if chosen is not None:
        lines += _on_quality(chosen)
    lines += [
        f"{c.id}: only {c.placement.integer} of {c.placement.integer + c.placement.floating} "
        "compute operators run in int8."
        for c in found.candidates
        if c.compressed
        and c.placement is not None
        and c.placement.integer_share < INTEGER_SHARE_EXPECTED
    ]
    if host.saturates and full_range:
        lines.append(
            f"{', '.join(full_range)}: eight-bit weights, whose sums would overflow on this host's "
            "processor (x86 without VNNI). Accuracy and fidelity were computed with 32-bit sums, "
            "as the device does; do not serve these artifacts on such a processor."
        )
    if shared_groups:
        lines.append(
            f"{len(shared_groups)} originals ({', '.join(shared_groups[:3])}"
            f"{', ...' if len(shared_groups) > 3 else ''}) have other crops in the calibration "
            "data: fidelity on them may flatter."
        )
    return tuple(lines)


def _on_quality(chosen: Candidate) -> list[str]:
    lines = []
    accuracy = chosen.accuracy
    gate = next((g for g in chosen.gates if g.gate == "accuracy"), None)
    if gate is not None and gate.status == "undecided" and accuracy is not None:
        lines.append(
            f"{accuracy.n} labelled samples cannot decide the accuracy gate: the drop may be "
            f"anything from {points(accuracy.drop_low)} to {points(accuracy.drop_high)} points "
            f"(95 % interval), the smallest drop they would find is "
            f"{points(accuracy.detectable_drop)} points, and {points(gate.limit)} are allowed. "
            "The verdict rests on fidelity to the source."
        )
    elif accuracy is None:
        lines.append("No labelled data were given: the verdict rests on fidelity to the source.")
    fidelity = chosen.fidelity
    if fidelity is not None and fidelity.units < SMALL_SAMPLE:
        lines.append(
            f"Fidelity rests on {fidelity.units} independent inputs ({fidelity.n} in all)."
        )
    open_gates = [g for g in chosen.gates if g.gate in {"agreement", "cosine"} and not g.firm]
    lines += [
        f"The {g.gate} gate is met by the figure, not by its whole interval"
        + (f" (from {percent(g.low)})." if g.low is not None and g.gate == "agreement" else ".")
        for g in open_gates
        if g.status == "pass"
    ]
    return lines
