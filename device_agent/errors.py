"""The errors of the agent; see :mod:`device_agent.contract.errors` for the root of the tree.

::

    AgentError
    ├─ TransportError             the broker cannot be reached, or the connection went away
    ├─ DownloadError              a blob or metadata file could not be fetched
    ├─ StoreError                 the agent's folders cannot be read or written
    ├─ SpoolError                 the spool of records cannot be used
    ├─ TransitionError            the deployment table has no such step
    ├─ ProvingError               a release did not prove itself on this device
    ├─ ServingError               a request to the local API cannot be answered
    └─ SandboxError               the worker process that holds a model
       ├─ WorkerCrashedError
       ├─ WorkerTimeoutError
       └─ LimitExceededError
"""

from __future__ import annotations

from device_agent.contract.errors import AidError


class AgentError(AidError):
    """A refusal or failure on the device."""

    code = "agent"


class TransportError(AgentError):
    """The broker cannot be reached, refuses, or went away."""

    code = "transport"


class DownloadError(AgentError):
    """A blob or metadata file could not be fetched whole."""

    code = "download"


class StoreError(AgentError):
    """The agent's folders cannot be read or written; what was active still is."""

    code = "store"


class SpoolError(AgentError):
    """The spool of records cannot be used."""

    code = "spool"


class TransitionError(AgentError):
    """The deployment table has no row for this state and event."""

    code = "transition"

    def __init__(self, state: str, event: str) -> None:
        super().__init__(f"no step for event {event!r} in state {state!r}")
        self.state, self.event = state, event


class ProvingError(AgentError):
    """A release did not prove itself on this device, so it does not serve."""

    code = "proving"


class ServingError(AgentError):
    """A request to the local API cannot be answered.

    Attributes:
        status: HTTP status that says so.
    """

    code = "serving"

    def __init__(self, message: str, *, status: int = 500, cause: str = "", hint: str = "") -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.status = status


class SandboxError(AgentError):
    """The worker process that holds a model could not be started or did not answer."""

    code = "sandbox"


class WorkerCrashedError(SandboxError):
    """The worker process died.

    Attributes:
        returncode: As :mod:`subprocess` has it: negative is the signal that ended it; None when
            it is not known.
    """

    code = "worker-crashed"

    def __init__(self, message: str, *, returncode: int | None = None, cause: str = "") -> None:
        super().__init__(message, cause=cause)
        self.returncode = returncode


class WorkerTimeoutError(SandboxError):
    """The worker process did not answer in time and was killed.

    Attributes:
        limit_s: The time it had, in seconds.
    """

    code = "worker-timeout"

    def __init__(self, message: str, *, limit_s: float) -> None:
        super().__init__(message)
        self.limit_s = limit_s


class LimitExceededError(SandboxError):
    """The worker process went over a limit that its release declares.

    Attributes:
        what: Such as ``memory``.
        limit: The limit, in ``unit``.
    """

    code = "limit-exceeded"

    def __init__(self, what: str, limit: float, unit: str, *, cause: str = "") -> None:
        super().__init__(f"the worker went over its limit of {limit:g} {unit} {what}", cause=cause)
        self.what, self.limit, self.unit = what, limit, unit
