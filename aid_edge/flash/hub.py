"""Which broker a new device shall connect to."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from aid_edge.errors import HomeError, UsageError
from aid_edge.home import Home

STATE_FILE = "hub.json"
BROKER_FIELD = "broker_url"


def broker_of(home: Home, hub: str) -> str:
    """Return the address of the broker that devices connect to.

    Args:
        home: The operator's home.
        hub: Address of a broker, which is the answer; empty for that of the home's running hub.

    Raises:
        UsageError: It is no address of a broker, or no hub of this home runs.
        HomeError: The state of the home's hub cannot be read.
    """
    if not hub:
        return _running(home)
    if urlsplit(hub).scheme not in {"mqtt", "mqtts"}:
        raise UsageError(
            f"--hub {hub!r} is not the address of a broker",
            hint="Such as mqtts://hub.local:8883; leave it out for the running hub of this home.",
        )
    return hub


def _running(home: Home) -> str:
    path = home.hub / STATE_FILE
    try:
        state = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise UsageError(
            "it is not known which broker the device shall connect to",
            hint="Start the hub (`aid-edge hub serve`) or name the broker with --hub mqtts://...",
        ) from e
    except (OSError, ValueError) as e:
        raise HomeError(f"{path}: cannot be read: {e}") from e
    broker = state.get(BROKER_FIELD) if isinstance(state, dict) else None
    if not isinstance(broker, str) or not broker:
        raise HomeError(
            f"{path} does not say the address of a broker",
            hint="Name the broker with --hub mqtts://...",
        )
    return broker
