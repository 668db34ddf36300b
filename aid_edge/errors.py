"""The errors of the host; see :mod:`device_agent.contract.errors` for the root of the tree."""

from __future__ import annotations

from device_agent.contract.errors import (
    EXIT_GATE_MISSED,
    EXIT_TOOLCHAIN_MISSING,
    EXIT_USAGE,
    AidError,
)


class HostError(AidError):
    """A refusal or failure on the host."""


class UsageError(HostError):
    """What the user asked for cannot be meant: a wrong name, path or combination."""

    code = "usage"
    exit_code = EXIT_USAGE


class HomeError(HostError):
    """The home folder with keys and catalogue is missing or not usable."""

    code = "home"
    default_hint = "Make one with `aid-edge init`, or name it with --home or AID_EDGE_HOME."


class MissingDependencyError(HostError):
    """An optional part is not installed; the hint is the command that installs it."""

    code = "missing-dependency"
    exit_code = EXIT_TOOLCHAIN_MISSING

    def __init__(self, what: str, module: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {module}, which is not installed",
            hint=f"pip install 'aid-edge[{extra}]'",
        )
        self.module, self.extra = module, extra


class UnknownRuntimeError(HostError):
    """No converter of this name is installed."""

    code = "unknown-runtime"
    exit_code = EXIT_USAGE

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(
            f"no converter for runtime {name!r}", hint=f"Installed: {', '.join(known) or 'none'}."
        )
        self.name, self.known = name, known


class SourceError(HostError):
    """The source model or its weights cannot be read."""

    code = "source"


class DataError(HostError):
    """Calibration or evaluation data is missing, empty or does not fit the model."""

    code = "data"


class UnsupportedModelError(HostError):
    """The profile or runtime cannot take this model; said before any work is done.

    Attributes:
        reasons: One line per refusal: operator, node, rule, way out.
    """

    code = "unsupported-model"

    def __init__(self, message: str, reasons: list[str], *, hint: str = "") -> None:
        super().__init__(message, cause="; ".join(reasons), hint=hint)
        self.reasons = reasons


class ConversionError(HostError):
    """A converter failed, or what it made is not what it should be."""

    code = "conversion"


class StepCrashedError(ConversionError):
    """A worker process of the host died, ran out of memory or out of time."""

    code = "step-crashed"


class GateMissedError(HostError):
    """No candidate passed the profile's hard constraints."""

    code = "gate-missed"
    exit_code = EXIT_GATE_MISSED


class PublishError(HostError):
    """A release could not be published; the catalogue is as it was."""

    code = "publish"


class HubError(HostError):
    """The hub could not do what was asked."""

    code = "hub"


class HubUnreachableError(HubError):
    """No hub answers at the address."""

    code = "hub-unreachable"
    default_hint = "Start it with `aid-edge hub serve`, or name it with --hub."


class BrokerError(HubError):
    """The broker could not be started or reached."""

    code = "broker"


class FlashError(HostError):
    """A device bundle could not be made."""

    code = "flash"


_MAX_LINE_CHARS = 300


def first_line(error: BaseException) -> str:
    """Return the first line of what a foreign library says, bounded; else the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:_MAX_LINE_CHARS] if lines else type(error).__name__
