"""A whole hub: broker, ingest, director, blob service and API, started and ended together."""

from __future__ import annotations

import fcntl
import importlib.metadata
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import msgspec
import uvicorn
from fastapi import FastAPI

from aid_edge.catalogue.files import write_atomic
from aid_edge.catalogue.keys import KeyRole, load_signer
from aid_edge.catalogue.repository import Repository
from aid_edge.catalogue.store import Catalogue
from aid_edge.errors import HubError
from aid_edge.home import Home
from aid_edge.hub.api import create_app
from aid_edge.hub.auth import Guard
from aid_edge.hub.blobs import BlobService
from aid_edge.hub.broker.choice import BrokerOptions, ReadyBroker, ready_broker
from aid_edge.hub.director import Director, DirectorLoop
from aid_edge.hub.ingest import CHANNELS, Ingest
from aid_edge.hub.live import Live
from aid_edge.hub.mqtt import HubConnection, Received, is_loopback
from aid_edge.hub.outbox import Receipt
from aid_edge.hub.queries import Queries
from aid_edge.hub.releases import CatalogueReleases
from aid_edge.hub.schema import database_path
from aid_edge.hub.services import Services
from aid_edge.hub.store import Store
from aid_edge.hub.web.routes import mount
from aid_edge.identity import hub_files, read_api_token
from device_agent.contract.errors import AidError
from device_agent.contract.topics import DELIVERY, Channel, subscription

DEFAULT_PORT = 8800
CONNECT_S = 20.0
API_START_S = 20.0
API_STOP_S = 10.0
WATCH_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubOptions:
    """How a hub is served.

    Attributes:
        host: Address that API and web view listen on. Other than loopback they speak TLS.
        port: Their port; 0 for any free one.
    """

    broker: BrokerOptions = field(default_factory=BrokerOptions)
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT


class HubState(msgspec.Struct, frozen=True):
    """What ``hub/hub.json`` says while a hub runs."""

    url: str
    broker_url: str
    pid: int


@dataclass(frozen=True)
class RunningHub:
    """A hub that serves."""

    url: str
    broker: ReadyBroker
    services: Services


@contextmanager
def running_hub(home: Home, options: HubOptions) -> Iterator[RunningHub]:
    """Run a hub for as long as the ``with`` block lasts.

    Raises:
        HubError: Another hub of this home runs, or a part cannot be started.
        HomeError: A key, certificate or token is missing.
    """
    with ExitStack() as stack:
        stack.enter_context(_only_one(home))
        live = Live()
        services, broker = _start_services(stack, home, options, live)
        app = create_app(services)
        mount(
            app,
            queries=services.queries,
            live=live,
            guard=services.guard,
            fleet=services.fleet,
            version=services.version,
        )
        url = stack.enter_context(_serving(app, home, options))
        yield RunningHub(url, broker, services)


def _start_services(
    stack: ExitStack, home: Home, options: HubOptions, live: Live
) -> tuple[Services, ReadyBroker]:
    """Start everything but the API; ``stack`` ends it."""
    guard = Guard(read_api_token(home.hub), options.host)
    signer = load_signer(home.keys, KeyRole.DIRECTOR)
    catalogue = Catalogue(home)
    store = Store(database_path(home))
    stack.callback(store.close)
    queries = Queries(store.path, CatalogueReleases(catalogue))
    stack.callback(queries.close)
    broker = stack.enter_context(ready_broker(home, options.broker))
    outbox = _LateOutbox()
    ingest = Ingest(store, outbox, home.fleet, on_change=live.changed)
    blobs = BlobService(catalogue, outbox, on_malformed=ingest.count_malformed, on_seen=ingest.saw)
    director = Director(store, catalogue, home.fleet, signer, outbox, on_change=live.changed)
    connection = outbox.connection = HubConnection(
        broker.address,
        home.fleet,
        [(subscription(home.fleet, c), DELIVERY[c].qos) for c in SUBSCRIBED],
        on_message=_router(ingest, blobs),
        on_connected=director.broker_came,
    )
    for part in (ingest, blobs, connection):
        stack.enter_context(part)
    connection.wait_until_up(CONNECT_S)
    repository = Repository(home)
    loop = DirectorLoop(director, lambda now: repository.refresh_timestamp(now=now))
    stack.enter_context(loop)

    def problems() -> list[str]:
        alive = {
            "ingest": ingest.is_alive,
            "blob service": blobs.is_alive,
            "director": loop.is_alive,
        }
        wrong = [f"{part} ended" for part, is_alive in alive.items() if not is_alive]
        if not connection.is_up:
            wrong.append("not connected to the broker")
        try:
            catalogue.releases()
        except AidError as e:
            wrong.append(f"the catalogue cannot be used: {e}")
        return wrong

    services = Services(
        fleet=home.fleet,
        version=importlib.metadata.version("aid-edge"),
        broker=broker.kind,
        queries=queries,
        director=director,
        ingest=ingest,
        blobs=blobs,
        guard=guard,
        is_connected=lambda: connection.is_up,
        problems=problems,
    )
    return services, broker


