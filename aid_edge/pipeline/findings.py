"""What a conversion found: the types behind ``report.json`` and the HTML report.

Every figure is a :class:`Measurement` (with where, how and n) or carries its own n and interval.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from device_agent.contract.manifest import Measurement

SCHEMA = "aid-edge/report/v1"

Status = Literal["pass", "fail", "undecided", "not-measured"]
GateName = Literal[
    "artifact-size", "peak-memory", "latency-p95", "accuracy", "agreement", "cosine"
]  # fmt: skip
QUALITY_GATES: frozenset[GateName] = frozenset({"accuracy", "agreement", "cosine"})

REFUSAL_OF_GATE: dict[GateName, str] = {
    "artifact-size": "artifact-too-large",
    "peak-memory": "memory-over-limit",
    "latency-p95": "latency-over-limit",
    "accuracy": "accuracy-dropped",
    "agreement": "agreement-low",
    "cosine": "cosine-low",
}
"""Reason code of a candidate that misses the gate."""

CHOSEN = "chosen"
FLOAT_IS_BETTER = "float-is-better"
OUTRANKED = "outranked"
NOT_DECIDED = "not-decided"
NOT_EXECUTED = "not-executed"
TIME_BUDGET = "time-budget"
DOMINATED = "dominated"


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """One hard constraint, judged.

    Attributes:
        limit: The bound, in ``unit``.
        value: What was found; None when it could not be measured.
        low: Lower bound of the interval of ``value``, where it has one.
        high: Upper bound.
        firm: Whether the whole interval is on the side of the verdict.
        text: The verdict in words, with its figures.
    """

    gate: GateName
    status: Status
    limit: float
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    firm: bool = True
    text: str


class AccuracyFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Top-1 accuracy against the source on the same labelled samples; shares, not per cent.

    Attributes:
        losses: Samples only the source gets right.
        gains: Samples only the candidate gets right.
        detectable_drop: Smallest true drop that n samples find with a chance of 80 %.
        p_value: McNemar's exact test.
    """

    n: int
    source: float
    candidate: float
    low: float
    high: float
    drop: float
    drop_low: float
    drop_high: float
    losses: int
    gains: int
    p_value: float
    detectable_drop: float


class FidelityFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Closeness of outputs to the source model's, without labels; see ``evaluate.fidelity``."""

    data: str
    n: int
    units: int
    agreement: float | None
    agreement_low: float | None
    agreement_high: float | None
    cosine: float
    cosine_low: float | None
    cosine_high: float | None
    cosine_min: float
    max_abs: float
    sqnr_db: float
    sqnr_low: float | None
    sqnr_high: float | None


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """A sample that candidate and source answer differently.

    Attributes:
        kind: ``loss`` when only the source is right, ``gain`` when only the candidate is,
            ``neither`` when both are wrong, ``unlabelled`` when nobody knows.
        thumbnail: Small JPEG as a data URI; empty when the data are not image files.
    """

    sample: str
    kind: Literal["loss", "gain", "neither", "unlabelled"]
    label: str
    source_answer: str
    candidate_answer: str
    thumbnail: str = ""


class PlacementFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Where compute operators run, as the runtime itself planned them."""

    integer: int
    floating: int
    operators: dict[str, int]

    @property
    def integer_share(self) -> float:
        """Share of compute operators in int8."""
        total = self.integer + self.floating
        return self.integer / total if total else 0.0


class LayerFinding(msgspec.Struct, frozen=True, kw_only=True):
    """How one layer of a quantized candidate bears it; worst first.

    Attributes:
        sqnr_db: Signal to quantization noise of the layer's output against the float artifact.
        low: Smallest value of the float output seen, and ``high`` the largest.
        kurtosis: Of the float output (3 is a normal distribution); heavy tails quantize badly.
        saturated: Share of values at the ends of the integer range.
        placement: Whether it computes in integers.
        cause: What most likely makes it bad; empty when nothing does.
        advice: What to do about it.
        tried: What the fix did when it was tried; empty when none was.
    """

    name: str
    operator: str
    sqnr_db: float
    low: float
    high: float
    kurtosis: float
    saturated: float
    placement: Literal["integer", "float"]
    cause: str = ""
    advice: str = ""
    tried: str = ""


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of recovery: ``quality`` is agreement with the source, or accuracy."""

    epoch: int
    seconds: float
    loss: float
    quality: float


