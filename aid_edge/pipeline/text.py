"""How figures are written for people: two to four digits, always with their unit."""

from __future__ import annotations

_KILO, _MEGA = 1e3, 1e6


def size(size_bytes: float) -> str:
    """Return a number of bytes, such as ``4.9 MB`` (powers of ten)."""
    if size_bytes >= _MEGA:
        return f"{size_bytes / _MEGA:.3g} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.3g} GB"
    if size_bytes >= _KILO:
        return f"{size_bytes / _KILO:.3g} kB"
    return f"{size_bytes:.0f} B"


def milliseconds(seconds: float) -> str:
    """Return a duration, such as ``12.3 ms``."""
    value = seconds * _KILO
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def percent(share: float) -> str:
    """Return a share, such as ``91.5 %``; never rounded up to 100."""
    rounded = f"{share * 100:.1f}"
    return "99.9 %" if rounded == "100.0" and share < 1 else f"{rounded} %"


def points(share: float) -> str:
    """Return a difference of shares in percentage points, such as ``-0.25``."""
    value = share * 100
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ratio(value: float, base: float) -> str:
    """Return how many times ``base`` a value is, such as ``0.27x``."""
    return f"{value / base:.2f}x" if base else "-"
