"""What stands in an agent's home, looked at from outside: for ``status`` and ``verify``."""

from __future__ import annotations

import json
import socket
from typing import Any

from device_agent.agent.core import STATUS_SCHEMA, agent_version
from device_agent.agent.home import AgentHome
from device_agent.contract.errors import AidError, ContractError, TrustError
from device_agent.contract.messages import ReleaseRef
from device_agent.deployment.journal import JournalFile
from device_agent.deployment.release import reference_of, verify_release
from device_agent.deployment.slots import Slots
from device_agent.errors import AgentError, StoreError
from device_agent.trust.client import stored_metadata, verify
from device_agent.trust.frames import Expected

VERIFY_SCHEMA = "aid-edge/agent-verify/v1"
ANSWER_S = 10.0
MAX_ANSWER_BYTES = 2**20
_HEAD_END = b"\r\n\r\n"


class UnreachableError(AgentError):
    """The agent runs but does not answer."""

    code = "agent-unreachable"
    default_hint = "Look into its log."


class AlteredError(TrustError):
    """Something on this disk is not what was signed.

    Attributes:
        result: Everything that was found, as :func:`verify_home` returns it when all is well.
    """

    code = "altered"
    default_hint = "The agent refuses what was altered, and fetches it anew once the hub is there."

    def __init__(self, message: str, *, cause: str, result: dict[str, Any]) -> None:
        super().__init__(message, cause=cause)
        self.result = result


def status_of(home: AgentHome) -> dict[str, Any]:
    """Return what the running agent says of itself, or what it left behind.

    Raises:
        UnreachableError: It runs, but does not answer.
        StoreError: What it left behind cannot be read.
    """
    if home.is_held():
        return _ask(home)
    journal = JournalFile(home.journal).load()
    slots = Slots(home.path)
    return {
        "schema": STATUS_SCHEMA,
        "running": False,
        "device": home.config.device,
        "fleet": home.config.fleet,
        "profile": home.profile.id,
        "version": agent_version(),
        "broker": home.config.broker.url,
        "revision": journal.revision,
        "state": journal.state.value,
        "reason": journal.reason,
        "active": slots.active,
        "previous": slots.previous,
        "installed": slots.installed(),
    }


def _ask(home: AgentHome) -> dict[str, Any]:
    address = home.api_address()
    if address is None:
        raise UnreachableError(f"the agent in {home.path} has not said where its API is")
    request = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(address.socket)
            connection.sendall(request)
            while len(answer) < MAX_ANSWER_BYTES and (piece := connection.recv(65536)):
                answer += piece
        head, _, body = answer.partition(_HEAD_END)
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise UnreachableError(f"the agent answered {head[:80].decode(errors='replace')!r}")
        found: dict[str, Any] = json.loads(body)
    except (OSError, ValueError) as e:
        raise UnreachableError(f"the agent in {home.path} does not answer: {e}") from e
    return found


def verify_home(home: AgentHome) -> dict[str, Any]:
    """Return what was verified: every byte of every release, the slots, and the signatures.

    Raises:
        AlteredError: Something is not what was signed; its ``result`` says what.
        StoreError: The home cannot be read.
    """
    slots = Slots(home.path)
    releases = [_check(slots, digest) for digest in slots.installed()]
    good = {r["digest"] for r in releases if r["ok"]}
    problems = [f"{r['name']}: {r['problem']}" for r in releases if not r["ok"]]
    for name, digest in (("active", slots.active), ("previous", slots.previous)):
        if digest is not None and digest not in good and not slots.has(digest):
            problems.append(f"slot {name} names {digest}, which is not installed")
    signed, problem = _check_signatures(home, slots.active)
    problems += [problem] if problem else []
    result = {
        "schema": VERIFY_SCHEMA,
        "device": home.config.device,
        "ok": not problems,
        "active": slots.active,
        "previous": slots.previous,
        "signed": signed,
        "releases": releases,
        "problems": problems,
    }
    if problems:
        raise AlteredError(problems[0], cause="; ".join(problems[1:]), result=result)
    return result


def _check(slots: Slots, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = {"digest": digest, "name": digest, "ok": True, "problem": ""}
    try:
        manifest = verify_release(slots.folder(digest), digest)
    except (TrustError, ContractError, StoreError) as e:
        return found | {"ok": False, "problem": str(e)}
    release: ReleaseRef = reference_of(manifest, digest)
    return found | {"name": f"{release.name}@{release.version}"}


def _check_signatures(home: AgentHome, active: str | None) -> tuple[bool, str]:
    """Return whether the director's and publisher's signatures stand for what is active.

    False without a problem means that nothing signed is at hand to hold it against, as after a
    desired state that failed.
    """
    try:
        envelope = home.desired.read_bytes()
    except FileNotFoundError:
        return False, ""
    except OSError as e:
        raise StoreError(f"{home.desired}: {e.strerror}") from e
    config = home.config
    expected = Expected(
        fleet=config.fleet, device=config.device, profile=home.profile.id, last_revision=0
    )
    try:
        # At time zero: running does not depend on what has expired since.
        paths = home.trust
        verified = verify(envelope, expected, paths, stored_metadata(paths), now_unix_s=0.0)
    except AidError as e:
        return False, f"the desired state: {e}"
    return any(r.digest == active for r in verified.releases), ""
