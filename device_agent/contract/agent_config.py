"""The agent's configuration: one TOML file, written by ``aid-edge flash``."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from device_agent.contract.errors import AidError
from device_agent.contract.manifest import Identifier, Positive
from device_agent.contract.problems import Problem, problems_of

SCHEMA = 1
MAX_CONFIG_BYTES = 64 * 1024

Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


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
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    reconnect_max_s: Seconds = 600.0


class ServingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The local inference API.

    Attributes:
        port: Loopback TCP port; 0 takes a free one, written to ``run/api.json``.
        socket: Path of the Unix socket, relative to the home.
    """

    port: Port = 8470
    socket: str = "run/api.sock"
    max_request_bytes: Positive = 64 * 2**20
    queue_max_requests: Positive = 16


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds that protect the device."""

    spool_max_bytes: Positive = 64 * 2**20
    releases_kept: Positive = 3
    fetch_window_chunks: Positive = 16
    fetch_stall_s: Seconds = 30.0
    state_timeout_s: Seconds = 600.0
    worker_start_s: Seconds = 60.0
    telemetry_interval_s: Seconds = 10.0
    feedback_ring_predictions: Positive = 200


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
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_CONFIG_BYTES} bytes")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{path}: is not TOML: {e}") from e
    if table.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: schema: is {table.get('schema')!r}; allowed: {SCHEMA}")
    try:
        config = msgspec.convert(table, AgentConfig)
    except msgspec.ValidationError as e:
        problems = problems_of(table, AgentConfig) or [Problem("", str(e))]
        raise ConfigError(f"{path}: {problems[0].key}: {problems[0].problem}") from e
    _check_broker_url(path, config.broker.url)
    return config


def _check_broker_url(path: Path, url: str) -> None:
    """Refuse what the transport cannot use, or would use without TLS (contract §8.3)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as e:
        raise ConfigError(f"{path}: broker.url: {url!r}: {e}") from e
    if parts.scheme not in {"mqtt", "mqtts"} or not host or port is None or parts.path:
        raise ConfigError(
            f"{path}: broker.url: {url!r} is not an address; allowed: mqtts://HOST:PORT"
        )
    if parts.username or parts.password:
        raise ConfigError(f"{path}: broker.url: a device proves itself by certificate, not by name")
    if parts.scheme == "mqtt" and not _is_loopback(host):
        raise ConfigError(
            f"{path}: broker.url: {url!r} has no TLS; allowed: mqtts://HOST:PORT, or mqtt:// to "
            "a loopback address"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
