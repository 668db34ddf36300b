"""The pipeline on one page: inspect, plan, convert, measure, judge, choose, report, release."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from aid_edge import leftovers
from aid_edge.catalogue.files import write_atomic
from aid_edge.errors import ConversionError
from aid_edge.evaluate.data import shared_groups
from aid_edge.model import ModelCard, SourceModel, read_preprocess
from aid_edge.pipeline import release
from aid_edge.pipeline.cache import Cache, default_limit, default_root, tool_versions
from aid_edge.pipeline.executors import LocalExecutor, open_executor
from aid_edge.pipeline.findings import (
    ProfileFinding,
    Provenance,
    Report,
    SourceFinding,
)
from aid_edge.pipeline.gates import judge
from aid_edge.pipeline.golden import encode, judged_by, pick
from aid_edge.pipeline.insight import looked_into
from aid_edge.pipeline.jobs import default_jobs, one_at_a_time
from aid_edge.pipeline.judging import Judge
from aid_edge.pipeline.loading import Loader, data_findings
from aid_edge.pipeline.making import Made, Maker
from aid_edge.pipeline.measure import in_order, latency_source, this_host
from aid_edge.pipeline.notes import notes
from aid_edge.pipeline.on_device import MeasureOnDevice, measured_on_device
from aid_edge.pipeline.planning import check_request, name_of, plan_all
from aid_edge.pipeline.report import render
from aid_edge.pipeline.request import (
    HTML_NAME,
    JSON_NAME,
    ConvertRequest,
    ConvertResult,
    Progress,
)
from aid_edge.pipeline.search.budget import Budget
from aid_edge.pipeline.search.driver import Planned, Search, Target, Tried, with_seconds
from aid_edge.pipeline.search.front import pareto, why_not_cheaper
from aid_edge.pipeline.search.journal import Journal
from aid_edge.pipeline.search.mixed import with_layers
from aid_edge.pipeline.search.space import Plan
from aid_edge.pipeline.steps import Engine, RunnerEngine, Steps
from aid_edge.pipeline.verdict import Choice, choose
from aid_edge.recipe import StaticInt8
from aid_edge.sources.inputs import parse_input
from aid_edge.sources.opening import open_source
from device_agent.contract.tensors import TensorInfo

_SHARED = "data-"
RANDOM_MARK = " [calibrated on random data]"


def run(
    request: ConvertRequest,
    *,
    on_progress: Progress = lambda _task, _share, _what: None,
    engine: Engine | None = None,
    measure_on: MeasureOnDevice | None = None,
) -> ConvertResult:
    """Carry out a conversion; the report is written also when every candidate misses a gate.

    Args:
        request: What to do.
        on_progress: Told how far each task is.
        engine: What carries out the heavy steps; worker processes when None.
        measure_on: Measures finalists on a real device, where one was asked for.

    Raises:
        UsageError: The request cannot be meant.
        SourceError: The source model cannot be read.
        UnsupportedModelError: No runtime of a profile takes the model; said before any work.
        DataError: Data are missing, do not fit, or overlap.
        ExecutorError: The cluster cannot be reached, or its workers cannot do the work.
        ConversionError: Every candidate failed to convert.
        OutputError: The output folder cannot be written.
    """
    check_request(request)
    release.check_writable(request.out)
    on_progress = one_at_a_time(on_progress)
    on_progress("source", 0.0, "inspecting")
    model = _open(request)
    name, version = name_of(request, model)
    planned, converters = plan_all(request, model)
    on_progress("source", 0.2, "loading data")
    root = request.cache or default_root()
    with _shared_folder(root, request) as shared:
        loader = Loader(request, model, shared)
        subject = loader.load(planned)
        steps = Steps(Cache(root), tool_versions(), converters, engine or RunnerEngine())
        maker = Maker(steps, Judge(steps, subject, request.seed), this_host())
        tried, journal = _search(request, maker, planned, loader, on_progress)
        tried = _measure(tried, maker, on_progress, measure_on)
        on_progress("report", 0.0, "judging")
        tried, choices = _choose_all(tried, maker, on_progress)
        report = Report(
            source=_source_finding(model, name, version),
            data=data_findings(subject),
            profiles=tuple(
                _finding(t, c, maker, loader.notes) for t, c in zip(tried, choices, strict=True)
            ),
            provenance=Provenance(
                command=request.command,
                seed=request.seed,
                host=maker.host.title,
                tools=dict(steps.tools),
            ),
        )
        result = _write(request, maker, tried, report)
        journal.finish()
    steps.cache.trim(default_limit())
    on_progress("report", 1.0, str(result.html))
    if not any(t.made for t in tried):
        raise _all_failed(tried, result)
    return result


def _open(request: ConvertRequest) -> SourceModel:
    model = open_source(
        request.source,
        weights=request.weights,
        card=request.card,
        inputs=[parse_input(text) for text in request.inputs],
    )
    if request.preprocess is None:
        return model
    said = read_preprocess(request.preprocess)
    card = model.card or ModelCard(
        request.preprocess, model.name, model.version, model.name, "other", (), "", (), (), (), ()
    )
    return replace(model, card=replace(card, preprocess=said))


@contextlib.contextmanager
def _shared_folder(root: Path, request: ConvertRequest) -> Iterator[Path | None]:
    """Give a folder for samples that other machines see; None where this one does all."""
    if request.executor is None:
        yield None
        return
    root.mkdir(parents=True, exist_ok=True)
    leftovers.clear(root.glob(f"{_SHARED}*"), _SHARED)
    folder = leftovers.make(root, _SHARED)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _search(
    request: ConvertRequest,
    maker: Maker,
    planned: Sequence[Planned],
    loader: Loader,
    on_progress: Progress,
) -> tuple[list[Tried], Journal]:
    jobs = request.jobs or default_jobs()
    cache = maker.steps.cache
    with open_executor(request.executor, jobs, cache.root) as executor:
        budget = Budget.starting_now(request.time_budget_s)
        on_progress("source", 0.4, "running the source model")
        maker.judge.run_source(
            lambda share, what: on_progress("source", 0.4 + 0.6 * share, what), jobs
        )
        maker.judge.check_metric()
        loader.say(maker.steps.preprocessing)
        on_progress("source", 1.0, "done")
        journal = Journal(cache.root, _asked(request, maker, planned))
        distributed = not isinstance(executor, LocalExecutor)
        search = Search(
            maker, executor, budget, journal, on_progress, distributed=distributed,
            thorough=request.search == "full",
        )  # fmt: skip
        return search.run(planned), journal


def _asked(request: ConvertRequest, maker: Maker, planned: Sequence[Planned]) -> str:
    """Return all that makes a search another one."""
    subject = maker.judge.subject
    data = [d.digest for d in (subject.calibration, subject.train, *subject.judging) if d]
    plans = [(p.target[1], [plan.id for plan in p.plans]) for p in planned]
    return repr((subject.model.digest, data, plans, request.seed, request.metric))


def _measure(
    tried: Sequence[Tried], maker: Maker, on_progress: Progress, measure_on: MeasureOnDevice | None
) -> list[Tried]:
    """Benchmark what is still in the race, here and, where asked for, on a device."""
    flat = [(t.target[0], m) for t in tried for m in t.made if m.candidate.outcome is None]
    measured = maker.benchmark(flat, on_progress)
    if measure_on is not None:
        pairs = [(profile, m) for (profile, _), m in zip(flat, measured, strict=True)]
        measured = measured_on_device(pairs, maker.judge.subject.fidelity, measure_on)
    found = iter(measured)
    return [
        replace(t, made=tuple(next(found) if m.candidate.outcome is None else m for m in t.made))
        for t in tried
    ]


def _choose_all(
    tried: Sequence[Tried], maker: Maker, on_progress: Progress
) -> tuple[list[Tried], list[Choice]]:
    def told(number: int) -> Callable[[float, str], None]:
        return lambda share, what: on_progress(
            "report", 0.9 * (number + share) / len(tried), f"looking into the chosen: {what}"
        )

    chosen = [_choose(t, maker, told(i)) for i, t in enumerate(tried)]
    return with_seconds([t for t, _ in chosen]), [choice for _, choice in chosen]


def _choose(tried: Tried, maker: Maker, told: Callable[[float, str], None]) -> tuple[Tried, Choice]:
    """Return the profile with its gates judged and its chosen candidate looked into; the choice."""
    profile = tried.target[0]
    known = latency_source(profile, maker.host) != "uncalibrated"
    hard = profile.constraints.hard
    made = [m.changed(gates=judge(m.candidate, hard, latency_known=known)) for m in tried.made]
    choice = choose(
        [*(m.candidate for m in made), *tried.failed], profile.constraints.rank_by,
        latency_known=known,
    )  # fmt: skip
    floats = {m.plan.runtime: m for m in made if m.plan.recipe.key == "float32"}
    explained = [
        with_layers(maker, floats.get(m.plan.runtime), m)
        if m.plan.id == choice.chosen and isinstance(m.plan.recipe.quantize, StaticInt8)
        else m
        for m in made
    ]
    looked = looked_into(maker, explained, choice.chosen, told)
    final = tuple(m.changed(outcome=choice.outcomes[m.plan.id]) for m in looked)
    return replace(tried, made=final), choice


def _finding(
    tried: Tried, choice: Choice, maker: Maker, about_data: Sequence[str]
) -> ProfileFinding:
    profile, digest = tried.target
    latency = latency_source(profile, maker.host)
    candidates = tuple(
        msgspec.structs.replace(c, outcome=choice.outcomes[c.id])
        for c in [*(m.candidate for m in tried.made), *tried.failed]
    )
    known = latency != "uncalibrated"
    rank_by = profile.constraints.rank_by
    found = ProfileFinding(
        id=profile.id,
        title=profile.title,
        digest=digest,
        arch=profile.arch,
        latency=latency,
        threads=profile.runtimes[0].threads,
        rank_by=rank_by,
        candidates=candidates,
        chosen=choice.chosen,
        verdict=choice.verdict,
        pareto=pareto(candidates, latency_known=known),
        why_not_cheaper=why_not_cheaper(
            candidates, choice.chosen, [k for k in rank_by if k != "latency" or known]
        ),
        search=tried.search,
    )
    subject = maker.judge.subject
    shared: tuple[str, ...] = ()
    if subject.calibration is not None:
        shared = shared_groups(subject.calibration, subject.fidelity)
    full_range = [m.plan.id for m in tried.made if _may_saturate(m.plan)]
    said = notes(found, maker.host, shared, full_range)
    return msgspec.structs.replace(found, notes=(*about_data, *subject.model.notes, *said))


def _may_saturate(planned: Plan) -> bool:
    quantize = planned.recipe.quantize
    return (
        planned.runtime == "onnx_runtime"
        and isinstance(quantize, StaticInt8)
        and not quantize.reduce_range
    )


def _write(
    request: ConvertRequest, maker: Maker, tried: Sequence[Tried], report: Report
) -> ConvertResult:
    page, data = render(report), msgspec.json.format(msgspec.json.encode(report), indent=1)
    subject = maker.judge.subject
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
            request.out, about, _chosen(chosen, one.target, maker, report)
        )
    with release.output_errors(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
        write_atomic(request.out / HTML_NAME, page)
        write_atomic(request.out / JSON_NAME, data)
    return ConvertResult(report, request.out, releases)


def _chosen(made: Made, target: Target, maker: Maker, report: Report) -> release.Chosen:
    result, subject = made.result, maker.judge.subject
    inputs = result.to_artifact(subject.fidelity.inputs)
    if result.executed:
        outputs = maker.judge.answers(result, subject.fidelity, lambda _share, _what: None)
    else:
        # Nobody ran the artifact: it is to answer as the source does, within int8's tolerance.
        known = maker.judge.source(subject.fidelity)
        outputs = {t.name: a for t, a in zip(result.outputs, known, strict=True)}
    scores = in_order(subject.model.outputs, outputs)
    picked = pick(inputs, scores, classification=subject.classification)
    candidate = made.candidate
    random = subject.calibration is not None and subject.calibration.is_random
    if random and made.plan.recipe.needs_calibration:
        candidate = msgspec.structs.replace(candidate, recipe=candidate.recipe + RANDOM_MARK)
    provenance = {
        "schema": "aid-edge/provenance/v1",
        "source": msgspec.to_builtins(report.source),
        "data": msgspec.to_builtins(report.data),
        "provenance": msgspec.to_builtins(report.provenance),
        "profile": {"id": target[0].id, "digest": target[1]},
        "candidate": candidate.id,
        "recipe": repr(made.plan.recipe),
        "artifact": result.digest,
        "executed": result.executed,
        "converter_tools": dict(result.tools),
    }
    return release.Chosen(
        candidate=candidate,
        result=result,
        profile=target[0],
        profile_digest=target[1],
        golden=judged_by(len(picked), compressed=candidate.compressed or not result.executed),
        golden_frame=encode((result.inputs, result.outputs), inputs, outputs, picked),
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


def _all_failed(tried: Sequence[Tried], result: ConvertResult) -> ConversionError:
    failed = [c for t in tried for c in t.failed]
    causes = "; ".join(f"{c.id}: {c.outcome.text}" for c in failed if c.outcome is not None)
    return ConversionError("no candidate could be made", cause=causes, hint=f"See {result.html}.")
