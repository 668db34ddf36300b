"""The search: makes candidates in waves, drops losers round by round, tries what helps the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from aid_edge.pipeline.executors import Executor
from aid_edge.pipeline.findings import (
    QUALITY_GATES,
    TIME_BUDGET,
    Candidate,
    Refusal,
    SearchFinding,
)
from aid_edge.pipeline.gates import judge
from aid_edge.pipeline.making import Made, Maker, describe
from aid_edge.pipeline.request import Progress
from aid_edge.pipeline.search.budget import Budget
from aid_edge.pipeline.search.cost import in_order
from aid_edge.pipeline.search.halving import clearly_misses, clearly_worse
from aid_edge.pipeline.search.journal import Journal
from aid_edge.pipeline.search.mixed import MixedPrecision
from aid_edge.pipeline.search.space import Plan
from aid_edge.recipe import DynamicInt8, StaticInt8
from device_agent.contract.profile import Hard, HardwareProfile

Target = tuple[HardwareProfile, str]
Key = tuple[str, str]

MAX_LATE = 3
"""So many compressed candidates of a profile are still judged on all data once time is up."""


@dataclass(frozen=True)
class Planned:
    """What is tried for one profile, and what its runtimes refused before any work."""

    target: Target
    plans: tuple[Plan, ...]
    refused: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Tried:
    """One profile with its candidates: those that were made, and those that could not be.

    Attributes:
        made: With an ``outcome`` where they were dropped on the way.
    """

    target: Target
    made: tuple[Made, ...]
    failed: tuple[Candidate, ...]
    search: SearchFinding


@dataclass
class Search:
    """One search over all profiles of a conversion.

    Attributes:
        distributed: Whether ``executor`` sends work to other processes, which tell no progress.
        thorough: Whether layers are kept in float in every runtime that misses in quality, not
            only where no other runtime's int8 is good enough. It takes up to eight conversions.
    """

    maker: Maker
    executor: Executor
    budget: Budget
    journal: Journal
    on_progress: Progress
    jobs: int = 1
    distributed: bool = False
    thorough: bool = False
    _found: dict[Key, Made | Candidate] = field(default_factory=dict)
    _look: dict[Key, int] = field(default_factory=dict)
    _rounds: dict[str, list[str]] = field(default_factory=dict)
    _cut: bool = False

    def run(self, planned: Sequence[Planned]) -> list[Tried]:
        """Make and judge what is planned; what went on to the end has no outcome yet."""
        profiles = {one.target[0].id: one.target[0] for one in planned}
        every = [(one.target[0], p) for one in planned for p in one.plans]
        first = [(q, p) for q, p in every if not p.fallback]
        # The baseline of everything else is made whatever time there is.
        self._make([(q, p) for q, p in first if not p.recipe.is_compressed], None)
        rest = [(q, p) for q, p in first if p.recipe.is_compressed]
        self._make(self._by_worth(rest), self.budget.deadline_s)
        self._race(profiles)
        wanted = [(q, p) for q, p in every if p.fallback and self._is_needed(p, q)]
        self._make(self._by_worth(wanted), self.budget.deadline_s)
        self._race(profiles)
        plans = {one.target[0].id: list(one.plans) for one in planned}
        for profile, plan in self._mixed(planned):
            plans[profile.id].append(plan)
        self._race(profiles)
        return [self._tried(one, plans[one.target[0].id]) for one in planned]

    # --- making ---------------------------------------------------------------------------

    def _by_worth(
        self, todo: Sequence[tuple[HardwareProfile, Plan]]
    ) -> list[tuple[HardwareProfile, Plan]]:
        parameters = self.maker.judge.subject.model.parameters
        order = {p: i for i, p in enumerate(in_order([p for _, p in todo], parameters))}
        return sorted(todo, key=lambda pair: order[pair[1]])

    def _make(self, todo: Sequence[tuple[HardwareProfile, Plan]], deadline_s: float | None) -> None:
        progress = None if self.distributed else self.on_progress
        work: list[Callable[[], Made | Candidate]] = [
            partial(self.maker.make, plan, profile, progress) for profile, plan in todo
        ]
        if self.distributed and todo:
            self.on_progress("cluster", 0.0, f"making {len(todo)} candidates")
        outcomes = self.executor.run(work, deadline_s)
        for (profile, plan), outcome in zip(todo, outcomes, strict=True):
            self._cut = self._cut or outcome is None
            self._found[profile.id, plan.id] = out_of_time(plan) if outcome is None else outcome
        if self.distributed and todo:
            self.on_progress("cluster", 1.0, "done")
        if todo:
            names = ", ".join(f"{q.id} {p.id}" for q, p in todo)
            self.journal.note(f"made: {names}")

    def _is_needed(self, fallback: Plan, profile: HardwareProfile) -> bool:
        """Return whether every int8 candidate of the runtime was made and misses in quality."""
        return misses_quality(self._integers(profile, fallback.runtime), profile.constraints.hard)

    def _integers(self, profile: HardwareProfile, runtime: str) -> list[Made]:
        return [
            one
            for (name, _), one in self._found.items()
            if name == profile.id
            and isinstance(one, Made)
            and one.plan.runtime == runtime
            and isinstance(one.plan.recipe.quantize, StaticInt8 | DynamicInt8)
            and one.plan.recipe.prune is None
        ]

    # --- successive halving ---------------------------------------------------------------

    def _race(self, profiles: dict[str, HardwareProfile]) -> None:
        """Judge on more and more data what may still win, until all that is left saw all."""
        looks = self.maker.judge.looks
        for number in range(1, looks):
            racing = self._alive(below=number)
            if not racing:
                continue
            for name, profile in profiles.items():
                self._drop(profile, [key for key in racing if key[0] == name], number)
            left = self._alive(below=number)
            work = [partial(self.maker.look, self._made(key), number) for key in left]
            for key, found in zip(left, self.executor.run(work), strict=True):
                if found is not None:
                    self._found[key] = found
                self._look[key] = number

    def _alive(self, below: int) -> list[Key]:
        """Return the candidates in the race that were judged on fewer data than look ``below``."""
        return [
            key
            for key, one in self._found.items()
            if isinstance(one, Made)
            and one.candidate.outcome is None
            and one.result.executed
            and self._look.get(key, 0) < below
        ]

    def _made(self, key: Key) -> Made:
        found = self._found[key]
        if not isinstance(found, Made):
            raise TypeError(f"{key} was not made")
        return found

    def _drop(self, profile: HardwareProfile, racing: Sequence[Key], number: int) -> None:
        """Give an outcome to those that have clearly lost, and say so."""
        looks = self.maker.judge.looks
        made = {key: self._made(key) for key in racing}
        samples, total = self.maker.judge.samples(number - 1)
        late = self._late(list(made.values())) if self.budget.is_over else None
        gone = 0
        for key, one in made.items():
            if not one.candidate.compressed:
                continue  # the baseline stays, whatever it is like
            refusal = _lost(one.candidate, list(made.values()), profile.constraints.hard, looks)
            if refusal is None and late is not None and one.plan.id not in late:
                self._cut, refusal = True, _OVER
            if refusal is not None:
                text = f"stopped after {samples} of {total} samples: {refusal.text}"
                self._found[key] = one.changed(outcome=Refusal(code=refusal.code, text=text))
                gone += 1
        if made:
            line = (
                f"{len(made)} candidates on {samples} of {total} samples: {len(made) - gone} "
                f"went on, {gone} had clearly lost"
            )
            self._rounds.setdefault(profile.id, []).append(line)
            self.journal.note(f"{profile.id}: {line}")

    def _late(self, made: Sequence[Made]) -> set[str]:
        plans = [one.plan for one in made if one.candidate.compressed]
        best = in_order(plans, self.maker.judge.subject.model.parameters)
        return {plan.id for plan in best[:MAX_LATE]}

    # --- mixed precision ------------------------------------------------------------------

    def _mixed(self, planned: Sequence[Planned]) -> list[tuple[HardwareProfile, Plan]]:
        """Keep the fewest layers in float where no int8 candidate of a runtime is good enough."""
        added = []
        for one in planned:
            profile = one.target[0]
            hard = profile.constraints.hard
            for runtime in dict.fromkeys(p.runtime for p in one.plans):
                base = self._found.get((profile.id, f"{runtime}/float32"))
                integers = [
                    m for m in self._integers(profile, runtime)
                    if isinstance(m.plan.recipe.quantize, StaticInt8)
                    and m.plan.recipe.recover is None
                ]  # fmt: skip
                if not (isinstance(base, Made) and misses_quality(integers, hard)):
                    continue
                if not self.thorough and (other := self._good_elsewhere(profile, runtime)):
                    text = f"no mixed precision in {runtime}: {other} is good enough"
                    self._rounds.setdefault(profile.id, []).append(text)
                    continue
                mixing = MixedPrecision(self.maker, profile, self.budget, self.on_progress)
                best, found = mixing.search(base, integers)
                if best is None:
                    continue
                self._found[profile.id, best.plan.id] = best
                self._rounds.setdefault(profile.id, []).append(mixing.summary)
                self.journal.note(f"{profile.id}: {mixing.summary}")
                if found is not None:
                    self._found[profile.id, found.plan.id] = found
                    added.append((profile, found.plan))
        return added

    def _good_elsewhere(self, profile: HardwareProfile, runtime: str) -> str:
        """Return an int8 candidate of another runtime that misses no quality gate, if any."""
        others = [
            m
            for name in dict.fromkeys(r.name for r in profile.runtimes if r.name != runtime)
            for m in self._integers(profile, name)
        ]
        return next((m.plan.id for m in others if not is_bad(m, profile.constraints.hard)), "")

    # --- outcome --------------------------------------------------------------------------

    def _tried(self, planned: Planned, plans: Sequence[Plan]) -> Tried:
        name = planned.target[0].id
        outcomes = [self._found[name, p.id] for p in plans if (name, p.id) in self._found]
        finding = SearchFinding(
            planned=len(planned.plans) + len(planned.refused),
            rounds=tuple(self._rounds.get(name, ())),
            stopped=TIME_BUDGET if self._cut else "done",
            seconds=0.0,
            resumed=self.journal.is_resumed,
        )
        return Tried(
            planned.target,
            tuple(o for o in outcomes if isinstance(o, Made)),
            (*planned.refused, *(o for o in outcomes if isinstance(o, Candidate))),
            finding,
        )

    @property
    def stopped(self) -> str:
        """Why the search ended."""
        return TIME_BUDGET if self._cut else "done"


_OVER = Refusal(code=TIME_BUDGET, text="the time budget ended")


def _lost(candidate: Candidate, racing: Sequence[Made], hard: Hard, looks: int) -> Refusal | None:
    if (loss := clearly_misses(candidate, hard, looks)) is not None:
        return Refusal(code=loss.code, text=loss.text)
    for other in racing:
        rival = other.candidate
        if rival.id != candidate.id and _is_dominated(candidate, rival, looks):
            return Refusal(code="dominated", text=f"{rival.id} is no larger and more accurate")
    return None


def _is_dominated(candidate: Candidate, other: Candidate, looks: int) -> bool:
    """Return whether ``other`` is surely better: same runtime and numbers, no larger, more right.

    Across runtimes and number formats speed may decide, which nobody has measured yet.
    """
    a, b = candidate.value("artifact_bytes"), other.value("artifact_bytes")
    alike = candidate.runtime == other.runtime and _same_work(candidate, other)
    return alike and a is not None and b is not None and b <= a and clearly_worse(
        candidate, other, looks
    )  # fmt: skip


def _same_work(candidate: Candidate, other: Candidate) -> bool:
    a, b = candidate.placement, other.placement
    return a is not None and b is not None and a == b


def misses_quality(made: Sequence[Made], hard: Hard) -> bool:
    """Return whether there are candidates, and every one of them misses a quality gate."""
    return bool(made) and all(is_bad(one, hard) for one in made)


def is_bad(made: Made, hard: Hard) -> bool:
    """Return whether a candidate misses a quality gate by what is known of it."""
    return any(
        gate.status == "fail" and gate.gate in QUALITY_GATES
        for gate in judge(made.candidate, hard, latency_known=False)
    )


def out_of_time(plan: Plan) -> Candidate:
    """Return the candidate of a plan for which there was no time."""
    return msgspec.structs.replace(
        describe(plan),
        outcome=Refusal(code=TIME_BUDGET, text="not made: the time budget of the search ended"),
    )


def with_seconds(tried: Sequence[Tried]) -> list[Tried]:
    """Return all with the time that their steps took, and shared steps told once.

    What several candidates share counts for the first of them; later ones show it as cached.
    """
    seen: set[str] = set()
    found = []
    for one in tried:
        seconds, made = 0.0, []
        for m in one.made:
            steps = []
            # What is looked at again in a later round is one step.
            for identity, step in dict(m.taken).items():
                again = identity in seen
                seen.add(identity)
                seconds += 0.0 if again else step.seconds
                steps.append(msgspec.structs.replace(step, cached=again))
            made.append(m.changed(steps=tuple(steps)))
        search = msgspec.structs.replace(one.search, seconds=seconds)
        found.append(replace(one, made=tuple(made), search=search))
    return found
