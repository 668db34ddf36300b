"""Opening an artifact in its runtime on the host, as the device will; for worker processes."""

from aid_edge.runtimes.opening import RUNTIMES, open_artifact, placement, version
from aid_edge.runtimes.session import Placement, Session

__all__ = ["RUNTIMES", "Placement", "Session", "open_artifact", "placement", "version"]
