"""Which chunks to ask for next: a window that grows while chunks come, and asks again when not.

Pure: it takes times, in seconds of any one clock, and holds no clock, socket or file.
"""

from __future__ import annotations

from collections.abc import Iterable

FIRST_WINDOW_CHUNKS = 4
FIRST_PATIENCE_S = 1.0
MIN_PATIENCE_S = 0.25
MAX_PATIENCE_S = 8.0
"""How long to wait for any of the chunks that were asked for before asking again."""

PATIENCE_ROUND_TRIPS = 6.0
_SMOOTHING = 0.125
"""Weight of a new round trip time in the smoothed one (RFC 6298)."""


class Window:
    """The chunks of one blob that are missing, and those that were asked for.

    Slow start as in TCP: every chunk that comes lets one more be on its way, up to a cap; asking
    again halves the window. A chunk counts as lost when nothing came for a while, since chunks of
    one connection come in order.
    """

    def __init__(self, missing: Iterable[int], *, cap_chunks: int, now_s: float) -> None:
        self._missing = sorted(missing, reverse=True)
        self._asked: dict[int, float] = {}
        self._cap = max(1, cap_chunks)
        self._size = float(min(FIRST_WINDOW_CHUNKS, self._cap))
        self._round_trip_s: float | None = None
        self._patience_s = FIRST_PATIENCE_S
        self._quiet_since_s = now_s

    @property
    def is_done(self) -> bool:
        """Whether every chunk came."""
        return not self._missing and not self._asked

    @property
    def size_chunks(self) -> int:
        """How many chunks may be on their way now."""
        return int(self._size)

    def next_chunks(self, now_s: float) -> list[int]:
        """Return the chunks to ask for now, ascending; they count as on their way from now on.

        Empty while half of the window is still on its way, so that one request asks for several.
        """
        room = self.size_chunks - len(self._asked)
        if not self._missing or room * 2 < self.size_chunks:
            return []
        if not self._asked:
            self._quiet_since_s = now_s
        chunks = [self._missing.pop() for _ in range(min(room, len(self._missing)))]
        self._asked.update(dict.fromkeys(chunks, now_s))
        return chunks

    def arrived(self, index: int, now_s: float) -> bool:
        """Take note that a good chunk came; False when it was not wanted (any more)."""
        asked_s = self._asked.pop(index, None)
        if asked_s is None:
            try:
                # It was given up and comes late: all the same, it is here.
                self._missing.remove(index)
            except ValueError:
                return False
            self._quiet_since_s = now_s
            return True
        sample_s = max(now_s - asked_s, 0.0)
        old_s = self._round_trip_s
        self._round_trip_s = sample_s if old_s is None else old_s + _SMOOTHING * (sample_s - old_s)
        wanted_s = PATIENCE_ROUND_TRIPS * self._round_trip_s
        self._patience_s = min(max(wanted_s, MIN_PATIENCE_S), MAX_PATIENCE_S)
        self._size = min(self._size + 1, self._cap)
        self._quiet_since_s = now_s
        return True

    def refuse(self, index: int) -> None:
        """Take note that a chunk came broken: ask for it again."""
        if self._asked.pop(index, None) is not None:
            self._missing.append(index)

    def patience_left_s(self, now_s: float) -> float:
        """Return how long to wait for chunks before calling :meth:`give_up`; 0 when over."""
        return max(0.0, self._quiet_since_s + self._patience_s - now_s)

    def give_up(self, now_s: float) -> None:
        """Count all chunks that were asked for as lost; wait longer the next time."""
        self._missing.extend(self._asked)
        self._missing.sort(reverse=True)
        self._asked.clear()
        self._size = max(1.0, self._size / 2)
        self._patience_s = min(self._patience_s * 2, MAX_PATIENCE_S)
        self._quiet_since_s = now_s


def masks_of(chunks: Iterable[int], *, max_chunks: int) -> list[tuple[int, str]]:
    """Return ``(first, missing)`` pairs of :class:`BlobRequest` that ask for ``chunks``.

    Args:
        chunks: Indices, ascending.
        max_chunks: Bits that one request may have.
    """
    groups: list[list[int]] = []
    for index in chunks:
        if groups and index - groups[-1][0] < max_chunks:
            groups[-1].append(index)
        else:
            groups.append([index])
    masks = []
    for group in groups:
        bits = sum(1 << (i - group[0]) for i in group)
        masks.append((group[0], bits.to_bytes((bits.bit_length() + 7) // 8, "little").hex()))
    return masks
