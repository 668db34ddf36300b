"""Which broker the hub stands on: ``--broker auto|mosquitto|embedded|URL``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aid_edge.catalogue.files import write_atomic
from aid_edge.catalogue.keys import write_private
from aid_edge.errors import BrokerError, UsageError
from aid_edge.home import Home
from aid_edge.hub.broker.address import LOOPBACK, choose_port, remember_port
from aid_edge.hub.broker.embedded import LACKS, running_embedded
from aid_edge.hub.broker.mosquitto import (
    HUB_USER,
    MosquittoOptions,
    find_mosquitto,
    running_mosquitto,
)
from aid_edge.hub.broker.running import RunningBroker
from aid_edge.hub.mqtt import BrokerAddress, endpoint_of
from aid_edge.identity import Authority, hub_files

AUTO, MOSQUITTO, EMBEDDED = "auto", "mosquitto", "embedded"


@dataclass(frozen=True)
class BrokerOptions:
    """What the user asked for.

    Attributes:
        choice: ``auto``, ``mosquitto``, ``embedded``, or the address of one that runs already.
        host: Address to listen on.
        port: Port to listen on; None for the one of the last time, 0 for any.
        advertise: Name that devices reach the broker by; empty for ``host``.
    """

    choice: str = AUTO
    host: str = LOOPBACK
    port: int | None = None
    advertise: str = ""


@dataclass(frozen=True)
class ReadyBroker:
    """A broker that listens.

    Attributes:
        kind: ``mosquitto``, ``embedded`` or ``external``.
        url: What devices connect to.
        address: What the hub connects to.
        lacks: What it cannot do, in words.
        process: None for an external one.
    """

    kind: str
    url: str
    address: BrokerAddress
    lacks: tuple[str, ...] = ()
    process: RunningBroker | None = None


def kind_of(choice: str) -> str:
    """Return which kind of broker ``choice`` means here.

    Raises:
        UsageError: It means none.
        BrokerError: It is an address that cannot be used.
    """
    if choice in {MOSQUITTO, EMBEDDED}:
        return choice
    if choice == AUTO:
        return MOSQUITTO if find_mosquitto() else EMBEDDED
    if "://" in choice:
        endpoint_of(choice)
        return "external"
    raise UsageError(
        f"broker {choice!r} is not known",
        hint="auto, mosquitto, embedded, or an address such as mqtts://broker.example:8883.",
    )


@contextmanager
def ready_broker(home: Home, options: BrokerOptions) -> Iterator[ReadyBroker]:
    """Have a broker for as long as the ``with`` block lasts.

    Raises:
        UsageError: ``options.choice`` means no broker.
        MissingDependencyError: The embedded broker is not installed.
        BrokerError: It cannot be started.
    """
    kind = kind_of(options.choice)
    folder = home.hub / "broker"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BrokerError(f"{folder}: {e.strerror}") from e
    if kind == "external":
        address = hub_address(home, options.choice)
        yield ReadyBroker(kind, options.choice, address)
    elif kind == EMBEDDED:
        port = choose_port(folder, LOOPBACK, options.port)
        url = f"mqtt://{LOOPBACK}:{port}"
        with running_embedded(folder, port) as process:
            remember_port(folder, port)
            yield ReadyBroker(kind, url, BrokerAddress(url), LACKS, process)
    else:
        port = choose_port(folder, options.host, options.port)
        files = hub_files(home.hub)
        wanted = MosquittoOptions(folder, files, home.fleet, options.host, port)
        any_host = options.host in {"0.0.0.0", "::"}  # noqa: S104 - compared only
        local = LOOPBACK if any_host else options.host
        url = f"mqtts://{options.advertise or local}:{port}"
        address = hub_address(home, f"mqtts://{local}:{port}")
        with running_mosquitto(wanted) as process:
            remember_port(folder, port)
            yield ReadyBroker(kind, url, address, (), process)


def hub_address(home: Home, url: str) -> BrokerAddress:
    """Return how the hub connects to ``url``: with TLS, by its own certificate of the fleet.

    Raises:
        HomeError: The fleet's authority cannot be read.
        BrokerError: The certificate cannot be written.
    """
    _, _, is_tls = endpoint_of(url)
    if not is_tls:
        return BrokerAddress(url)
    certificate, key = home.hub / "client.pem", home.hub / "client.key"
    if not (certificate.exists() and key.exists()):
        _issue(home, certificate, key)
    return BrokerAddress(url, hub_files(home.hub).ca, certificate, key)


def _issue(home: Home, certificate: Path, key: Path) -> None:
    private, public = Authority.open(home.keys, home.hub).issue_device(HUB_USER)
    try:
        key.unlink(missing_ok=True)
        write_private(key, private)
        write_atomic(certificate, public)
    except OSError as e:
        raise BrokerError(f"{e.filename or key}: {e.strerror}") from e
