"""How figures are written for people: two to four digits, always with their unit."""

from __future__ import annotations

from device_agent.contract.manifest import Measurement

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


def duration(seconds: float) -> str:
    """Return a span of time, such as ``12.3 s`` or ``4 min 10 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def number(value: float) -> str:
    """Return a plain figure with four digits, such as ``0.9134`` or ``12.5``."""
    return f"{value:.4g}"


def with_unit(figure: Measurement) -> str:
    """Return a measurement with its unit, such as ``4.9 MB``, ``12.3 ms`` or ``5.2e+06 cycles``."""
    match figure.unit:
        case "B":
            return size(figure.value)
        case "s":
            return milliseconds(figure.value)
        case "share":
            return percent(figure.value)
    return f"{number(figure.value)} {figure.unit}".rstrip()
