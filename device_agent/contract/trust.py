"""Names in TUF metadata that publisher and device agree on (contract §8)."""

from __future__ import annotations

TIMESTAMP_FILE = "timestamp.json"

COUNTER_FIELD = "counter"
"""In a target's ``custom``: the release counter that its manifest has."""

SIGNED_AT_FIELD = "x-aid-edge-signed-at-unix-s"
"""In signed root and timestamp metadata: when it was signed, in whole seconds since 1970. A device
takes the newest it has verified as the floor of its clock."""


def target_path(name: str, profile: str, version: str) -> str:
    """Return the TUF target path of a release; its content is the OCI image manifest."""
    return f"releases/{name}/{profile}/{version}.json"


def parse_target_path(path: str) -> tuple[str, str, str] | None:
    """Return name, profile and version of a release's target path, or None for another target."""
    parts = path.split("/")
    if len(parts) != 4 or parts[0] != "releases" or not parts[3].endswith(".json"):
        return None
    return parts[1], parts[2], parts[3].removesuffix(".json")
