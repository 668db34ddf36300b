"""The pipeline on one page: inspect, plan, convert, measure, judge, choose, report, release."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec

from aid_edge import registry
from aid_edge.catalogue.files import write_atomic
from aid_edge.converter import Converter
from aid_edge.errors import ConversionError, DataError, UnsupportedModelError, UsageError
from aid_edge.evaluate.data import DataSet, load, refuse_overlap, shared_groups
from aid_edge.model import SourceModel
from aid_edge.pipeline import release
from aid_edge.pipeline.cache import Cache, default_root, tool_versions
from aid_edge.pipeline.search.space import Plan, Wishes, plan
from aid_edge.pipeline.findings import (
    QUALITY_GATES,
    Candidate,
    DataFinding,
    ProfileFinding,
    Provenance,
    Report,
    SourceFinding,
)
from aid_edge.pipeline.gates import judge
from aid_edge.pipeline.golden import encode, judged_by, pick
from aid_edge.pipeline.jobs import default_jobs, one_at_a_time, run_all
from aid_edge.pipeline.making import Made, Maker, Subject, refused
from aid_edge.pipeline.measure import Host, in_order, latency_source, this_host
from aid_edge.pipeline.notes import notes
from aid_edge.pipeline.report import render
from aid_edge.pipeline.request import (
    HTML_NAME,
    JSON_NAME,
    ConvertRequest,
    ConvertResult,
    Progress,
)
from aid_edge.pipeline.steps import Engine, RunnerEngine, Steps
from aid_edge.pipeline.verdict import choose
from aid_edge.recipe import StaticInt8
from aid_edge.sources.opening import open_source
from device_agent.contract.names import IDENTIFIER_PATTERN, VERSION_PATTERN
from device_agent.contract.profile import HardwareProfile
from device_agent.contract.tensors import TensorInfo

MAX_CALIBRATION_SAMPLES = 512

Target = tuple[HardwareProfile, str]


@dataclass(frozen=True)
class _Planned:
    """What is tried for one profile, and what its runtimes refused before any work."""

    target: Target
    plans: tuple[Plan, ...]
    refused: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class _Tried:
    """One profile with its candidates: those that were made, and those that could not be."""

    target: Target
    made: tuple[Made, ...]
    failed: tuple[Candidate, ...]


def run(
    request: ConvertRequest,
    *,
    on_progress: Progress = lambda _task, _share, _what: None,
    engine: Engine | None = None,
) -> ConvertResult:
    """Carry out a conversion; the report is written also when every candidate misses a gate.

    Args:
        request: What to do.
        on_progress: Told how far each task is.
        engine: What carries out the heavy steps; worker processes when None.

    Raises:
        UsageError: The request cannot be meant.
        SourceError: The source model cannot be read.
        UnsupportedModelError: No runtime of a profile takes the model; said before any work.
        DataError: Data are missing, do not fit, or overlap.
        ConversionError: Every candidate failed to convert.
        OutputError: The output folder cannot be written.
    """
    _check(request)
    release.check_writable(request.out)
    on_progress = one_at_a_time(on_progress)
    on_progress("source", 0.0, "inspecting")
    model = open_source(request.source, weights=request.weights, card=request.card)
    name, version = _name_of(request, model)
    planned, converters = _plan(request, model)
    on_progress("source", 0.2, "loading data")
    subject = _load(request, model, planned)
    steps = Steps(
        Cache(request.cache or default_root()), tool_versions(), converters,
        engine or RunnerEngine(),
    )  # fmt: skip
    host = this_host()
    maker = Maker(steps, subject, host, request.seed, request.jobs or default_jobs())
    on_progress("source", 0.4, "running the source model")
    maker.run_source(lambda share, what: on_progress("source", 0.4 + 0.6 * share, what))
    on_progress("source", 1.0, "done")
    tried = _measure(_make(maker, planned, on_progress), maker, on_progress)
    on_progress("report", 0.0, "judging")
    report = Report(
        source=_source_finding(model, name, version),
        data=_data_findings(subject),
        profiles=tuple(_choose(t, subject, host) for t in tried),
        provenance=Provenance(
            command=request.command, seed=request.seed, host=host.title, tools=dict(steps.tools)
        ),
    )
    result = _write(request, subject, tried, report)
    on_progress("report", 1.0, str(result.html))
    if not any(t.made for t in tried):
        raise _all_failed(tried, result)
    return result


def _check(request: ConvertRequest) -> None:
    if not request.targets:
        raise UsageError("no hardware profile is named", hint="Name one with --profile.")
    if request.jobs is not None and request.jobs < 1:
        raise UsageError(f"{request.jobs} jobs cannot be run", hint="Give --jobs 1 or more.")
    ids = [profile.id for profile, _ in request.targets]
    if len(set(ids)) < len(ids):
        raise UsageError(f"a hardware profile is named twice: {', '.join(ids)}")
    if request.evaluation is None and request.fidelity is None:
        raise UsageError(
            "nothing to judge candidates on",
            hint="Give labelled data with --evaluate, or unlabelled inputs with --fidelity.",
        )


def _name_of(request: ConvertRequest, model: SourceModel) -> tuple[str, str]:
    name, version = request.name or model.name, request.version or model.version
    if not re.fullmatch(IDENTIFIER_PATTERN, name):
        raise UsageError(
            f"{name!r} cannot name a release",
            hint="Use 1 to 63 of a-z, 0-9, '.', '_' and '-' in --name or the model card.",
        )
    if not re.fullmatch(VERSION_PATTERN, version):
        raise UsageError(
            f"{version!r} cannot be a version",
            hint="Use 1 to 63 letters, digits, '.', '+', '_' and '-' in --version.",
        )
    return name, version


def _plan(
    request: ConvertRequest, model: SourceModel
) -> tuple[list[_Planned], dict[str, Converter]]:
    """Return what to try per profile, and the converters by runtime.

    Asks every converter before any work, and refuses where none takes the model.
    """
    installed = set(registry.available())
    for runtime in request.runtimes:
        if runtime not in installed:
            registry.load(runtime)  # raises, and says which there are
    names = {r.name for profile, _ in request.targets for r in profile.runtimes}
    wanted = names & installed & (set(request.runtimes) or names)
    converters = {name: registry.load(name) for name in sorted(wanted)}
    methods = {name: converter.methods for name, converter in converters.items()}
    planned = []
    for target in request.targets:
        plans = plan(target[0], methods, Wishes(only=request.runtimes, seed=request.seed))
        refusals: dict[str, UnsupportedModelError] = {}
        for runtime in dict.fromkeys(p.runtime for p in plans):
            try:
                converters[runtime].check(model, target[0])
            except UnsupportedModelError as e:
                refusals[runtime] = e
        if all(p.runtime in refusals for p in plans):
            raise UnsupportedModelError(
                f"no runtime of profile {target[0].id} takes {model.spec}",
                [f"{name}: {reason}" for name, e in refusals.items() for reason in e.reasons],
                hint="; ".join(dict.fromkeys(e.hint for e in refusals.values() if e.hint)),
            )
        planned.append(
            _Planned(
                target,
                tuple(p for p in plans if p.runtime not in refusals),
                tuple(
                    refused(p, refusals[p.runtime])
                    for p in plans
                    if p.runtime in refusals and not p.fallback
                ),
            )
        )
    return planned, converters


def _load(request: ConvertRequest, model: SourceModel, planned: Sequence[_Planned]) -> Subject:
    """Load and check all data, before any work."""
    needing = [p for one in planned for p in one.plans if p.recipe.needs_calibration]
    if needing and request.calibration is None:
        raise DataError(
            f"{needing[0].id} needs calibration data, and none are given",
            hint="Give real inputs with --calibration; they need no labels.",
        )
    calibration = evaluation = None
    if needing and request.calibration is not None:
        calibration = load(request.calibration, model, limit=MAX_CALIBRATION_SAMPLES)
    if request.evaluation is not None:
        evaluation = load(request.evaluation, model, labelled=True)
    fidelity = evaluation if request.fidelity is None else load(request.fidelity, model)
    if fidelity is None:
        raise UsageError("nothing to judge candidates on")
    if calibration is not None:
        if evaluation is not None:
            refuse_overlap(calibration, evaluation, "evaluation")
        refuse_overlap(calibration, fidelity, "fidelity")
    is_classification = evaluation is not None or (
        model.card is not None and model.card.task == "classification"
    )
    return Subject(model, calibration, evaluation, fidelity, is_classification)


def _make(maker: Maker, planned: Sequence[_Planned], on_progress: Progress) -> list[_Tried]:
    """Make all candidates; fallbacks only where the runtime's first int8 misses in quality."""
    found: dict[tuple[str, str], Made | Candidate] = {}

    def make(todo: Sequence[tuple[HardwareProfile, Plan]]) -> None:
        work = [partial(maker.make, plan, profile, on_progress) for profile, plan in todo]
        outcomes = run_all(work, maker.jobs)
        found.update({(p.id, q.id): o for (p, q), o in zip(todo, outcomes, strict=True)})

    every = [(one.target[0], p) for one in planned for p in one.plans]
    make([(profile, p) for profile, p in every if not p.fallback])
    make([(profile, p) for profile, p in every if p.fallback and _is_needed(p, profile, found)])
    tried = []
    for one in planned:
        name = one.target[0].id
        outcomes = [found[name, p.id] for p in one.plans if (name, p.id) in found]
        made = tuple(o for o in outcomes if isinstance(o, Made))
        failed = tuple(o for o in outcomes if isinstance(o, Candidate))
        tried.append(_Tried(one.target, made, (*one.refused, *failed)))
    return tried


