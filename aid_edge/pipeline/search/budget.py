"""How long a search may take."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from aid_edge.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smh])")
MAX_BUDGET_S = 7 * 24 * 3600.0


def parse_duration(text: str) -> float:
    """Return the seconds that ``text`` names, such as ``90s``, ``10m`` or ``1.5h``.

    Raises:
        UsageError: It has no unit of ``s``, ``m`` and ``h``, is zero, or is over a week.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_BUDGET_S:
        raise UsageError(
            f"{text!r} is no time that a search can take",
            hint="Give a number over 0 with s, m or h, such as 10m; at most 168h.",
        )
    return seconds


@dataclass(frozen=True)
class Budget:
    """When the search has to end.

    Attributes:
        deadline_s: As ``time.monotonic`` counts; None means there is no hurry.
    """

    deadline_s: float | None = None

    @classmethod
    def starting_now(cls, seconds: float | None) -> Budget:
        """Return the budget of a search that begins now."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.deadline_s is not None and time.monotonic() >= self.deadline_s
