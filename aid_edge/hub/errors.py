"""What the hub refuses, beside :mod:`aid_edge.errors`."""

from __future__ import annotations

from aid_edge.errors import HubError
from device_agent.contract.errors import EXIT_TRUST, EXIT_USAGE


class NotFoundError(HubError):
    """There is no device or release of this name."""

    code = "not-found"
    exit_code = EXIT_USAGE


class RefusedError(HubError):
    """The hub will not do this, and nothing was changed."""

    code = "refused"


class UnauthorizedError(HubError):
    """A token is missing or wrong."""

    code = "unauthorized"
    exit_code = EXIT_TRUST
    default_hint = "The administrator's token lies in the hub's folder of the home."


class TooManyFailuresError(HubError):
    """Too many wrong tokens came from this address."""

    code = "too-many-failures"
    exit_code = EXIT_TRUST
    default_hint = "Wait a minute."
