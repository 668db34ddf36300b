"""Task metrics by name, and how a candidate compares with the source by one of them.

============================  =====================================  ============================
name                          outputs                                targets
============================  =====================================  ============================
``top-1``, ``accuracy``       scores [n, classes], or [n, 1]         classes
``top-K``, such as ``top-5``  scores [n, classes]                    classes
``f1``                        scores [n, classes] (macro)            classes or several labels
``map``                       scores [n, classes] (macro)            classes or several labels
``auc``                       scores [n, classes] (macro, OvR)       classes or several labels
``rmse``, ``mae``, ``r2``     values [n, ...]                        values
``cosine``                    values [n, ...]                        values, or the source's
``relative-error``            values [n, ...]                        values, or the source's
``cer``, ``wer``              ids [n, t], or scores [n, t, symbols]  sequences of ids
``module:function``           any                                    any
============================  =====================================  ============================

All built-in ones look at the first output. Options stand in brackets: ``cer(blank=96)``,
``wer(space=1, blank=-1)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.errors import DataError, UsageError
from aid_edge.evaluate import scoring, user_metric
from aid_edge.evaluate.data.targets import Kind, Targets
from aid_edge.evaluate.paired import (
    MAX_DRAWS,
    PairedDrop,
    paired_bootstrap,
    paired_shares,
)
from aid_edge.evaluate.statistics import Interval

FloatArray = npt.NDArray[np.float64]
Outputs = Sequence[npt.NDArray[Any]]
Score = Callable[[FloatArray], float]
"""The metric of the samples, of which each counts as often as its weight [n] says."""


@dataclass(frozen=True)
class Metric:
    """How good answers are, as one figure.

    Attributes:
        name: As it was asked for.
        unit: ``share`` (0 to 1), or another one.
        higher_is_better: Else it is an error.
        kinds: Targets it can be judged on.
        bind: From outputs and targets to a function of weights.
        per_sample: From outputs and targets to one figure per sample, [n], where there is such a
            thing: its mean is the metric, unless ``is_mean`` says otherwise.
        is_mean: Whether the metric is the mean of ``per_sample``.
        is_hit: Whether ``per_sample`` are 0 and 1: exact methods for shares are used.
        by_reference: Whether the source's own answers stand in for targets.
        draws: Of the bootstrap.
    """

    name: str
    unit: str
    higher_is_better: bool
    kinds: frozenset[Kind]
    bind: Callable[[Outputs, Any], Score]
    per_sample: Callable[[Outputs, Any], FloatArray] | None = None
    is_mean: bool = True
    is_hit: bool = False
    by_reference: bool = False
    draws: int = MAX_DRAWS

    def value(self, outputs: Outputs, targets: Targets) -> float:
        """Return the metric of answers."""
        return self.bind(outputs, targets)(np.ones(len(targets)))


@dataclass(frozen=True)
class MetricComparison:
    """One metric of source and candidate on the same samples.

    Attributes:
        units: Independent units: groups, or samples where there are none.
        drop: How much worse the candidate is, in ``unit``; negative is better.
        drop_interval: Of the drop, paired; see ``how``.
        detectable_drop: Smallest true drop that such samples find with a chance of 80 %; None
            where nothing varies.
        how: What the interval was made by.
    """

    name: str
    unit: str
    higher_is_better: bool
    n: int
    units: int
    source: float
    candidate: float
    drop: float
    drop_interval: Interval
    detectable_drop: float | None
    how: str


def metric(spec: str) -> Metric:
    """Return the metric that ``spec`` names; see the module for the names.

    Raises:
        UsageError: There is none of this name, or an option cannot be meant.
        DataError: ``module:function`` cannot be imported.
    """
    if ":" in spec:
        return _user(spec)
    found = re.fullmatch(r"([a-z0-9-]+)(?:\((.*)\))?", spec.strip().lower())
    name, options = ("", {}) if found is None else (found[1], _options(spec, found[2] or ""))
    if top := re.fullmatch(r"top-?(\d+)", name):
        return _top_k(spec, int(top[1]), options)
    make = _BUILT_IN.get(name)
    if make is None:
        raise UsageError(
            f"there is no metric {spec!r}",
            hint=f"Known: top-1, top-5, {', '.join(sorted(_BUILT_IN))}, or module:function.",
        )
    return make(spec, options)


def check(
    chosen: Metric, source: Outputs, targets: Targets | None, *, kind: Kind = "classes"
) -> None:
    """Return if the source itself can be judged by ``chosen``; asked before candidates are made.

    Raises:
        DataError: The metric cannot be judged on such targets or outputs.
    """
    right = _targets(chosen, source, targets, kind)
    if not np.isfinite(chosen.bind(source, right)(np.ones(len(right)))):
        raise DataError(f"metric {chosen.name}: is not a finite number of the source model itself")


def compare(
    chosen: Metric,
    source: Outputs,
    candidate: Outputs,
    targets: Targets | None,
    *,
    kind: Kind = "classes",
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> MetricComparison:
    """Return how much worse a candidate is than the source, with a paired interval of 95 %.

    Shares of hits (``top-k``) get Tango's interval; everything else a bootstrap of whole groups in
    which source and candidate are drawn together (:mod:`aid_edge.evaluate.paired`).

    Args:
        chosen: The metric.
        source: Outputs of the source model, each [n, ...], in its order.
        candidate: Outputs of the candidate, same order and shapes.
        targets: What is right; may be None for metrics ``by_reference``.
        kind: What the targets are.
        groups: Cluster of each sample, or None when samples are independent.
        seed: Of the bootstrap.

    Raises:
        DataError: The metric cannot be judged on such targets or outputs, or the samples are too
            few for an interval.
    """
    right = _targets(chosen, source, targets, kind)
    n = len(right)
    if any(len(o) != n for o in (*source, *candidate)):
        raise DataError(f"metric {chosen.name}: outputs and targets differ in their number")
    before, after = chosen.bind(source, right), chosen.bind(candidate, right)
    sign = 1.0 if chosen.higher_is_better else -1.0
    everything = np.ones(n)
    values = before(everything), after(everything)
    if not np.isfinite(values).all():
        raise DataError(f"metric {chosen.name}: is not a finite number on these samples")
    found: PairedDrop
    if chosen.is_hit and chosen.per_sample is not None:
        hits = chosen.per_sample(source, right) > 0.5, chosen.per_sample(candidate, right) > 0.5
        found = paired_shares(*hits, groups)
    else:
        found = paired_bootstrap(
            lambda weights: sign * (before(weights) - after(weights)),
            n, groups, seed=seed, draws=chosen.draws, is_share=chosen.unit == "share",
            what=f"metric {chosen.name}",
        )  # fmt: skip
    return MetricComparison(
        name=chosen.name,
        unit=chosen.unit,
        higher_is_better=chosen.higher_is_better,
        n=n,
        units=n if groups is None else len(set(groups)),
        source=values[0],
        candidate=values[1],
        drop=sign * (values[0] - values[1]),
        drop_interval=found.interval,
        detectable_drop=found.detectable,
        how=found.how,
    )


def _targets(chosen: Metric, source: Outputs, targets: Targets | None, kind: Kind) -> Any:
    if targets is not None and kind in chosen.kinds:
        return targets
    if chosen.by_reference:
        return np.asarray(source[0])
    wanted = " or ".join(sorted(chosen.kinds))
    found = "there are none" if targets is None else f"these are {kind}"
    raise DataError(f"metric {chosen.name}: needs targets that are {wanted}; {found}")


# --- built in ----------------------------------------------------------------------------------

_CLASSES: frozenset[Kind] = frozenset({"classes"})
_LABELS: frozenset[Kind] = frozenset({"classes", "multi-label"})
_VALUES: frozenset[Kind] = frozenset({"values"})
_SEQUENCES: frozenset[Kind] = frozenset({"sequences"})
_ANY: frozenset[Kind] = frozenset({"classes", "multi-label", "values", "sequences"})
_RANK_DRAWS = 1000
"""Of metrics that sort or count anew for each draw."""


def _options(spec: str, text: str) -> dict[str, int]:
    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"([a-z]+)\s*=\s*(-?\d+)", part)
        if match is None:
            raise UsageError(f"metric {spec!r}: {part!r} is no option such as blank=0")
        found[match[1]] = int(match[2])
    return found


def _checked(spec: str, options: Mapping[str, int], known: Sequence[str] = ()) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(
            f"metric {spec!r}: has no option {', '.join(unknown)}",
            hint=f"Options: {', '.join(known) or 'none'}.",
        )


def _top_k(spec: str, k: int, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    if not 1 <= k <= 1000:
        raise UsageError(f"metric {spec!r}: k is {k}; allowed: 1 to 1000")

    def hits(outputs: Outputs, targets: Any) -> FloatArray:
        count = outputs[0][0].size
        if 1 < count <= k:
            raise DataError(
                f"metric {spec}: every class is among the first {k} of {count}",
                hint=f"Take top-1 to top-{count - 1}.",
            )
        return scoring.top_k(outputs[0], targets, k)

    return _mean(spec, "share", _CLASSES, hits, is_hit=True)


def _mean(
    spec: str,
    unit: str,
    kinds: frozenset[Kind],
    per_sample: Callable[[Outputs, Any], FloatArray],
    **facts: Any,
) -> Metric:
    """Return a metric that is the mean of a figure per sample."""

    def bind(outputs: Outputs, targets: Any) -> Score:
        column = per_sample(outputs, targets)
        return lambda weights: float(weights @ column / weights.sum())

    facts = {"higher_is_better": True, **facts}
    return Metric(spec, unit, kinds=kinds, bind=bind, per_sample=per_sample, **facts)


def _accuracy(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    return _mean(spec, "share", _CLASSES, lambda o, t: scoring.top_k(o[0], t, 1), is_hit=True)


def _f1(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    return Metric(spec, "share", True, _LABELS, lambda o, t: scoring.f1(o[0], t), draws=_RANK_DRAWS)


def _map(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    return Metric(
        spec, "share", True, _LABELS, lambda o, t: scoring.average_precision(o[0], t),
        draws=_RANK_DRAWS,
    )  # fmt: skip


def _auc(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    return Metric(
        spec, "share", True, _LABELS, lambda o, t: scoring.auc(o[0], t), draws=_RANK_DRAWS
    )


def _rmse(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)

    def bind(outputs: Outputs, targets: Any) -> Score:
        squares = scoring.squared_error(outputs[0], targets)
        return lambda weights: float(np.sqrt(weights @ squares / weights.sum()))

    return Metric(
        spec, "target units", False, _VALUES, bind, is_mean=False,
        per_sample=lambda o, t: np.sqrt(scoring.squared_error(o[0], t)),
    )  # fmt: skip


def _mae(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    return _mean(
        spec, "target units", _VALUES, lambda o, t: scoring.absolute_error(o[0], t),
        higher_is_better=False,
    )  # fmt: skip


def _r2(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    return Metric(spec, "share of variance", True, _VALUES, lambda o, t: scoring.r2(o[0], t))


def _cosine(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    return _mean(spec, "cosine", _VALUES, lambda o, t: scoring.cosine(o[0], t), by_reference=True)


def _relative_error(spec: str, options: Mapping[str, int]) -> Metric:
    _checked(spec, options)
    return _mean(
        spec, "of the reference's length", _VALUES, lambda o, t: scoring.relative_error(o[0], t),
        higher_is_better=False, by_reference=True,
    )  # fmt: skip


def _error_rate(spec: str, options: Mapping[str, int]) -> Metric:
    is_words = spec.strip().lower().startswith("wer")
    _checked(spec, options, ("blank", "space") if is_words else ("blank",))
    blank, space = options.get("blank", 0), options.get("space")

    def edits(outputs: Outputs, targets: Any) -> tuple[FloatArray, FloatArray]:
        return scoring.edits(scoring.decode(outputs[0], blank), targets, space)

    def bind(outputs: Outputs, targets: Any) -> Score:
        wrong, length = edits(outputs, targets)
        return lambda weights: float(weights @ wrong / max(float(weights @ length), 1.0))

    def per_sample(outputs: Outputs, targets: Any) -> FloatArray:
        wrong, length = edits(outputs, targets)
        return wrong / np.maximum(length, 1)

    return Metric(
        spec, "errors per symbol" if not is_words else "errors per word", False, _SEQUENCES, bind,
        per_sample, is_mean=False,
    )  # fmt: skip


_BUILT_IN: dict[str, Callable[[str, Mapping[str, int]], Metric]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "map": _map,
    "auc": _auc,
    "rmse": _rmse,
    "mae": _mae,
    "r2": _r2,
    "cosine": _cosine,
    "relative-error": _relative_error,
    "wer": _error_rate,
    "cer": _error_rate,
}


def _user(spec: str) -> Metric:
    function = user_metric.load(spec)
    return Metric(
        name=spec,
        unit=function.unit,
        higher_is_better=function.higher_is_better,
        kinds=_ANY,
        bind=function.bind,
        by_reference=function.needs_no_targets,
        draws=user_metric.DRAWS,
    )
