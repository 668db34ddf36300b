"""What the device says of itself: temperature, memory, who it is. Reads ``/sys`` and ``/proc``."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from device_agent.errors import StoreError

_THERMAL = Path("/sys/class/thermal")
_MEMINFO = Path("/proc/meminfo")
_MACHINE_ID_DIGITS = 32
_SERIALS = ("proc/device-tree/serial-number", "sys/class/dmi/id/product_uuid")
_PLAUSIBLE_C = (-60.0, 200.0)


def temperature_c(thermal: Path = _THERMAL) -> float | None:
    """Return the temperature of the hottest zone in degrees Celsius; None when none is known."""
    found = []
    for zone in sorted(thermal.glob("thermal_zone*/temp")):
        try:
            found.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    low, high = _PLAUSIBLE_C
    return max((t for t in found if low < t < high), default=None)


def memory_available_bytes(meminfo: Path = _MEMINFO) -> int:
    """Return the memory that could be had without swapping, in bytes; 0 when not known."""
    try:
        for line in meminfo.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0


def machine_id(remembered: Path, system: Path = Path("/")) -> str:
    """Return 32 hex digits that tell this machine from one with a copy of its storage.

    They are a hash of a random part in the file ``remembered``, of that file's place in its file
    system, and of a serial number of the hardware; so they are not told, they differ for two
    agents on one machine, and for a copied folder or a copied disk in another machine.

    Args:
        remembered: File with the random part; made when it is not there.
        system: Root of the system's files.

    Raises:
        StoreError: The random part can be neither read nor made.
    """
    try:
        try:
            ours = remembered.read_text().strip()
        except FileNotFoundError:
            ours = secrets.token_hex(_MACHINE_ID_DIGITS // 2)
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text(ours + "\n")
        place = remembered.stat().st_ino
    except (OSError, UnicodeDecodeError) as e:
        raise StoreError(f"{remembered}: {e}") from e
    parts = f"{ours}/{place}/{_hardware_serial(system)}"
    return hashlib.sha256(parts.encode()).hexdigest()[:_MACHINE_ID_DIGITS]


def _hardware_serial(system: Path) -> str:
    """Return the first serial number that can be read; empty when there is none."""
    cards = sorted((system / "sys/class/net").glob("*/device/../address"))
    for source in (*(system / s for s in _SERIALS), *cards):
        try:
            serial = source.read_text(errors="replace").strip("\0 \n")
        except OSError:
            continue
        if serial:
            return serial
    return ""