class TrainingFinding(msgspec.Struct, frozen=True, kw_only=True):
    """What pruning and recovery did to the source model.

    Attributes:
        quality: What the curve's quality is, such as ``agreement with the source``.
        best_epoch: The state that was kept; 0 is the one before any training.
        stopped: Why it ended: ``epochs``, ``minutes``, ``no-gain``, ``diverged`` or ``none`` (there
            was no training).
        notes: What the reader must know, such as layers that could not be pruned.
    """

    method: str
    quality: str
    points: tuple[CurvePoint, ...]
    best_epoch: int
    stopped: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    notes: tuple[str, ...] = ()


class StepFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Time and peak memory of one step's worker processes.

    Attributes:
        cached: Whether an earlier candidate of the report had it done; the figures are those of
            then, so that they are the same when a conversion is repeated.
    """

    what: str
    seconds: float
    peak_bytes: int
    cached: bool = False


class ClassFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays: recall of one class in source and candidate.

    Attributes:
        drop_low: Lower bound of ``source - candidate``, paired, 95 %.
        drop_high: Upper bound.
        p_value: McNemar's exact test, by Holm (1979) for all classes of the candidate.
    """

    label: str
    n: int
    source: float
    candidate: float
    drop_low: float | None = None
    drop_high: float | None = None
    p_value: float | None = None


class ConfusionFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of the confusion matrix that the candidate fills differently from the source.

    Attributes:
        label: The right class; the source's answer where there are no labels.
        answer: The class that was answered.
        n: Samples of ``label``.
        source: How many of them the source answers so.
        candidate: How many the candidate does.
        p_value: McNemar's exact test on the same samples; not adjusted for the number of cells.
    """

    label: str
    answer: str
    n: int
    source: int
    candidate: int
    p_value: float


class ConditionFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Quality under one real-life condition, such as blur or bad light.

    Attributes:
        severity: 1 (mild) to 5.
        metric: What ``source`` and ``candidate`` are shares of: top-1, or agreement with the
            source on clean inputs where there are no labels.
        drop_low: Lower bound of ``source - candidate``, paired, 95 %.
        drop_high: Upper bound.
    """

    condition: str
    severity: int
    metric: str
    n: int
    source: float
    candidate: float
    drop_low: float | None = None
    drop_high: float | None = None


class PartFinding(msgspec.Struct, frozen=True, kw_only=True):
    """What one part of an input, such as a word, speaks for; positive: the source's answer."""

    name: str
    source: float
    candidate: float


class ExplanationFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Why one sample flipped: which parts of it speak for the one answer and for the other.

    Both models saw the same inputs with the same parts hidden. All evidence is the change of the
    margin (log-odds of the source's answer over the candidate's) when a part is hidden.

    Attributes:
        method: How parts were hidden, and what stood in their place.
        evaluations: Inputs that each model was run on.
        source_margin: Of the whole input; positive.
        candidate_margin: Likewise; zero or negative.
        correlation: Spearman's, of the evidence in source and candidate; None when it has none.
        summary: What it says, in a sentence.
        parts: The strongest, by the size of their change; empty for images.
        picture: The input as a data URI; empty when it cannot be shown.
        source_map: Evidence as a data URI of a small transparent PNG, to be laid on ``picture``.
        candidate_map: Likewise.
    """

    sample: str
    kind: Literal["image", "series", "tokens", "table"]
    label: str
    source_answer: str
    candidate_answer: str
    method: str
    evaluations: int
    source_margin: float
    candidate_margin: float
    correlation: float | None
    summary: str
    parts: tuple[PartFinding, ...] = ()
    picture: str = ""
    source_map: str = ""
    candidate_map: str = ""


class MetricFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One task metric of source and candidate on the same samples, with its paired interval.

    Attributes:
        higher_is_better: Else it is an error.
        drop: How much worse the candidate is, in the metric's unit; negative is better.
        labelled: Whether labels say what is right; else the source's own answers do.
    """

    name: str
    unit: str
    higher_is_better: bool
    n: int
    source: float
    candidate: float
    drop: float
    drop_low: float
    drop_high: float
    detectable_drop: float | None = None
    labelled: bool = False


