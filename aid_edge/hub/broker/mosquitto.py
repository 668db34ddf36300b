"""A managed Mosquitto: TLS, a certificate for every client, and each device in its own topics."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aid_edge.catalogue.files import write_atomic
from aid_edge.errors import BrokerError
from aid_edge.hub.broker.running import Child, RunningBroker
from aid_edge.identity import HubFiles
from device_agent.contract.messages import MAX_REPLY_BYTES
from device_agent.contract.topics import DOWN, ROOT, UP

PROGRAM = "mosquitto"
SERVICE_USER = "mosquitto"
"""Whom Mosquitto becomes when it is started as root."""
HUB_USER = "hub"
"""Common name of the hub's own certificate: the only client that reaches all topics."""
MAX_INFLIGHT_MESSAGES = 200
MAX_QUEUED_MESSAGES = 10_000_000
MAX_PACKET_BYTES = MAX_REPLY_BYTES + 64 * 1024
STOP_S = 10.0
COMPLAINT_CHARACTERS = 1500
_SBIN = "/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin"
_PROCESS_FILE = "process.json"


@dataclass(frozen=True)
class MosquittoOptions:
    """Where Mosquitto listens and for whom.

    Attributes:
        folder: The hub's own folder for the broker, in the home.
        files: Authority, server certificate and key.
    """

    folder: Path
    files: HubFiles
    fleet: str
    host: str
    port: int


def find_mosquitto() -> str | None:
    """Return the path of the program, or None where it is not installed."""
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path=_SBIN)


@contextmanager
def running_mosquitto(options: MosquittoOptions) -> Iterator[RunningBroker]:
    """Run Mosquitto for as long as the ``with`` block lasts.

    Raises:
        BrokerError: It is not installed, its files cannot be written, or it does not start.
    """
    program = find_mosquitto()
    if program is None:
        raise BrokerError(
            "Mosquitto is not installed",
            hint="apt-get install mosquitto, or take another one with --broker.",
        )
    end_leftover(options.folder)
    with _data_folder(options) as (data, is_kept):
        config = write_configuration(options, data, is_kept=is_kept)

        def start() -> Child:
            return _Process(program, config, data / "mosquitto.log", options.folder)

        with RunningBroker("Mosquitto", options.host, options.port, start) as broker:
            yield broker


def acl(fleet: str) -> str:
    """Return the access rules: a device writes its own up channels and reads its own down ones."""
    up = [f"pattern write {ROOT}/{fleet}/%u/{channel.value}" for channel in UP]
    down = [f"pattern read {ROOT}/{fleet}/%u/{channel.value}" for channel in DOWN]
    return "\n".join([f"user {HUB_USER}", f"topic readwrite {ROOT}/#", *up, *down, ""])


def write_configuration(options: MosquittoOptions, data: Path, *, is_kept: bool) -> Path:
    """Write all that Mosquitto reads into ``data``, and return the configuration's path.

    Args:
        options: Where it listens, and whose certificates it shows.
        data: Folder that the user Mosquitto runs as can read and write.
        is_kept: Whether ``data`` outlives the hub; only then queue and retained messages are kept.

    Raises:
        BrokerError: A file cannot be read or written.
    """
    lines = [
        f"listener {options.port} {options.host}",
        f"cafile {data / 'ca.pem'}",
        f"certfile {data / 'server.pem'}",
        f"keyfile {data / 'server.key'}",
        "tls_version tlsv1.2",
        "require_certificate true",
        # Who a client is, its certificate says: user name and client id are its common name.
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        f"acl_file {data / 'acl'}",
        "set_tcp_nodelay true",
        # The default of 1000 drops acknowledged messages without a word. 0, for no bound, makes
        # Mosquitto 2.0 end the connection of a client that it refuses a message.
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        f"max_inflight_messages {MAX_INFLIGHT_MESSAGES}",
        f"max_packet_size {MAX_PACKET_BYTES}",
        "persistent_client_expiration 1d",
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    if is_kept:
        lines += ["persistence true", f"persistence_location {data}/", "autosave_interval 60"]
    files = options.files
    try:
        contents = {
            "ca.pem": files.ca.read_bytes(),
            "server.pem": files.certificate.read_bytes(),
            "server.key": files.key.read_bytes(),
            "acl": acl(options.fleet).encode(),
            "mosquitto.conf": "\n".join([*lines, ""]).encode(),
        }
        for name, content in contents.items():
            write_atomic(data / name, content, mode=0o600)
            _give(data / name)
    except OSError as e:
        raise BrokerError(f"{e.filename or data}: {e.strerror}") from e
    return data / "mosquitto.conf"


def end_leftover(folder: Path) -> None:
    """End a Mosquitto that a killed hub of the same home left behind."""
    path = folder / _PROCESS_FILE
    with suppress(OSError, msgspec.DecodeError):
        left = msgspec.json.decode(path.read_bytes(), type=_Left)
        words = Path(f"/proc/{left.pid}/cmdline").read_bytes().split(b"\0")
        # The pid may belong to somebody else by now; the path of our configuration cannot.
        if os.fsencode(left.config) in words:
            os.kill(left.pid, signal.SIGKILL)
    path.unlink(missing_ok=True)


class _Left(msgspec.Struct):
    pid: int
    config: str


class _Process:
    """One run of Mosquitto."""

    def __init__(self, program: str, config: Path, log: Path, folder: Path) -> None:
        self._log = log
        self._process_file = folder / _PROCESS_FILE
        try:
            with log.open("wb") as out:
                self._process = subprocess.Popen(
                    [program, "-c", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    # Ctrl-C in the terminal ends the hub, and the hub its broker, in that order.
                    start_new_session=True,
                )
            left = _Left(self._process.pid, str(config))
            write_atomic(self._process_file, msgspec.json.encode(left))
        except OSError as e:
            raise BrokerError(f"{program}: {e.strerror}") from e

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process_file.unlink(missing_ok=True)

    def complaint(self) -> str:
        try:
            return self._log.read_text(errors="replace")[-COMPLAINT_CHARACTERS:].strip()
        except OSError:
            return ""


@contextmanager
def _data_folder(options: MosquittoOptions) -> Iterator[tuple[Path, bool]]:
    """Return a folder that Mosquitto's user reaches, and whether it outlives the hub.

    Started as root, Mosquitto becomes ``SERVICE_USER``, which may not be allowed into the home. It
    then works from a temporary folder rather than as root: nothing rests on what it keeps.
    """
    kept = options.folder / "mosquitto"
    try:
        if _reaches(options.folder):
            kept.mkdir(mode=0o700, exist_ok=True)
            _give(kept)
            yield kept, True
            return
        temporary = Path(tempfile.mkdtemp(prefix="aid-edge-broker-"))
    except OSError as e:
        raise BrokerError(f"{e.filename or kept}: {e.strerror}") from e
    try:
        _give(temporary)
        yield temporary, False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _service_user() -> pwd.struct_passwd | None:
    """Return whom Mosquitto becomes, or None when it stays who we are."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None


def _give(path: Path) -> None:
    if user := _service_user():
        os.chown(path, user.pw_uid, user.pw_gid)


def _reaches(folder: Path) -> bool:
    user = _service_user()
    if user is None:
        return True
    return all(_may_pass(f.stat(), user) for f in (folder, *folder.resolve().parents))


def _may_pass(status: os.stat_result, user: pwd.struct_passwd) -> bool:
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.pw_gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
