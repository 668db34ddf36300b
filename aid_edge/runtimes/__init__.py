"""Opening an artifact in its runtime on the host, as the device will; for worker processes."""

from aid_edge.runtimes.opening import RUNTIMES, inspect, open_artifact, placement, version
from aid_edge.runtimes.session import Inspection, Placement, Session

__all__ = [
    "RUNTIMES",
    "Inspection",
    "Placement",
    "Session",
    "inspect",
    "open_artifact",
    "placement",
    "version",
]