class SearchFinding(msgspec.Struct, frozen=True, kw_only=True):
    """How candidates were found.

    Attributes:
        planned: Recipes that were considered.
        rounds: One line per round of successive halving: what it judged on, who went on.
        stopped: Why it ended: ``done`` or ``time-budget``.
        seconds: Of all worker processes, each step as it took when it was done.
        resumed: Whether earlier work was taken up.
    """

    planned: int
    rounds: tuple[str, ...]
    stopped: str
    seconds: float
    resumed: bool = False


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a candidate is not chosen, or ``chosen``; ``code`` is stable."""

    code: str
    text: str


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe carried out for one runtime of one profile, with all that was found.

    Attributes:
        id: ``<runtime>/<recipe key>``, unique within its profile.
        compressed: Whether the recipe changes the numbers; float candidates are the baseline.
        digest: Of the artifact; empty when there is none.
        executed: Whether the artifact was run on this host; else its quality is not measured.
        outcome: ``chosen``, or why not.
        executed: Whether the artifact was run on this host; where not, it was inspected only.
    """

    id: str
    runtime: str
    runtime_version: str = ""
    recipe: str
    recipe_key: str
    compressed: bool
    digest: str = ""
    measurements: tuple[Measurement, ...] = ()
    gates: tuple[Gate, ...] = ()
    accuracy: AccuracyFinding | None = None
    fidelity: FidelityFinding | None = None
    flips: tuple[Flip, ...] = ()
    placement: PlacementFinding | None = None
    seconds: float = 0.0
    conversion_peak_bytes: int = 0
    tools: dict[str, str] = {}
    outcome: Refusal | None = None
    metrics: tuple[MetricFinding, ...] = ()
    layers: tuple[LayerFinding, ...] = ()
    training: TrainingFinding | None = None
    steps: tuple[StepFinding, ...] = ()
    classes: tuple[ClassFinding, ...] = ()
    conditions: tuple[ConditionFinding, ...] = ()
    confusion: tuple[ConfusionFinding, ...] = ()
    explanations: tuple[ExplanationFinding, ...] = ()
    executed: bool = True
    notes: tuple[str, ...] = ()

    def figure(self, what: str) -> Measurement | None:
        """Return the measurement of ``what``, or None when it was not made."""
        return next((m for m in self.measurements if m.what == what), None)

    def device_figure(self, what: str) -> Measurement | None:
        """Return the measurement of ``what`` on a real device, or None when it was not made."""
        return next((m for m in self.measurements if m.what == what and m.where == "device"), None)

    def value(self, what: str) -> float | None:
        """Return the value of the measurement of ``what``, or None."""
        figure = self.figure(what)
        return None if figure is None else figure.value


class ProfileFinding(msgspec.Struct, frozen=True, kw_only=True):
    """All candidates for one profile and which of them is chosen.

    Attributes:
        latency: ``host`` when latency was measured on this kind of machine; ``calibrated`` when
            it is an estimate by the profile's cost table; ``uncalibrated`` when nothing is known.
        chosen: Id of the chosen candidate, or None when every one misses a gate.
        verdict: One sentence with figures.
        notes: What the reader must know to weigh the verdict.
        pareto: Ids of candidates that no other one beats in every respect, cheapest first.
        why_not_cheaper: What keeps the next cheaper candidate from being chosen, with figures.
    """

    id: str
    title: str
    digest: str
    arch: str
    latency: Literal["host", "calibrated", "uncalibrated"]
    threads: int
    rank_by: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    chosen: str | None
    verdict: str
    notes: tuple[str, ...] = ()
    pareto: tuple[str, ...] = ()
    why_not_cheaper: str = ""
    search: SearchFinding | None = None

    def candidate(self, name: str | None) -> Candidate | None:
        """Return the candidate with this id, or None."""
        return next((c for c in self.candidates if c.id == name), None)


class DataFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One data set that was used: where from, how many, which bytes.

    Attributes:
        random: Made up, not real: figures and releases that rest on it are marked.
    """

    role: Literal["calibration", "evaluation", "fidelity", "training"]
    spec: str
    n: int
    units: int
    labelled: bool
    digest: str
    random: bool = False


class SourceFinding(msgspec.Struct, frozen=True, kw_only=True):
    """The source model."""

    name: str
    version: str
    title: str
    spec: str
    framework: str
    task: str
    parameters: int
    digest: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]
    licence: str = ""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures were made with."""

    command: str
    seed: int
    host: str
    tools: dict[str, str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion: the content of ``report.json``."""

    schema: str = SCHEMA
    source: SourceFinding
    data: tuple[DataFinding, ...]
    profiles: tuple[ProfileFinding, ...]
    provenance: Provenance

    @property
    def is_complete(self) -> bool:
        """Whether every profile has a chosen candidate."""
        return all(p.chosen is not None for p in self.profiles)
