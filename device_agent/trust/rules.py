"""What must hold of a desired state whose signature is good (contract §8): values in, error out."""

from __future__ import annotations

from device_agent.contract.desired import Desired
from device_agent.contract.errors import ExpiredError, RollbackError, WrongDeviceError
from device_agent.trust.frames import Expected


def check_addressee(desired: Desired, expected: Expected) -> None:
    """Refuse what is signed for another device or fleet, or is older than what was accepted.

    Raises:
        WrongDeviceError: It is for another device.
        RollbackError: A higher revision has been accepted.
    """
    if (desired.fleet, desired.device) != (expected.fleet, expected.device):
        raise WrongDeviceError(
            f"desired state is for {desired.fleet}/{desired.device}; "
            f"this is {expected.fleet}/{expected.device}"
        )
    if desired.revision < expected.last_revision:
        raise RollbackError("desired revision", desired.revision, expected.last_revision)


def check_not_after(desired: Desired, *, now_unix_s: float) -> None:
    """Refuse to install from a desired state that is past its time.

    Raises:
        ExpiredError: ``now_unix_s`` is after it.
    """
    if now_unix_s > desired.not_after_unix_s:
        raise ExpiredError(
            f"desired state {desired.revision} was to be installed from until "
            f"{desired.not_after_unix_s:.0f} (Unix time); it is {now_unix_s:.0f}",
            hint="Deploy again; the hub then signs it anew.",
        )