def serve(home: Home, options: HubOptions, *, say: Callable[[str], None]) -> None:
    """Serve a hub until SIGINT or SIGTERM, and end all of it then.

    Raises:
        HubError: Another hub of this home runs, or a part cannot be started or ended by itself.
        HomeError: A key, certificate or token is missing.
    """
    stop = threading.Event()
    with _signals_set(stop), running_hub(home, options) as hub:
        state = HubState(hub.url, hub.broker.url, os.getpid())
        path = home.hub / "hub.json"
        write_atomic(path, msgspec.json.encode(state))
        try:
            say(f"hub of fleet {home.fleet}: {hub.url}")
            say(f"broker ({hub.broker.kind}): {hub.broker.url}")
            for lack in hub.broker.lacks:
                say(f"note: {hub.broker.kind} broker: {lack}")
            _wait(stop, hub)
        finally:
            path.unlink(missing_ok=True)


SUBSCRIBED = (*CHANNELS, Channel.BLOB_REQUEST)


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _LateOutbox:
    """Stands for the connection, which needs those that need it."""

    def __init__(self) -> None:
        self.connection: HubConnection | None = None

    def publish(self, device: str, channel: Channel, payload: bytes) -> Receipt | None:
        return self.connection.publish(device, channel, payload) if self.connection else None


def _router(ingest: Ingest, blobs: BlobService) -> Callable[[Received], None]:
    suffix = f"/{Channel.BLOB_REQUEST.value}"

    def receive(received: Received) -> None:
        target = blobs if received.topic.endswith(suffix) else ingest
        target.receive(received)

    return receive


@contextmanager
def _only_one(home: Home) -> Iterator[None]:
    path = home.hub / "hub.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as e:
        raise HubError(f"{path}: {e.strerror}") from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise HubError(
                f"a hub of {home.path} runs already",
                hint="`aid-edge hub status` says where; end it first.",
            ) from e
        yield


@contextmanager
def _serving(app: FastAPI, home: Home, options: HubOptions) -> Iterator[str]:
    files = hub_files(home.hub)
    is_local = is_loopback(options.host)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        log_level="warning",
        ws="websockets-sansio",
        timeout_graceful_shutdown=3,
        ssl_certfile=None if is_local else files.certificate,
        ssl_keyfile=None if is_local else str(files.key),
    )
    try:
        listening = _listen(options)
    except OSError as e:
        raise HubError(
            f"the API cannot listen on {options.host}:{options.port}: {e.strerror}",
            hint="Name another one with --port, or 0 for any free one.",
        ) from e
    with listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="api", daemon=True
        )
        thread.start()
        try:
            deadline = time.monotonic() + API_START_S
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise HubError("the API did not start")
                time.sleep(0.01)
            host = f"[{options.host}]" if ":" in options.host else options.host
            yield f"{'http' if is_local else 'https'}://{host}:{port}"
        finally:
            server.should_exit = True
            thread.join(API_STOP_S)


def _listen(options: HubOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
    except OSError:
        listening.close()
        raise
    return listening


def _wait(stop: threading.Event, hub: RunningHub) -> None:
    while not stop.wait(WATCH_S):
        ended = [p for p in hub.services.problems() if p.endswith(" ended")]
        if ended:
            raise HubError(f"a part of the hub failed: {', '.join(ended)}")
