"""Asking a running hub over its HTTP API."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import click
import httpx
import msgspec

from aid_edge.errors import HubError, HubUnreachableError, UsageError
from aid_edge.home import Home, open_home
from aid_edge.hub.errors import (
    NotFoundError,
    RefusedError,
    TooManyFailuresError,
    UnauthorizedError,
)
from aid_edge.hub.progress import Progress, progress_of
from aid_edge.hub.rows import DeviceDetail, DevicePage, DeviceSummary, FeedbackPage
from aid_edge.hub.trials import Asked, TrialRow
from aid_edge.identity import hub_files, read_api_token

_T = TypeVar("_T")
TIMEOUT_S = 30.0
PAGE = 200
POLL_S = 0.3
SCHEMES = ("http://", "https://")
_ERRORS: dict[str, type[HubError | UsageError]] = {
    e.code: e
    for e in (NotFoundError, RefusedError, UnauthorizedError, TooManyFailuresError, UsageError)
}

hub_option = click.option(
    "--hub", metavar="URL", default=None, help="Address of the hub.  [default: this home's]"
)


class Target(msgspec.Struct, frozen=True):
    """What one device was told: as the API's assignments say it."""

    device: str
    release: str
    revision: int
    before: str


class Deployed(msgspec.Struct, frozen=True):
    """The API's answer to a deployment."""

    action: str
    dry_run: bool
    assignments: tuple[Target, ...]


class Problem(msgspec.Struct, frozen=True):
    """The API's answer to what it refused."""

    code: str
    message: str
    cause: str = ""
    hint: str = ""


