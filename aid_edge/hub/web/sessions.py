"""Who is logged in: random session ids in memory, forgotten when the hub ends."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

LIFETIME_S = 12 * 3600.0
MAX_SESSIONS = 1000
COOKIE = "aid_edge_session"


class Sessions:
    """Sessions of browsers whose user gave the token once.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_s: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def open(self) -> str:
        """Return the id of a new session; the oldest one ends when there are too many."""
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._ends_s[name] = self._clock() + LIFETIME_S
            if len(self._ends_s) > MAX_SESSIONS:
                self._ends_s.popitem(last=False)
        return name

    def is_open(self, name: str) -> bool:
        """Whether ``name`` is a session that has not ended."""
        with self._lock:
            end_s = self._ends_s.get(name)
            if end_s is not None and end_s <= self._clock():
                del self._ends_s[name]
                end_s = None
        return end_s is not None

    def close(self, name: str) -> None:
        """End a session."""
        with self._lock:
            self._ends_s.pop(name, None)
