"""Mixed precision: the fewest layers that must stay float, found by real partial quantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aid_edge import runner
from aid_edge.diagnose.records import LayerRecord
from aid_edge.errors import UsageError
from aid_edge.recipe import Recipe, StaticInt8
from aid_edge.runner import ConversionRequest, ConversionResult
from device_agent.contract.errors import AidError

DEFAULT_ATTEMPTS = 8
MAX_ATTEMPTS = 64
MAX_KEPT_SHARE = 0.5
"""With more layers in float than this, an artifact is not int8 any more."""


@dataclass(frozen=True)
class Judgement:
    """What a caller makes of one attempt.

    Attributes:
        passed: Whether it is good enough.
        value: How good it is; higher is better. Attempts are compared by it.
        text: The figures in words, such as ``agreement 0.94 (n=600)``.
    """

    passed: bool
    value: float
    text: str


@dataclass(frozen=True)
class Attempt:
    """One partial quantization that was really carried out, and what came of it.

    Attributes:
        keep_float: The layers in float.
        judgement: None when the conversion failed.
        text: What was tried and its effect, in words.
    """

    keep_float: tuple[str, ...]
    judgement: Judgement | None
    text: str


@dataclass(frozen=True)
class Sensitivity:
    """Outcome of the search.

    Attributes:
        recipe: With the fewest layers in float that pass; None when none passes.
        attempts: Everything that was tried, in order.
        records: The layers, with what keeping them in float did in ``tried``.
    """

    recipe: Recipe | None
    attempts: tuple[Attempt, ...]
    records: tuple[LayerRecord, ...]


Try = Callable[[Recipe], Judgement]
"""Carries out a recipe and judges what came of it; an ``AidError`` is a failed attempt."""


def sensitivity(
    recipe: Recipe,
    records: Sequence[LayerRecord],
    attempt: Try,
    *,
    before: Judgement | None = None,
    attempts: int = DEFAULT_ATTEMPTS,
) -> Sensitivity:
    """Return ``recipe`` with the fewest layers kept in float that ``attempt`` accepts.

    The number of layers doubles until it passes, then is bisected between the last that failed
    and the first that passed; the layers are the worst of the ranking, in its order.

    Args:
        recipe: A static int8 recipe that missed.
        records: Its layers, the worst first: what :func:`aid_edge.diagnose.compare.layers` found.
        attempt: Carries out one recipe; :func:`converting` makes one from a request.
        before: What was made of ``recipe`` itself, to show the effect against.
        attempts: How often ``attempt`` is called at most, 1 to ``MAX_ATTEMPTS``.

    Raises:
        UsageError: ``recipe`` is no static int8, or ``attempts`` is out of bounds.
    """
    if not isinstance(recipe.quantize, StaticInt8):
        raise UsageError(f"{recipe.title} has no layers to keep in float")
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise UsageError(f"{attempts} attempts; allowed: 1 to {MAX_ATTEMPTS}")
    already = recipe.quantize.keep_float
    names = [r.name for r in records if r.placement == "integer" and r.name not in already]
    most = max(1, int(len(names) * MAX_KEPT_SHARE))
    search = _Search(recipe, recipe.quantize, names[:most], attempt, before)
    failed, passed = 0, None
    count = 1
    while len(search.log) < attempts and passed is None and names:
        if search.passes(count):
            passed = count
        elif count == most:
            break
        else:
            failed, count = count, min(2 * count, most)
    while passed is not None and passed - failed > 1 and len(search.log) < attempts:
        middle = (failed + passed) // 2
        if search.passes(middle):
            passed = middle
        else:
            failed = middle
    found = None if passed is None else search.recipe(passed)
    return Sensitivity(found, tuple(search.log), search.explained(records))


def converting(request: ConversionRequest, judge: Callable[[ConversionResult], Judgement]) -> Try:
    """Return an attempt that converts ``request`` with the recipe it is given.

    Each attempt gets a folder of its own inside ``request.out``, named by the number of layers.
    """

    def attempt(recipe: Recipe) -> Judgement:
        kept = recipe.quantize.keep_float if isinstance(recipe.quantize, StaticInt8) else ()
        out = request.out / f"kept-{len(kept)}"
        return judge(runner.convert(replace(request, recipe=recipe, out=out)))

    return attempt


class _Search:
    """Carries attempts out and keeps the log."""

    def __init__(
        self,
        base: Recipe,
        quantize: StaticInt8,
        names: Sequence[str],
        attempt: Try,
        before: Judgement | None,
    ) -> None:
        self.log: list[Attempt] = []
        self._base, self._quantize = base, quantize
        self._names, self._attempt, self._before = names, attempt, before

    def recipe(self, count: int) -> Recipe:
        kept = (*self._quantize.keep_float, *self._names[:count])
        return replace(self._base, quantize=replace(self._quantize, keep_float=kept))

    def passes(self, count: int) -> bool:
        kept = tuple(self._names[:count])
        what = f"{count} layer{'s' if count > 1 else ''} in float"
        try:
            found = self._attempt(self.recipe(count))
        except AidError as e:
            self.log.append(Attempt(kept, None, f"{what}: {e}"))
            return False
        was = f", before {self._before.text}" if self._before is not None else ""
        verdict = "enough" if found.passed else "not enough"
        self.log.append(Attempt(kept, found, f"{what}: {found.text}{was}; {verdict}"))
        return found.passed

    def explained(self, records: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
        """Return the records; each tells of the smallest attempt that kept it in float."""
        smallest: dict[str, Attempt] = {}
        for attempt in sorted(self.log, key=lambda a: len(a.keep_float)):
            for name in attempt.keep_float:
                smallest.setdefault(name, attempt)
        return tuple(
            replace(r, tried=smallest[r.name].text) if r.name in smallest else r for r in records
        )
