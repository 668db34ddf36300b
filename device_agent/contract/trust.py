"""Names in TUF metadata that publisher and device agree on (contract §8)."""

from __future__ import annotations

from device_agent.contract.errors import MalformedMessageError
from device_agent.contract.names import check_identifier, check_version

TIMESTAMP_FILE = "timestamp.json"

COUNTER_FIELD = "counter"
"""In a target's ``custom``: the release counter that its manifest has."""

SIGNED_AT_FIELD = "x-aid-edge-signed-at-unix-s"
"""In signed root and timestamp metadata: when it was signed, in whole seconds since 1970. A device
takes the newest it has verified as the floor of its clock."""


_PARTS = 4


def target_path(name: str, profile: str, version: str) -> str:
    """Return the TUF target path of a release; its content is the OCI image manifest.

    Raises:
        MalformedMessageError: A part is not a valid identifier or version (contract §5.3).
    """
    check_identifier("release", name)
    check_identifier("profile", profile)
    return f"releases/{name}/{profile}/{check_version(version)}.json"


def parse_target_path(path: str) -> tuple[str, str, str] | None:
    """Return name, profile and version of a release's target path, or None for another target."""
    parts = path.split("/")
    if len(parts) != _PARTS or parts[0] != "releases" or not parts[3].endswith(".json"):
        return None
    _, name, profile, file = parts
    try:
        target_path(name, profile, version := file.removesuffix(".json"))
    except MalformedMessageError:
        return None
    return name, profile, version
