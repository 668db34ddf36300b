"""Worker processes of the host, with memory and time limits."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MEMORY_BYTES = 8 * 2**30
DEFAULT_TIME_S = 1800.0


@dataclass(frozen=True)
class Limits:
    """What a worker process may use.

    Attributes:
        memory_bytes: Resident memory of the process with its children.
        time_s: Wall time.
    """

    memory_bytes: int = DEFAULT_MEMORY_BYTES
    time_s: float = DEFAULT_TIME_S
