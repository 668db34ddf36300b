"""Which broker a new device shall connect to."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import httpx

from aid_edge.errors import HomeError, HubUnreachableError, UsageError
from aid_edge.home import Home
from aid_edge.identity import hub_files, read_api_token

STATE_FILE = "hub.json"
HUB_PATH = "/api/v1/hub"
TIMEOUT_S = 10.0
BROKER_FIELD = "broker_url"
MAX_ANSWER_BYTES = 64 * 1024


def broker_of(home: Home, hub: str) -> str:
    """Return the address of the broker that devices connect to.

    Args:
        home: The operator's home.
        hub: Address of a broker, which is the answer, or of a hub, which is asked; empty for the
            running hub of ``home``.

    Raises:
        UsageError: Neither, or no hub of this home runs.
        HubUnreachableError: The hub does not answer, or not with a broker's address.
        HomeError: The state of the home's hub cannot be read.
    """
    scheme = urlsplit(hub).scheme if hub else ""
    if scheme in {"mqtt", "mqtts"}:
        return hub
    if scheme in {"http", "https"}:
        return _ask(home, hub)
    if hub:
        raise UsageError(
            f"--hub {hub!r} is no address of a broker or a hub",
            hint="Such as mqtts://hub.local:8883 or https://hub.local:8480.",
        )
    return _running(home)


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
    return _field(state, str(path))


def _ask(home: Home, hub: str) -> str:
    address = f"{hub.rstrip('/')}{HUB_PATH}"
    headers = {"Authorization": f"Bearer {read_api_token(home.hub)}"}
    verify = str(hub_files(home.hub).ca)
    try:
        answer = httpx.get(address, headers=headers, verify=verify, timeout=TIMEOUT_S)
        answer.raise_for_status()
        state = answer.json()
    except (httpx.HTTPError, ValueError, OSError) as e:
        raise HubUnreachableError(f"{address}: {e}") from e
    return _field(state, address)


def _field(state: object, source: str) -> str:
    broker = state.get(BROKER_FIELD) if isinstance(state, dict) else None
    if not isinstance(broker, str) or not broker:
        raise HubUnreachableError(
            f"{source} does not say the address of a broker",
            hint="Name the broker with --hub mqtts://...",
        )
    return broker
