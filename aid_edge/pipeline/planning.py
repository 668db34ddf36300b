"""What is tried for each profile, asked of every converter before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aid_edge import registry
from aid_edge.compress import refusal_of
from aid_edge.converter import Converter
from aid_edge.errors import UnsupportedModelError, UsageError
from aid_edge.evaluate.metrics import metric
from aid_edge.model import SourceModel
from aid_edge.pipeline.findings import Candidate
from aid_edge.pipeline.making import refused
from aid_edge.pipeline.request import ConvertRequest
from aid_edge.pipeline.search.driver import Planned, Target
from aid_edge.pipeline.search.space import Plan, Wishes, plan
from aid_edge.pipeline.search.traits import traits_of
from aid_edge.recipe import MAX_RECOVERY_MINUTES
from device_agent.contract.names import IDENTIFIER_PATTERN, VERSION_PATTERN

_PREPARED_FRAMEWORK = "torch"
"""What pruning and recovery leave is a program of PyTorch."""


def check_request(request: ConvertRequest) -> None:
    """Return if ``request`` can be meant; does no work.

    Raises:
        UsageError: It cannot.
        DataError: The user's metric cannot be imported.
    """
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
    if request.metric is not None:
        asked = metric(request.metric)  # raises where there is none of this name
        if request.evaluation is None and not asked.by_reference:
            raise UsageError(
                f"metric {asked.name} needs labelled data", hint="Give them with --evaluate."
            )
    _check_search(request)


def _check_search(request: ConvertRequest) -> None:
    if request.search not in {"quick", "full"}:
        raise UsageError(f"--search {request.search}: allowed: quick, full")
    if not 0 <= request.recovery_minutes <= MAX_RECOVERY_MINUTES:
        raise UsageError(
            f"{request.recovery_minutes:g} minutes of recovery; "
            f"allowed: 0 to {MAX_RECOVERY_MINUTES:g}"
        )
    if request.train is not None and not request.recovery_minutes:
        raise UsageError(
            "training data are given, but no time to train",
            hint="Say how long each model may be trained, with --recovery-minutes.",
        )
    if request.recovery_minutes and request.train is None and request.calibration is None:
        raise UsageError(
            "there is time for recovery, but nothing to recover on",
            hint="Give unlabelled inputs with --calibration, or labelled data with --train.",
        )


def name_of(request: ConvertRequest, model: SourceModel) -> tuple[str, str]:
    """Return name and version of the releases.

    Raises:
        UsageError: They cannot be what a release is called.
    """
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


def plan_all(
    request: ConvertRequest, model: SourceModel
) -> tuple[list[Planned], dict[str, Converter]]:
    """Return what to try per profile, and the converters by runtime.

    Raises:
        UsageError: A runtime that was asked for is not one of a profile's.
        UnknownRuntimeError: It has no converter.
        UnsupportedModelError: No runtime of a profile takes the model.
    """
    installed = set(registry.available())
    for runtime in request.runtimes:
        if runtime not in installed:
            registry.load(runtime)  # raises, and says which there are
    names = {r.name for profile, _ in request.targets for r in profile.runtimes}
    wanted = names & installed & (set(request.runtimes) or names)
    converters = {name: registry.load(name) for name in sorted(wanted)}
    wishes = _wishes(request, model, converters)
    return [_plan(target, model, converters, wishes) for target in request.targets], converters


def _wishes(
    request: ConvertRequest, model: SourceModel, converters: Mapping[str, Converter]
) -> Wishes:
    takes = {n for n, c in converters.items() if _PREPARED_FRAMEWORK in c.accepts}
    if refusal_of(model):
        takes = set()  # the report notes why
    return Wishes(
        only=request.runtimes,
        seed=request.seed,
        search=request.search,
        calibration=request.calibration is not None,
        train=request.train is not None,
        recovery_minutes=request.recovery_minutes,
        traits=traits_of(model.operators),
        prepared=frozenset(takes),
    )


def _plan(
    target: Target, model: SourceModel, converters: Mapping[str, Converter], wishes: Wishes
) -> Planned:
    """Return what to try for one profile; refuses where none of its runtimes takes the model."""
    methods = {name: converter.methods for name, converter in converters.items()}
    plans = plan(target[0], methods, wishes)
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
    return Planned(
        target,
        tuple(p for p in plans if p.runtime not in refusals),
        _refused(plans, refusals),
    )


def _refused(
    plans: Sequence[Plan], refusals: Mapping[str, UnsupportedModelError]
) -> tuple[Candidate, ...]:
    return tuple(
        refused(p, refusals[p.runtime]) for p in plans if p.runtime in refusals and not p.fallback
    )
