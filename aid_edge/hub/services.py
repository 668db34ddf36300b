"""What the API and the web view stand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aid_edge.hub.auth import Guard
from aid_edge.hub.blobs import BlobService
from aid_edge.hub.director import Director
from aid_edge.hub.ingest import Ingest
from aid_edge.hub.queries import Queries


@dataclass(frozen=True)
class Services:
    """The parts of a running hub.

    Attributes:
        is_connected: Whether the hub is connected to its broker.
        problems: What is wrong with the hub itself, in words; empty when nothing is.
    """

    fleet: str
    version: str
    broker: str
    queries: Queries
    director: Director
    ingest: Ingest
    blobs: BlobService
    guard: Guard
    is_connected: Callable[[], bool]
    problems: Callable[[], list[str]]
