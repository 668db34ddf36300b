"""Homes, stores and what the hub sends, for its tests."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aid_edge.catalogue.create import create_home
from aid_edge.catalogue.store import Catalogue
from aid_edge.home import Home
from aid_edge.hub.queries import Queries
from aid_edge.hub.releases import CatalogueReleases
from aid_edge.hub.schema import database_path
from aid_edge.hub.store import Store, register_device
from device_agent.contract.topics import Channel
from tests.support.releases import PROFILE, make_draft, publish

FLEET = "fleet-a"


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Sent:
    """A message that the broker took, or did not."""

    def __init__(self, taken: bool) -> None:
        self.taken = taken

    def wait(self, timeout_s: float) -> bool:
        return self.taken


class ListOutbox:
    """Our own seam to the broker: keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Channel, bytes]] = []
        self.is_up = True
        self.takes = True

    def publish(self, device: str, channel: Channel, payload: bytes) -> Sent | None:
        if not self.is_up:
            return None
        self.sent.append((device, channel, payload))
        return Sent(self.takes)

    def on(self, channel: Channel) -> list[bytes]:
        return [payload for _, c, payload in self.sent if c == channel]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox() -> ListOutbox:
    return ListOutbox()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(tmp_path / "home", FLEET, now=dt.datetime.now(dt.UTC))


@pytest.fixture
def release(home: Home, tmp_path: Path) -> Callable[..., str]:
    """Publish a tiny release and return its digest."""

    def make(version: str = "1.0.0", *, profile: str = PROFILE, name: str = "digits") -> str:
        folder = tmp_path / "drafts" / f"{name}-{version}-{profile}"
        seed = sum(version.encode())
        draft = make_draft(folder, name=name, version=version, profile=profile, seed=seed)
        (published,) = publish(home, [draft], now=dt.datetime.now(dt.UTC))
        return published.digest

    return make


@pytest.fixture
def store(home: Home, clock: Clock) -> Iterator[Store]:
    store = Store(database_path(home), clock=clock)
    yield store
    store.close()


@pytest.fixture
def queries(store: Store, home: Home, clock: Clock) -> Iterator[Queries]:
    queries = Queries(store.path, CatalogueReleases(Catalogue(home)), clock=clock)
    yield queries
    queries.close()


@pytest.fixture
def registered(home: Home) -> Callable[..., str]:
    """Put a device into the fleet, as ``flash`` does."""

    def register(device: str = "cam-1", profile: str = PROFILE) -> str:
        register_device(home, device, profile, f"seed-{device}")
        return device

    return register
