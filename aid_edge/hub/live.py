"""Sends what changed to the pages that are open: a WebSocket each, at most one message a second.

A page says its address; what it shows is rendered again when a device that it shows changed (and
now and then without, because silence changes a status too), and only the parts that differ from
what the page has are sent.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from starlette.websockets import WebSocket, WebSocketDisconnect

TICK_S = 1.0
"""Changes within this time go out together."""
RECHECK_S = 5.0
"""How often a page is rendered again without a change: a device that fell silent sends nothing."""
HELLO_S = 10.0
MAX_PAGES = 200
MAX_ADDRESS_CHARACTERS = 2000
CLOSE_TRY_LATER = 1013
CLOSE_POLICY = 1008


@dataclass(frozen=True)
class Snapshot:
    """What a page shows.

    Attributes:
        shape: Two snapshots of one shape have the same ``parts``; between others ``whole`` is sent.
        whole: Element id to HTML of the large parts, which together are all that changes.
        parts: Element id to HTML of the small parts that ``whole`` consists of.
        devices: Devices whose changes matter; None for all.
    """

    shape: Hashable
    whole: dict[str, str]
    parts: dict[str, str] = field(default_factory=dict)
    devices: frozenset[str] | None = None


def difference(old: Snapshot | None, new: Snapshot) -> dict[str, str]:
    """Return element id to HTML of what a page that shows ``old`` must replace to show ``new``."""
    if old is None or old.shape != new.shape:
        return new.whole
    return {name: html for name, html in new.parts.items() if old.parts.get(name) != html}


class Live:
    """Knows which devices changed, and feeds the open pages.

    Args:
        tick_s: Least time between two messages to a page.
        recheck_s: Longest time between two looks at what a page shows.
    """

    def __init__(self, *, tick_s: float = TICK_S, recheck_s: float = RECHECK_S) -> None:
        self._tick_s = tick_s
        self._recheck_s = recheck_s
        self._changes = 0
        self._last_change: dict[str, int] = {}
        self._lock = threading.Lock()
        self._pages = 0

    @property
    def pages(self) -> int:
        """Number of pages that are open now."""
        return self._pages

    def changed(self, device: str) -> None:
        """Note that something about ``device`` changed. May be called from any thread."""
        with self._lock:
            self._changes += 1
            self._last_change[device] = self._changes

    async def serve(
        self, websocket: WebSocket, snapshot_of: Callable[[str], Snapshot | None]
    ) -> None:
        """Feed one page until it goes away.

        Args:
            websocket: Not yet accepted.
            snapshot_of: From the address that the page says (path and query) to what it shows, or
                None for an address that shows nothing live. Called in a thread.
        """
        if self._pages >= MAX_PAGES:
            await websocket.close(CLOSE_TRY_LATER)
            return
        self._pages += 1
        try:
            await websocket.accept()
            async with asyncio.timeout(HELLO_S):
                address = await websocket.receive_text()
            await self._feed(websocket, address, snapshot_of)
        except (WebSocketDisconnect, TimeoutError):
            pass  # The page is gone, or never said what it shows: nothing is owed to it.
        finally:
            self._pages -= 1

    async def _feed(
        self, websocket: WebSocket, address: str, snapshot_of: Callable[[str], Snapshot | None]
    ) -> None:
        clock = asyncio.get_running_loop().time
        receiving = asyncio.ensure_future(websocket.receive_text())
        shown: Snapshot | None = None
        seen = 0
        recheck_at = 0.0
        try:
            while True:
                if shown is None or self._matters(shown, seen) or clock() >= recheck_at:
                    seen, recheck_at = self._changes, clock() + self._recheck_s
                    snapshot = None
                    if len(address) <= MAX_ADDRESS_CHARACTERS:
                        snapshot = await asyncio.to_thread(snapshot_of, address)
                    if snapshot is None:
                        await websocket.close(CLOSE_POLICY)
                        return
                    if parts := difference(shown, snapshot):
                        await websocket.send_text(json.dumps({"parts": parts}))
                    shown = snapshot
                done, _ = await asyncio.wait({receiving}, timeout=self._tick_s)
                if done:
                    address, shown = receiving.result(), None
                    receiving = asyncio.ensure_future(websocket.receive_text())
        finally:
            receiving.cancel()

    def _matters(self, shown: Snapshot, seen: int) -> bool:
        if shown.devices is None:
            return self._changes > seen
        return any(self._last_change.get(device, 0) > seen for device in shown.devices)