def _is_needed(
    fallback: Plan, profile: HardwareProfile, found: Mapping[tuple[str, str], Made | Candidate]
) -> bool:
    """Return whether every int8 candidate of the runtime was made and misses in quality."""
    before = [
        one
        for (name, _), one in found.items()
        if name == profile.id
        and isinstance(one, Made)
        and one.plan.runtime == fallback.runtime
        and one.candidate.compressed
    ]
    hard = profile.constraints.hard
    return bool(before) and all(
        any(
            gate.status == "fail" and gate.gate in QUALITY_GATES
            for gate in judge(one.candidate, hard, latency_known=False)
        )
        for one in before
    )


def _measure(tried: Sequence[_Tried], maker: Maker, on_progress: Progress) -> list[_Tried]:
    flat = [(t.target[0], m) for t in tried for m in t.made]
    measured = iter(maker.benchmark(flat, on_progress))
    return [_Tried(t.target, tuple(next(measured) for _ in t.made), t.failed) for t in tried]


def _choose(tried: _Tried, subject: Subject, host: Host) -> ProfileFinding:
    profile, digest = tried.target
    latency = latency_source(profile, host)
    known, constraints = latency != "uncalibrated", profile.constraints
    judged = [
        msgspec.structs.replace(
            m.candidate, gates=judge(m.candidate, constraints.hard, latency_known=known)
        )
        for m in tried.made
    ]
    choice = choose([*judged, *tried.failed], constraints.rank_by, latency_known=known)
    candidates = tuple(
        msgspec.structs.replace(c, outcome=choice.outcomes[c.id]) for c in [*judged, *tried.failed]
    )
    found = ProfileFinding(
        id=profile.id,
        title=profile.title,
        digest=digest,
        arch=profile.arch,
        latency=latency,
        threads=profile.runtimes[0].threads,
        rank_by=constraints.rank_by,
        candidates=candidates,
        chosen=choice.chosen,
        verdict=choice.verdict,
    )
    shared: tuple[str, ...] = ()
    if subject.calibration is not None:
        shared = shared_groups(subject.calibration, subject.fidelity)
    full_range = [m.plan.id for m in tried.made if _may_saturate(m.plan)]
    return msgspec.structs.replace(found, notes=notes(found, host, shared, full_range))


