"""The hub's HTTP API, described in OpenAPI at ``/api/v1/openapi.json``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from aid_edge.errors import BrokerError, HubError, UsageError
from aid_edge.hub import metrics
from aid_edge.hub.auth import ADMINISTRATOR
from aid_edge.hub.director import Assignment
from aid_edge.hub.errors import (
    NotFoundError,
    RefusedError,
    TooManyFailuresError,
    UnauthorizedError,
)
from aid_edge.hub.queries import DEFAULT_PAGE, MAX_PAGE
from aid_edge.hub.rows import (
    STATUSES,
    DeviceDetail,
    DeviceFilter,
    DevicePage,
    FeedbackPage,
    ReleaseRow,
    Status,
)
from aid_edge.hub.services import Services
from aid_edge.hub.trials import Asked
from device_agent.contract.desired import MAX_TRIALS
from device_agent.contract.errors import AidError, ContractError
from device_agent.contract.messages import MAX_TRIAL_RUNS
from device_agent.contract.names import IDENTIFIER_PATTERN, VERSION_PATTERN

PREFIX = "/api/v1"
MAX_TARGETS = 100_000
MAX_BODY_BYTES = 8 * 2**20
_COMPONENTS = "#/components/schemas/{name}"
_HTTP_STATUS: tuple[tuple[type[AidError], HTTPStatus], ...] = (
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (RefusedError, HTTPStatus.CONFLICT),
    (UnauthorizedError, HTTPStatus.UNAUTHORIZED),
    (TooManyFailuresError, HTTPStatus.TOO_MANY_REQUESTS),
    (UsageError, HTTPStatus.BAD_REQUEST),
    (ContractError, HTTPStatus.BAD_REQUEST),
    (BrokerError, HTTPStatus.SERVICE_UNAVAILABLE),
    (HubError, HTTPStatus.INTERNAL_SERVER_ERROR),
)


class Problem(msgspec.Struct, frozen=True):
    """What went wrong: stable code, what happened, why where that is known, and what to do."""

    code: str
    message: str
    cause: str = ""
    hint: str = ""


class Releases(msgspec.Struct, frozen=True):
    """All published releases."""

    releases: tuple[ReleaseRow, ...]


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What was told to which devices; nothing was, when ``dry_run``."""

    action: Literal["deploy", "rollback"]
    dry_run: bool
    assignments: tuple[Assignment, ...]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How the hub is; ``problems`` is empty when all is well."""

    status: Literal["ok", "degraded"]
    problems: tuple[str, ...]
    fleet: str
    version: str
    broker: str
    connected: bool
    devices: dict[str, int]
    backlog: int


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_DeviceId = Annotated[str, Field(pattern=IDENTIFIER_PATTERN.replace(r"\Z", "$"), max_length=63)]


class DeploymentBody(_Body):
    """Which devices should run what.

    ``devices`` or ``all_devices``. ``deploy`` needs ``name`` and ``version``; ``rollback`` neither.
    """

    action: Literal["deploy", "rollback"]
    name: Annotated[str, Field(pattern=IDENTIFIER_PATTERN.replace(r"\Z", "$"))] | None = None
    version: Annotated[str, Field(pattern=VERSION_PATTERN.replace(r"\Z", "$"))] | None = None
    devices: Annotated[list[_DeviceId], Field(max_length=MAX_TARGETS)] = []
    all_devices: bool = False
    dry_run: bool = False

    @model_validator(mode="after")
    def _check(self) -> DeploymentBody:
        if bool(self.devices) == self.all_devices:
            raise ValueError("say either devices or all_devices")
        named = [part is not None for part in (self.name, self.version)]
        if named != [self.action == "deploy"] * 2:
            raise ValueError("deploy needs name and version, and rollback takes neither")
        return self


class NamedRelease(_Body):
    """A release by name and version."""

    name: Annotated[str, Field(pattern=IDENTIFIER_PATTERN.replace(r"\Z", "$"))]
    version: Annotated[str, Field(pattern=VERSION_PATTERN.replace(r"\Z", "$"))]


class TrialsBody(_Body):
    """Releases to be measured on one device, with how many runs each."""

    releases: Annotated[list[NamedRelease], Field(min_length=1, max_length=MAX_TRIALS)]
    runs: Annotated[int, Field(ge=1, le=MAX_TRIAL_RUNS)] = 100
    warmup: Annotated[int, Field(ge=0, le=MAX_TRIAL_RUNS)] = 10


class WithdrawalBody(_Body):
    """Trials that nobody waits for any more."""

    trials: Annotated[list[_DeviceId], Field(min_length=1, max_length=MAX_TRIALS)]


def create_app(services: Services) -> FastAPI:
    """Return the API of a hub; web pages are put onto it by whoever serves them."""
    app = FastAPI(
        title="AID Edge hub",
        version=services.version,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.include_router(_reading(services))
    app.include_router(_changing(services))
    _add_guard(app, services)
    _add_problems(app)
    _add_schemas(app)
    return app


def answer(value: msgspec.Struct, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return ``value`` as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def problem_of(error: AidError) -> Response:
    """Return ``error`` as JSON under the HTTP status of its kind."""
    found = next((s for kind, s in _HTTP_STATUS if isinstance(error, kind)), None)
    status = found or HTTPStatus.INTERNAL_SERVER_ERROR
    response = answer(Problem(error.code, str(error), error.cause, error.hint), status)
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _reading(services: Services) -> APIRouter:
    def check(request: Request) -> None:
        services.guard.check_read(request)

    router = APIRouter(dependencies=[Depends(check)])
    queries = services.queries

    @router.get(f"{PREFIX}/devices", **_documented(DevicePage))
    def list_devices(
        status: Annotated[list[str], Query(max_length=len(STATUSES))] = [],  # noqa: B006
        release: Annotated[str, Query(max_length=130)] = "",
        text: Annotated[str, Query(max_length=100)] = "",
        after: Annotated[str, Query(max_length=63)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    ) -> Response:
        """List devices in the order of their ids, one page at a time."""
        where = DeviceFilter(status=_statuses(status), release=release, text=text)
        return answer(queries.devices(where, after=after, limit=limit))

    @router.get(f"{PREFIX}/devices/{{device}}", **_documented(DeviceDetail))
    def show_device(device: str) -> Response:
        """Show everything about one device."""
        found = queries.device(device)
        if found is None:
            raise NotFoundError(f"there is no device {device[:80]!r}")
        return answer(found)

    @router.get(f"{PREFIX}/devices/{{device}}/trials", **_documented(Asked))
    def list_trials(device: str) -> Response:
        """List the trials that a device was asked for, newest first, with what it found."""
        return answer(Asked(device=device, trials=queries.trials(device)))

    @router.get(f"{PREFIX}/releases", **_documented(Releases))
    def list_releases() -> Response:
        """List published releases, and how many devices run each."""
        return answer(Releases(queries.releases()))

    @router.get(f"{PREFIX}/feedback", **_documented(FeedbackPage))
    def list_feedback(
        device: Annotated[str, Query(max_length=63)] = "",
        verdict: Annotated[str, Query(max_length=20)] = "",
        before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    ) -> Response:
        """List what people said of predictions, newest first."""
        return answer(queries.feedback(device=device, verdict=verdict, before=before, limit=limit))

    @router.get(f"{PREFIX}/health", **_documented(Health))
    def show_health() -> Response:
        """Say how the hub is; 503 when something is wrong with it."""
        health = _health(services)
        bad = health.status != "ok"
        return answer(health, HTTPStatus.SERVICE_UNAVAILABLE if bad else HTTPStatus.OK)

    @router.get("/metrics", response_class=Response)
    def show_metrics() -> Response:
        """Return figures for Prometheus."""
        return Response(metrics.render(_metrics(services)), media_type=metrics.CONTENT_TYPE)

    return router


def _changing(services: Services) -> APIRouter:
    def check(request: Request) -> None:
        services.guard.check_write(request)

    router = APIRouter(dependencies=[Depends(check)])

    @router.post(f"{PREFIX}/deployments", **_documented(Deployment))
    def deploy(body: DeploymentBody) -> Response:
        """Make devices run a release, or the one before; all of them are told, or none."""
        devices = services.queries.device_ids() if body.all_devices else tuple(body.devices)
        if not devices:
            raise RefusedError("there are no devices", hint="Make one with `aid-edge flash`.")
        director = services.director
        if body.name is not None and body.version is not None:
            made = director.deploy(
                devices, body.name, body.version, actor=ADMINISTRATOR, dry_run=body.dry_run
            )
        else:
            made = director.rollback(devices, actor=ADMINISTRATOR, dry_run=body.dry_run)
        return answer(Deployment(action=body.action, dry_run=body.dry_run, assignments=tuple(made)))

    @router.post(f"{PREFIX}/devices/{{device}}/trials", **_documented(Asked))
    def try_out(device: str, body: TrialsBody) -> Response:
        """Ask a device to measure releases beside what it serves."""
        asked = services.director.try_out(
            device,
            [(r.name, r.version) for r in body.releases],
            runs=body.runs,
            warmup=body.warmup,
            actor=ADMINISTRATOR,
        )
        return answer(Asked(device=device, trials=tuple(asked)))

    @router.post(f"{PREFIX}/devices/{{device}}/trials/withdrawals", **_documented(Asked))
    def withdraw(device: str, body: WithdrawalBody) -> Response:
        """Ask a device no more for these trials."""
        services.director.withdraw(device, body.trials, actor=ADMINISTRATOR)
        return answer(Asked(device=device, trials=services.queries.trials(device)))

    return router


def _statuses(names: list[str]) -> tuple[Status, ...]:
    known = tuple(s for s in STATUSES if s in names)
    unknown = set(names) - set(known)
    if unknown:
        raise UsageError(
            f"status {min(unknown)[:40]!r} is not known", hint=f"One of {', '.join(STATUSES)}."
        )
    return known


def _health(services: Services) -> Health:
    problems = tuple(services.problems())
    return Health(
        status="degraded" if problems else "ok",
        problems=problems,
        fleet=services.fleet,
        version=services.version,
        broker=services.broker,
        connected=services.is_connected(),
        devices=services.queries.counts().statuses,
        backlog=services.ingest.backlog,
    )


def _metrics(services: Services) -> list[metrics.Metric]:
    counts, ingest, blobs = services.queries.counts(), services.ingest, services.blobs
    single: list[tuple[str, str, str, float]] = [
        ("messages_total", "counter", "Messages that were stored.", ingest.counts.messages),
        ("malformed_total", "counter", "Messages that were refused.", ingest.counts.malformed),
        ("duplicates_total", "counter", "Records that came again.", ingest.counts.duplicates),
        ("dropped_total", "counter", "Messages dropped, to come again.", ingest.counts.dropped),
        ("commits_total", "counter", "Transactions of ingest.", ingest.counts.commits),
        ("backlog", "gauge", "Messages that wait to be stored.", ingest.backlog),
        ("blob_bytes_total", "counter", "Bytes of chunks that were sent.", blobs.sent_bytes),
        ("blob_dropped_total", "counter", "Requests over a device's limit.", blobs.dropped),
        ("broker_connected", "gauge", "1 while connected.", float(services.is_connected())),
    ]
    return [
        metrics.Metric(
            "aid_hub_devices", "gauge", "Devices by status.", counts.statuses, label="status"
        ),
        *(metrics.Metric(f"aid_hub_{n}", kind, text, {"": v}) for n, kind, text, v in single),
    ]


def _add_guard(app: FastAPI, services: Services) -> None:
    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        try:
            services.guard.check_host(request)
            _check_length(request)
        except AidError as e:
            return problem_of(e)
        return await call_next(request)


def _check_length(request: Request) -> None:
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        raise UsageError(f"the body is larger than {MAX_BODY_BYTES} bytes")
    if "chunked" in request.headers.get("transfer-encoding", "").lower():
        raise UsageError("a body must say its length")


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(AidError)
    async def refused(_: Request, error: AidError) -> Response:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:10]
        )
        problem = Problem("invalid-request", found[:2000], hint=f"See {PREFIX}/openapi.json.")
        return answer(problem, HTTPStatus.UNPROCESSABLE_ENTITY)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        problem = Problem(status.phrase.lower().replace(" ", "-"), str(error.detail))
        response = answer(problem, status)
        response.headers.update(error.headers or {})
        return response


def _documented(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return how a route says in OpenAPI what it answers; msgspec's types are not pydantic's."""

    def content(name: str) -> dict[str, Any]:
        return {
            "content": {"application/json": {"schema": {"$ref": _COMPONENTS.format(name=name)}}}
        }

    return {
        "response_class": Response,
        "responses": {
            200: {"description": "Done.", **content(kind.__name__)},
            "default": {"description": "Refused or failed.", **content(Problem.__name__)},
        },
    }


def _add_schemas(app: FastAPI) -> None:
    kinds = (
        DevicePage, DeviceDetail, Releases, FeedbackPage, Health, Deployment, Asked, Problem,
    )  # fmt: skip
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_COMPONENTS)
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update(schemas)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
