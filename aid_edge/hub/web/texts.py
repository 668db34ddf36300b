"""How figures and times read on a page."""

from __future__ import annotations

import datetime as dt
import math

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
NOTHING = "\u2013"
"""What stands where there is no figure."""

_SIGNS = {
    "ok": "●",
    "degraded": "◐",
    "late": "▲",
    "offline": "○",
    "updating": "↻",
    "failed": "✕",
    "never-seen": "◌",
}
STATUS_MEANINGS = {
    "ok": "connected and doing well",
    "degraded": "errors, an identity conflict or a roll-back",
    "late": "misses too many deadlines",
    "offline": "connection lost, or silent for three reporting intervals",
    "updating": "a change is on its way",
    "failed": "the last deployment failed or was refused",
    "never-seen": "flashed, but never connected",
}


def sign(status: str) -> str:
    """Return the shape that stands before a status, so that it never rests on color alone."""
    return _SIGNS.get(status, "·")


def duration(seconds: float | None) -> str:
    """Return a duration with three significant digits and its unit."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{_three(seconds * factor)} {unit}"
    return f"{_three(seconds * 1e6)} µs"


def count(number: int | None) -> str:
    """Return a whole number, grouped by thousands."""
    return NOTHING if number is None else f"{number:,}".replace(",", "\u202f")


def size(number: int | None) -> str:
    """Return a number of bytes in a unit of 1024."""
    if number is None:
        return NOTHING
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{_three(value)} {unit}"
        value /= 1024
    return f"{_three(value)} GiB"


def share(part: int, whole: int) -> str:
    """Return ``part`` of ``whole`` in per cent."""
    if not whole:
        return NOTHING
    value = 100 * part / whole
    return "<0.1 %" if 0 < value < 0.1 else f"{value:.1f} %"


def ago(unix_s: float | None, now_unix_s: float) -> str:
    """Return how long ago a time was."""
    if unix_s is None:
        return "never"
    seconds = now_unix_s - unix_s
    if seconds < -MINUTE_S:
        return f"in {_span(-seconds)}"
    if seconds < 10:
        return "just now"
    return f"{_span(seconds)} ago"


def moment(unix_s: float | None) -> str:
    """Return a time in full, in UTC."""
    if unix_s is None:
        return NOTHING
    try:
        at = dt.datetime.fromtimestamp(unix_s, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return NOTHING  # A device's clock may say anything.
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(unix_s: float | None) -> str:
    """Return a time for machines, or "" when there is none."""
    text = moment(unix_s)
    return "" if text == NOTHING else text.replace(" UTC", "Z").replace(" ", "T")


def short_digest(digest: str) -> str:
    """Return the first twelve hex digits of a digest."""
    return digest.removeprefix("sha256:")[:12]


def _span(seconds: float) -> str:
    for unit_s, unit in ((DAY_S, "d"), (HOUR_S, "h"), (MINUTE_S, "min")):
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    # Steps of ten seconds: a page that is open is not told every second that one has passed.
    return f"{int(seconds // 10 * 10)} s"


def _three(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")
