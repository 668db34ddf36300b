"""The agent's home folder: where everything lies, who holds it, what it is configured as."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from device_agent.contract.agent_config import AgentConfig, read_config
from device_agent.contract.profile import HardwareProfile, read_profile
from device_agent.deployment.disk import write_whole
from device_agent.errors import AgentError, StoreError
from device_agent.mqtt import MqttSettings
from device_agent.trust.client import TrustPaths


class HomeInUseError(AgentError):
    """Another agent runs in this home folder."""

    code = "home-in-use"
    default_hint = "Stop it first, or give this one a home of its own with --home."


class ApiAddress(msgspec.Struct, frozen=True):
    """Where the local API of a running agent listens; the content of ``run/api.json``."""

    port: int
    socket: str
    pid: int


@dataclass(frozen=True)
class AgentHome:
    """One agent's home folder with its configuration and profile."""

    path: Path
    config: AgentConfig
    profile: HardwareProfile

    @property
    def state(self) -> Path:
        """What the agent remembers."""
        return self.path / "state"

    @property
    def journal(self) -> Path:
        """Where the deployment stands."""
        return self.state / "deployment.json"

    @property
    def trials(self) -> Path:
        """Trials that wait, and those that are done."""
        return self.state / "trials.json"

    @property
    def spool(self) -> Path:
        """Records that the hub has not acknowledged."""
        return self.state / "spool.sqlite"

    @property
    def desired(self) -> Path:
        """The signed desired state that was accepted last."""
        return self.state / "desired.json"

    @property
    def machine_id(self) -> Path:
        """The random part of the machine's id."""
        return self.state / "machine_id"

    @property
    def scratch(self) -> Path:
        """Where workers may write."""
        return self.path / "run" / "scratch"

    @property
    def api_file(self) -> Path:
        """Where the running agent says how it is reached."""
        return self.path / "run" / "api.json"

    @property
    def api_socket(self) -> Path:
        """The local API's Unix socket."""
        return self.path / self.config.serving.socket

    @property
    def trust(self) -> TrustPaths:
        """What this device trusts."""
        return TrustPaths.of(self.path, self.config)

    def mqtt(self) -> MqttSettings:
        """Return how to reach the broker."""
        broker = self.config.broker
        return MqttSettings(
            url=broker.url,
            client_id=self.config.device,
            ca=self.path / broker.ca,
            certificate=self.path / broker.certificate,
            key=self.path / broker.key,
            keepalive_s=broker.keepalive_s,
            reconnect_max_s=broker.reconnect_max_s,
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the home for this process alone, while the context lasts.

        Raises:
            HomeInUseError: Another agent runs in it.
            StoreError: The lock cannot be made.
        """
        path = self.state / "agent.lock"
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise StoreError(f"{path}: {e.strerror}") from e
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
                raise HomeInUseError(
                    f"an agent runs in {self.path} already" + (f" (pid {holder})" if holder else "")
                ) from e
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)

    def is_held(self) -> bool:
        """Whether an agent runs in this home."""
        try:
            lock = os.open(self.state / "agent.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def announce(self, address: ApiAddress) -> None:
        """Say where the local API listens.

        Raises:
            StoreError: It cannot be written.
        """
        write_whole(self.api_file, msgspec.json.encode(address))
        # Applications of other users read it; nothing in it is secret.
        self.api_file.chmod(0o644)

    def api_address(self) -> ApiAddress | None:
        """Return where the local API listens, or None when no agent has said so."""
        try:
            return msgspec.json.decode(self.api_file.read_bytes(), type=ApiAddress)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None


def open_home(path: Path) -> AgentHome:
    """Return the agent's home at ``path``.

    Raises:
        ConfigError: Its configuration is missing or not valid.
        ProfileError: Its hardware profile is.
    """
    where = path.expanduser().resolve()
    config = read_config(where / "config.toml")
    profile, _ = read_profile(where / config.profile)
    return AgentHome(where, config, profile)
