"""The agent's configuration: one TOML file, written by ``aid-edge flash``."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from device_agent.contract.errors import AidError
from device_agent.contract.manifest import Identifier

SCHEMA = 1


class ConfigError(AidError):
    """The agent's configuration cannot be used; names file and key."""

    code = "config"


class BrokerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the hub's broker is.

    Attributes:
        url: ``mqtts://host:port``, or ``mqtt://`` to a loopback address only.
        ca: Certificate of the authority that the broker must be signed by; relative to the home.
        certificate: The device's own certificate (mTLS).
        key: Its private key.
    """

    url: str
    ca: str = "identity/ca.pem"
    certificate: str = "identity/device.pem"
    key: str = "identity/device.key"
    keepalive_s: int = 30
    reconnect_max_s: float = 600.0


class ServingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The local inference API.

    Attributes:
        port: Loopback TCP port; 0 takes a free one, written to ``run/api.json``.
        socket: Path of the Unix socket, relative to the home.
    """

    port: int = 8470
    socket: str = "run/api.sock"
    max_request_bytes: int = 64 * 2**20
    queue_max_requests: int = 16


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds that protect the device."""

    spool_max_bytes: int = 64 * 2**20
    releases_kept: int = 3
    fetch_window_chunks: int = 16
    fetch_stall_s: float = 30.0
    state_timeout_s: float = 600.0
    worker_start_s: float = 60.0
    telemetry_interval_s: float = 10.0
    feedback_ring_predictions: int = 200


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the agent is told; paths inside are relative to the agent's home folder."""

    schema: int
    device: Identifier
    fleet: Identifier
    seed: str = ""
    director_key: str = "trust/director.json"
    tuf_root: str = "trust/root.json"
    profile: str = "profile.toml"
    broker: BrokerConfig
    serving: ServingConfig = ServingConfig()
    limits: LimitsConfig = LimitsConfig()


def read_config(path: Path) -> AgentConfig:
    """Return the configuration in the file at ``path``.

    Raises:
        ConfigError: The file is missing or not valid; says which key and what is allowed.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: is not TOML: {e}") from e
    if table.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: schema: is {table.get('schema')!r}; allowed: {SCHEMA}")
    try:
        return msgspec.convert(table, AgentConfig)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{path}: {e}") from e