def _may_saturate(planned: Plan) -> bool:
    quantize = planned.recipe.quantize
    return (
        planned.runtime == "onnx_runtime"
        and isinstance(quantize, StaticInt8)
        and not quantize.reduce_range
    )


def _write(
    request: ConvertRequest, subject: Subject, tried: Sequence[_Tried], report: Report
) -> ConvertResult:
    page, data = render(report), msgspec.json.format(msgspec.json.encode(report), indent=1)
    releases = {}
    about = release.About(
        model=subject.model,
        name=report.source.name,
        version=report.source.version,
        task="classification" if subject.classification else "other",
        calibration_digest=None if subject.calibration is None else subject.calibration.digest,
        report=page,
        report_data=data,
    )
    for one, found in zip(tried, report.profiles, strict=True):
        chosen = next((m for m in one.made if m.plan.id == found.chosen), None)
        if chosen is None:
            release.remove_release(request.out, found.id)
            continue
        releases[found.id] = release.write_release(
            request.out, about, _chosen(chosen, one.target, subject, report)
        )
    with release.output_errors(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
        write_atomic(request.out / HTML_NAME, page)
        write_atomic(request.out / JSON_NAME, data)
    return ConvertResult(report, request.out, releases)


def _chosen(made: Made, target: Target, subject: Subject, report: Report) -> release.Chosen:
    result = made.result
    inputs = result.to_artifact(subject.fidelity.inputs)
    scores = in_order(subject.model.outputs, made.outputs)
    picked = pick(inputs, scores, classification=subject.classification)
    provenance = {
        "schema": "aid-edge/provenance/v1",
        "source": msgspec.to_builtins(report.source),
        "data": msgspec.to_builtins(report.data),
        "provenance": msgspec.to_builtins(report.provenance),
        "profile": {"id": target[0].id, "digest": target[1]},
        "candidate": made.candidate.id,
        "recipe": repr(made.plan.recipe),
        "artifact": result.digest,
        "converter_tools": dict(result.tools),
    }
    return release.Chosen(
        candidate=made.candidate,
        result=result,
        profile=target[0],
        profile_digest=target[1],
        golden=judged_by(len(picked), compressed=made.candidate.compressed),
        golden_frame=encode((result.inputs, result.outputs), inputs, made.outputs, picked),
        provenance=msgspec.json.format(msgspec.json.encode(provenance), indent=1),
    )


def _source_finding(model: SourceModel, name: str, version: str) -> SourceFinding:
    def describe(tensor: TensorInfo) -> str:
        return f"{tensor.name}: {tensor.datatype} {list(tensor.shape)}"

    card = model.card
    return SourceFinding(
        name=name,
        version=version,
        title=card.title if card is not None else name,
        spec=model.spec,
        framework=model.framework,
        task=card.task if card is not None else "other",
        parameters=model.parameters,
        digest=model.digest,
        inputs=tuple(describe(t) for t in model.inputs),
        outputs=tuple(describe(t) for t in model.outputs),
        operators=model.operators,
        licence=card.licence if card is not None else "",
    )


def _data_findings(subject: Subject) -> tuple[DataFinding, ...]:
    roles: list[tuple[Literal["calibration", "evaluation", "fidelity"], DataSet | None]] = [
        ("calibration", subject.calibration),
        ("evaluation", subject.evaluation),
        ("fidelity", subject.fidelity),
    ]
    return tuple(
        DataFinding(
            role=role,
            spec=data.spec,
            n=len(data),
            units=data.clusters,
            labelled=data.labels is not None,
            digest=data.digest,
        )
        for role, data in roles
        if data is not None
    )


def _all_failed(tried: Sequence[_Tried], result: ConvertResult) -> ConversionError:
    failed = [c for t in tried for c in t.failed]
    causes = "; ".join(f"{c.id}: {c.outcome.text}" for c in failed if c.outcome is not None)
    return ConversionError("no candidate could be made", cause=causes, hint=f"See {result.html}.")
