"""The supervisor's side of trust: starts the step, brings it metadata, hears its verdict.

Imports neither python-tuf nor cryptography.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from device_agent.contract.agent_config import AgentConfig
from device_agent.contract.errors import ContractError, UnverifiableError
from device_agent.contract.trust import TIMESTAMP_FILE
from device_agent.trust.frames import (
    Expected,
    FromStep,
    MetadataAnswer,
    NeedMetadata,
    PipeClosedError,
    Pipes,
    PipeTimeoutError,
    Task,
    VerifiedDesired,
    error_of,
)

FetchMetadata = Callable[[str, int], bytes | None]
"""``fetch_metadata(name, max_bytes)``: the file's bytes, or None for an explicit "not found"."""

TIMEOUT_S = 120.0
MAX_EXCHANGES = 512
"""Metadata files that one verification may ask for; a root walk has at most 256."""

_DIAGNOSIS_BYTES = 2000
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class TrustPaths:
    """Where a device keeps what it trusts.

    Attributes:
        root: TUF root metadata that it was flashed with.
        director_key: The director's public key document.
        metadata: Folder of the TUF metadata that it has verified; made on first use.
    """

    root: Path
    director_key: Path
    metadata: Path

    @classmethod
    def of(cls, home: Path, config: AgentConfig) -> TrustPaths:
        """Return the paths in an agent's home folder."""
        return cls(home / config.tuf_root, home / config.director_key, home / "state" / "tuf")


def verify(
    envelope: bytes,
    expected: Expected,
    paths: TrustPaths,
    fetch_metadata: FetchMetadata,
    *,
    now_unix_s: float,
    timeout_s: float = TIMEOUT_S,
) -> VerifiedDesired:
    """Verify a signed desired state in a child process and return it with its releases.

    Args:
        envelope: Bytes of the DSSE envelope, as they came.
        expected: What this device is, and the highest revision that it has accepted.
        paths: Where it keeps what it trusts.
        fetch_metadata: Brings a TUF metadata file. What it raises ends the verification and is
            raised on.
        now_unix_s: The wall clock; the clock floor is taken where that is later.
        timeout_s: For the whole verification with its fetches.

    Raises:
        SignatureError: A signature is wrong.
        ExpiredError: It, or metadata, is past its time.
        RollbackError: It, or metadata, is older than what was accepted before.
        WrongDeviceError: It is for another device, or names a release for another profile.
        DigestMismatchError: It names other bytes than the publisher signed.
        UnverifiableError: It could not be checked: a missing file, an unknown key, no answer in
            time, or the step died. Trying again can help.
        TrustError: It must not be carried out for another reason; the above are kinds of it.
        ContractError: It is not a desired state.
        StoreError: The device's own folder cannot be read or written.
    """
    task = Task(
        envelope=envelope,
        expected=expected,
        root=_read(paths.root),
        director_key=_read(paths.director_key),
        metadata_folder=str(paths.metadata.absolute()),
        now_unix_s=now_unix_s,
    )
    with tempfile.TemporaryFile() as diagnosis:
        step = _start(diagnosis)
        try:
            return _converse(step, task, fetch_metadata, timeout_s)
        except PipeTimeoutError as e:
            raise UnverifiableError(f"verification took longer than {timeout_s:g} s") from e
        except PipeClosedError as e:
            code = step.wait()
            raise UnverifiableError(
                f"the trust step died (exit code {code})", cause=_last_line(diagnosis)
            ) from e
        finally:
            _end(step)


def stored_metadata(paths: TrustPaths) -> FetchMetadata:
    """Return a source of the metadata that was verified before, for checking without a hub.

    With it and ``now_unix_s=0``, :func:`verify` says whether what a device runs is still what was
    signed, whatever has expired since: running does not depend on expiry.
    """

    def fetch(name: str, max_bytes: int) -> bytes | None:
        version, _, role = name.partition(".")
        path = paths.metadata / (name if name == TIMESTAMP_FILE else role)
        if not (name == TIMESTAMP_FILE or version.isdecimal()) or role == "root.json":
            return None
        try:
            with path.open("rb") as file:
                return file.read(max_bytes)
        except OSError:
            return None

    return fetch


def _converse(
    step: subprocess.Popen[bytes], task: Task, fetch_metadata: FetchMetadata, timeout_s: float
) -> VerifiedDesired:
    if step.stdin is None or step.stdout is None:
        raise UnverifiableError("the trust step has no pipes")
    pipes = Pipes(
        step.stdout.fileno(), step.stdin.fileno(), deadline_s=time.monotonic() + timeout_s
    )
    pipes.send(task)
    for _ in range(MAX_EXCHANGES):
        try:
            message: FromStep = pipes.receive(FromStep)  # type: ignore[arg-type]
        except ContractError as e:
            raise UnverifiableError(f"the trust step answers nonsense: {e}") from e
        if isinstance(message, VerifiedDesired):
            return message
        if not isinstance(message, NeedMetadata):
            raise error_of(message)
        data = fetch_metadata(message.name, message.max_bytes)
        if data is not None and len(data) > message.max_bytes:
            raise UnverifiableError(
                f"{message.name} has {len(data)} bytes; at most {message.max_bytes} are allowed"
            )
        pipes.send(MetadataAnswer(data=data))
    raise UnverifiableError(f"the trust step asked for more than {MAX_EXCHANGES} files")


def _start(diagnosis: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            # -P: what lies in the working directory is not imported.
            [sys.executable, "-P", "-s", "-m", "device_agent.trust.step"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=diagnosis,
            bufsize=0,
            env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            cwd="/",
            # Ctrl-C is for the supervisor; the step ends with its pipes.
            start_new_session=True,
        )
    except OSError as e:
        raise UnverifiableError(f"the trust step cannot be started: {e}") from e


def _end(step: subprocess.Popen[bytes]) -> None:
    step.kill()
    step.wait()
    for pipe in (step.stdin, step.stdout):
        if pipe is not None:
            pipe.close()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UnverifiableError(
            f"{path}: cannot be read: {e.strerror}", hint="Flash the device again."
        ) from e


def _last_line(diagnosis: IO[bytes]) -> str:
    size = diagnosis.seek(0, os.SEEK_END)
    diagnosis.seek(max(0, size - _DIAGNOSIS_BYTES))
    lines = diagnosis.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