class HubClient:
    """A hub's API, with the administrator's token."""

    def __init__(self, url: str, client: httpx.Client) -> None:
        self.url = url
        self._client = client

    @classmethod
    @contextmanager
    def open(cls, home: Path | None, hub: str | None) -> Iterator[HubClient]:
        """Return the client of the hub of ``home``, or of the one at the address ``hub``.

        Raises:
            HomeError: There is no such home, or no token in it.
            HubUnreachableError: No hub of this home runs.
            UsageError: ``hub`` is not an address.
        """
        where = open_home(home)
        url = (hub or running_url(where)).rstrip("/")
        if not url.startswith(SCHEMES):
            raise UsageError(f"{url!r} is not the address of a hub", hint="http://host:port")
        verify: ssl.SSLContext | bool = False
        if url.startswith("https://"):
            verify = ssl.create_default_context(cafile=str(hub_files(where.hub).ca))
        headers = {"Authorization": f"Bearer {read_api_token(where.hub)}"}
        # A proxy of the environment has no business between an operator and the hub.
        with httpx.Client(
            base_url=url, headers=headers, timeout=TIMEOUT_S, verify=verify, trust_env=False
        ) as client:
            yield cls(url, client)

    def health(self) -> dict[str, Any]:
        """Return how the hub is; that it is unwell is no error here.

        Raises:
            HubError: It cannot be asked.
        """
        return self._decoded(self._send("GET", "health", allowed=(503,)), dict[str, Any])

    def devices(
        self, *, status: Sequence[str] = (), release: str = "", text: str = ""
    ) -> Iterator[DeviceSummary]:
        """Return devices in the order of their ids, a page at a time.

        Raises:
            HubError: The hub refuses, or cannot be asked.
        """
        after: str | None = ""
        while after is not None:
            query = {"status": list(status), "release": release, "text": text}
            data = self._send("GET", "devices", {**query, "after": after, "limit": PAGE})
            page = self._decoded(data, DevicePage)
            yield from page.devices
            after = page.next

    def device(self, device: str) -> DeviceDetail:
        """Return everything about ``device``.

        Raises:
            NotFoundError: There is no such device.
            HubError: The hub cannot be asked.
        """
        return self._decoded(self._send("GET", f"devices/{quote(device, safe='')}"), DeviceDetail)

    def feedback(self, *, device: str, verdict: str, limit: int) -> FeedbackPage:
        """Return the newest feedback.

        Raises:
            HubError: The hub refuses, or cannot be asked.
        """
        query = {"device": device, "verdict": verdict, "limit": limit}
        return self._decoded(self._send("GET", "feedback", query), FeedbackPage)

    def deploy(
        self,
        action: Literal["deploy", "rollback"],
        devices: Sequence[str],
        *,
        release: tuple[str, str] | None = None,
        dry_run: bool = False,
    ) -> Deployed:
        """Make ``devices``, or all of them when there is none, run a release.

        Args:
            action: ``deploy`` or ``rollback``.
            devices: Ids; empty for the whole fleet.
            release: Name and version, for ``deploy``.
            dry_run: Only say what would be.

        Raises:
            NotFoundError: A device or the release is not known.
            RefusedError: It cannot be done for a device.
            HubError: The hub cannot be asked.
        """
        body: dict[str, Any] = {"action": action, "devices": list(devices), "dry_run": dry_run}
        if not devices:
            body["all_devices"] = True
        if release is not None:
            body["name"], body["version"] = release
        return self._decoded(self._send("POST", "deployments", body=body), Deployed)

    def try_out(
        self, device: str, releases: Sequence[tuple[str, str]], *, runs: int, warmup: int
    ) -> tuple[TrialRow, ...]:
        """Ask ``device`` to measure releases, given by name and version.

        Raises:
            NotFoundError: The device or a release for its profile is not known.
            RefusedError: It has too many trials to do already.
            HubError: The hub cannot be asked.
        """
        named = [{"name": name, "version": version} for name, version in releases]
        body = {"releases": named, "runs": runs, "warmup": warmup}
        return self._decoded(self._send("POST", _trials(device), body=body), Asked).trials

    def trials(self, device: str) -> tuple[TrialRow, ...]:
        """Return the trials that ``device`` was asked for, newest first.

        Raises:
            HubError: The hub cannot be asked.
        """
        return self._decoded(self._send("GET", _trials(device)), Asked).trials

    def withdraw(self, device: str, ids: Sequence[str]) -> None:
        """Ask ``device`` no more for these trials.

        Raises:
            HubError: The hub cannot be asked.
        """
        self._send("POST", f"{_trials(device)}/withdrawals", body={"trials": list(ids)})

    def follow(self, targets: Sequence[Target], timeout_s: float) -> Iterator[Progress]:
        """Return every change of a device's progress, until all are done, failed or out of time.

        Raises:
            HubError: The hub cannot be asked.
        """
        wanted = {t.device: t for t in targets}
        last: dict[str, Progress] = {}
        deadline = time.monotonic() + timeout_s
        while wanted:
            for summary in self._summaries(wanted):
                target = wanted[summary.device]
                now = progress_of(summary, target.release, target.revision)
                if last.get(now.device) != now:
                    last[now.device] = now
                    yield now
                if now.outcome != "waiting":
                    del wanted[now.device]
            if wanted and time.monotonic() > deadline:
                return
            if wanted:
                time.sleep(POLL_S)

    def _decoded(self, data: bytes, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise HubError(
                f"the hub at {self.url} answers in a form that is not known here",
                cause=str(e),
                hint="Is it of another version? Use the same one for hub and command line.",
            ) from e

    def _summaries(self, wanted: dict[str, Target]) -> list[DeviceSummary]:
        if len(wanted) > 1:
            return [s for s in self.devices() if s.device in wanted]
        return [self.device(device).summary for device in wanted]

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        *,
        body: dict[str, Any] | None = None,
        allowed: tuple[int, ...] = (),
    ) -> bytes:
        try:
            response = self._client.request(method, f"/api/v1/{path}", params=query, json=body)
        except (httpx.TransportError, httpx.InvalidURL) as e:
            raise HubUnreachableError(f"no hub answers at {self.url}", cause=str(e)) from e
        if response.is_success or response.status_code in allowed:
            return response.content
        try:
            problem = msgspec.json.decode(response.content, type=Problem)
        except msgspec.DecodeError as e:
            raise HubUnreachableError(
                f"what answers at {self.url} is not a hub (HTTP {response.status_code})"
            ) from e
        kind = _ERRORS.get(problem.code, HubError)
        raise kind(problem.message, cause=problem.cause, hint=problem.hint)


def _trials(device: str) -> str:
    return f"devices/{quote(device, safe='')}/trials"


def running_url(home: Home) -> str:
    """Return the address of the hub that runs for ``home``.

    Raises:
        HubUnreachableError: None does.
    """

    class _State(msgspec.Struct):
        url: str

    try:
        return msgspec.json.decode((home.hub / "hub.json").read_bytes(), type=_State).url
    except (OSError, msgspec.DecodeError) as e:
        raise HubUnreachableError(f"no hub of {home.path} runs") from e
