"""Mixed precision: which layers are bad, and the fewest that must stay float."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from aid_edge import diagnose
from aid_edge.diagnose import Judgement, LayerRecord
from aid_edge.errors import ConversionError, HostError
from aid_edge.pipeline.findings import QUALITY_GATES, Candidate, LayerFinding
from aid_edge.pipeline.gates import judge
from aid_edge.pipeline.making import Made, Maker
from aid_edge.pipeline.request import Progress
from aid_edge.pipeline.search.budget import Budget
from aid_edge.pipeline.search.space import Plan
from aid_edge.pipeline.text import percent, points
from aid_edge.recipe import Recipe
from device_agent.contract.profile import Hard, HardwareProfile

KEEP_FLOAT = "keep-float"
MAX_LAYERS = 64
"""Shown per candidate, the worst first."""


@dataclass
class MixedPrecision:
    """Searches for one runtime of one profile."""

    maker: Maker
    profile: HardwareProfile
    budget: Budget
    on_progress: Progress
    summary: str = ""
    _made: dict[Recipe, Made] = field(default_factory=dict)

    def search(self, floating: Made, integers: Sequence[Made]) -> tuple[Made | None, Made | None]:
        """Return the best int8 candidate with its layers explained, and the mixed one that passes.

        The first is None where layers cannot be looked into; the second where nothing passes, or
        the converter cannot keep layers in float.

        Args:
            floating: The float artifact of the runtime.
            integers: Int8 candidates that all miss in quality.
        """
        hard = self.profile.constraints.hard
        base = max(integers, key=lambda m: _value(m.candidate))
        records = records_of(self.maker, floating, base)
        if not records:
            return None, None
        methods = self.maker.steps.converters[base.plan.runtime].methods
        if KEEP_FLOAT not in methods:
            return base.changed(layers=as_findings(records)), None
        runtime = base.plan.runtime

        def attempt(recipe: Recipe) -> Judgement:
            if self.budget.is_over:
                raise ConversionError("the time budget of the search ended")
            planned = Plan(runtime, recipe)
            made = self.maker.make(planned, self.profile, self.on_progress)
            if isinstance(made, Candidate):
                raise ConversionError(made.outcome.text if made.outcome is not None else "failed")
            self._made[recipe] = made
            return judgement(made.candidate, hard)

        found = diagnose.sensitivity(
            base.plan.recipe, records, attempt, before=judgement(base.candidate, hard)
        )
        tried = f"mixed precision in {runtime}: {len(found.attempts)} tried"
        best = base.changed(layers=as_findings(found.records))
        if found.recipe is None:
            self.summary = f"{tried}, none passes"
            return best, None
        self.summary = f"{tried}; {found.attempts[-1].text}"
        return best, self._made[found.recipe]


def records_of(maker: Maker, floating: Made, quantized: Made) -> tuple[LayerRecord, ...]:
    """Return how layers bear quantization; nothing where the runtime does not let one look."""
    if not diagnose.can_diagnose(quantized.plan.runtime) or quantized.plan.recipe.is_prepared:
        return ()
    try:
        return maker.steps.layers(floating.result, quantized.result, maker.judge.subject.fidelity)
    except HostError:
        # A diagnosis explains; nothing that it could fail on makes the candidate worse.
        return ()


def as_findings(records: Sequence[LayerRecord]) -> tuple[LayerFinding, ...]:
    """Return layers as reports show them."""
    names = set(LayerFinding.__struct_fields__)
    return tuple(
        LayerFinding(**{k: v for k, v in dataclasses.asdict(record).items() if k in names})
        for record in records[:MAX_LAYERS]
    )


def with_layers(maker: Maker, floating: Made | None, made: Made) -> Made:
    """Return a quantized candidate with its layers explained, where one can look into them."""
    if floating is None or made.candidate.layers or not made.result.executed:
        return made
    records = records_of(maker, floating, made)
    return replace(made.changed(layers=as_findings(records))) if records else made


def judgement(candidate: Candidate, hard: Hard) -> Judgement:
    """Return what the quality gates make of a candidate; undecided ones leave it to the others."""
    gates = [g for g in judge(candidate, hard, latency_known=False) if g.gate in QUALITY_GATES]
    passed = not any(g.status == "fail" for g in gates) and any(g.status == "pass" for g in gates)
    parts = []
    if (accuracy := candidate.accuracy) is not None:
        parts.append(f"drop {points(accuracy.drop)} points (n = {accuracy.n})")
    if (fidelity := candidate.fidelity) is not None:
        if fidelity.agreement is not None:
            parts.append(f"agreement {percent(fidelity.agreement)} (n = {fidelity.n})")
        parts.append(f"cosine {fidelity.cosine:.4f} (n = {fidelity.n})")
    parts += [f"{m.name} {m.candidate:.4g} (n = {m.n})" for m in candidate.metrics[:1]]
    return Judgement(passed, _value(candidate), ", ".join(parts))


def _value(candidate: Candidate) -> float:
    if candidate.metrics:
        return -candidate.metrics[0].drop
    if candidate.accuracy is not None:
        return -candidate.accuracy.drop
    if candidate.fidelity is None:
        return float("-inf")
    agreement = candidate.fidelity.agreement
    return candidate.fidelity.cosine if agreement is None else agreement
