"""The web view: its routes, who may see them, and the headers that keep a page to itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from aid_edge.hub.auth import Guard
from aid_edge.hub.errors import TooManyFailuresError, UnauthorizedError
from aid_edge.hub.live import CLOSE_POLICY, Live
from aid_edge.hub.queries import Queries
from aid_edge.hub.web.pages import Pages, fleet_view
from aid_edge.hub.web.sessions import COOKIE, LIFETIME_S, Sessions
from device_agent.contract.errors import AidError

STATIC = Path(__file__).parent / "static"
MAX_LOGIN_BYTES = 4096
_HEADERS = {
    # Scripts and styles from here only, none inline; nothing is loaded from anywhere else.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def mount(
    app: FastAPI, *, queries: Queries, live: Live, guard: Guard, fleet: str, version: str
) -> None:
    """Put the web view onto ``app``, the hub's API.

    Args:
        app: Its handlers of errors go on answering for the API; people get pages.
        queries: Reads of the hub's database.
        live: Told by the hub which devices changed.
        guard: Who may look.
        fleet: Name of the fleet.
        version: Version of the program.
    """
    pages = Pages(queries, fleet, version)
    app.include_router(router(pages, live, guard, Sessions()))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _add_headers(app)
    _add_error_pages(app, pages)


def router(pages: Pages, live: Live, guard: Guard, sessions: Sessions) -> APIRouter:
    """Return the routes of the pages, the log-in and the WebSocket."""
    found = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    _add_pages(found, pages, guard, sessions)
    _add_login(found, pages, guard, sessions)

    @found.websocket("/live")
    async def feed(websocket: WebSocket) -> None:
        try:
            _check_origin(websocket)
            guard.check_host(websocket)
            allowed = await run_in_threadpool(_may_look, websocket, guard, sessions)
        except (AidError, HTTPException):
            allowed = False
        if allowed:
            await live.serve(websocket, pages.snapshot)
        else:
            await websocket.close(CLOSE_POLICY)

    return found


def _add_pages(found: APIRouter, pages: Pages, guard: Guard, sessions: Sessions) -> None:
    @found.get("/")
    def show_fleet(request: Request) -> Response:
        if not _may_look(request, guard, sessions):
            return _to_login()
        return _page(pages.fleet(fleet_view(request.url.query)))

    @found.get("/devices/{device}")
    def show_device(request: Request, device: str) -> Response:
        if not _may_look(request, guard, sessions):
            return _to_login()
        page = pages.device(device)
        if page is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "The fleet has no device of this name.")
        return _page(page)


def _add_login(found: APIRouter, pages: Pages, guard: Guard, sessions: Sessions) -> None:
    @found.get("/login")
    def ask_token() -> Response:
        return _page(pages.login())

    @found.post("/login")
    async def log_in(request: Request) -> Response:
        _check_origin(request)
        body = await request.body()
        if len(body) > MAX_LOGIN_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        try:
            guard.check_token(token, request.client.host if request.client else "")
        except (UnauthorizedError, TooManyFailuresError) as e:
            return _page(pages.login(f"{e}."), HTTPStatus.UNAUTHORIZED)
        response = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        response.set_cookie(
            COOKIE,
            sessions.open(),
            max_age=int(LIFETIME_S),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def _page(html: str, status: HTTPStatus = HTTPStatus.OK) -> HTMLResponse:
    return HTMLResponse(html, status, {"Cache-Control": "no-store"})


def _to_login() -> Response:
    return RedirectResponse("/login", HTTPStatus.SEE_OTHER)


def _may_look(connection: HTTPConnection, guard: Guard, sessions: Sessions) -> bool:
    """Whether this is somebody on this machine, or who is logged in, or who shows the token."""
    if sessions.is_open(connection.cookies.get(COOKIE, "")):
        return True
    try:
        guard.check_read(connection)
    except UnauthorizedError:
        return False
    return True


def _check_origin(connection: HTTPConnection) -> None:
    """Refuse what a page of another site asks for; browsers always say where they come from."""
    origin = connection.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != connection.headers.get("host"):
        raise HTTPException(HTTPStatus.FORBIDDEN, "Another site may not ask for this.")


def _add_headers(app: FastAPI) -> None:
    @app.middleware("http")
    async def headers(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        if request.url.path.startswith("/static/"):
            response.headers.setdefault("Cache-Control", "no-cache")
        return response


def _add_error_pages(app: FastAPI, pages: Pages) -> None:
    for kind in (HTTPException, AidError):
        previous: Any = app.exception_handlers.get(kind)
        app.add_exception_handler(kind, _error_page(pages, previous))


def _error_page(
    pages: Pages, previous: Callable[[Request, Exception], Awaitable[Response]] | None
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        response = await previous(request, error) if previous else None
        status = response.status_code if response else getattr(error, "status_code", 500)
        if response is not None and not _wants_page(request):
            return response
        title = (
            "There is no such page" if status == HTTPStatus.NOT_FOUND else HTTPStatus(status).phrase
        )
        text = str(getattr(error, "detail", "") or error)
        if text == HTTPStatus(status).phrase:
            text = f"{request.url.path[:200]} leads nowhere."
        return _page(pages.error(title, text), HTTPStatus(status))

    return handle


def _wants_page(request: Request) -> bool:
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get(
        "accept", ""
    )
