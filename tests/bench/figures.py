"""How a benchmark says its figures: the subject beside what it must beat, as a ratio of medians."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One comparison.

    Attributes:
        ratio: ``ours / theirs``, or None where there is nothing to compare with.
        goal: What the ratio or the figure should be, in words; empty where there is none.
        n: How many samples each side's median is of.
    """

    what: str
    ours: float
    theirs: float | None
    unit: str
    against: str = ""
    goal: str = ""
    n: int = 1

    @property
    def ratio(self) -> float | None:
        """Ours divided by theirs."""
        return self.ours / self.theirs if self.theirs else None


@dataclass
class Bench:
    """The figures of one run, printed as they come."""

    figures: list[Figure] = field(default_factory=list)

    def add(self, figure: Figure) -> None:
        """Keep a figure and print it."""
        self.figures.append(figure)
        ratio = f"{figure.ratio:8.3f}x" if figure.ratio is not None else " " * 9
        theirs = "" if figure.theirs is None else f"{figure.theirs:12.4g}"
        print(
            f"{figure.what:58.58s} {figure.ours:12.4g} {theirs:>12s} {figure.unit:8s} {ratio}  "
            f"{figure.against}{'  goal: ' + figure.goal if figure.goal else ''}  (n={figure.n})",
            flush=True,
        )

    def write(self, path: Path) -> None:
        """Write all figures with the machine they were made on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
        rows = [{**asdict(f), "ratio": f.ratio} for f in self.figures]
        path.write_text(json.dumps({"machine": machine, "figures": rows}, indent=2))


def alternate(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Return samples of both sides taken in turn, so that a noisy moment hits both."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def median(samples: Sequence[float]) -> float:
    """Return the median of ``samples``."""
    return statistics.median(samples)
