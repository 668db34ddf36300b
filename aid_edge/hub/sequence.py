"""Which numbered records of a boot are stored, each once (contract §4.9)."""

from __future__ import annotations

import bisect

import msgspec

MAX_RUNS = 256
"""Separate runs of stored records beyond a gap; more are refused until the gap closes."""


class Stream(msgspec.Struct, frozen=True):
    """The records of one boot that are stored.

    Attributes:
        through: Every record up to this that the device still has is stored.
        runs: Inclusive runs of stored records beyond ``through``, ascending, never adjacent.
        skipped: Inclusive runs below ``through`` that the device gave up and were never stored;
            the newest ``MAX_RUNS``. A late copy of one is still new.
    """

    through: int = 0
    runs: tuple[tuple[int, int], ...] = ()
    skipped: tuple[tuple[int, int], ...] = ()

    def holds(self, seq: int) -> bool:
        """Return whether record ``seq`` is stored."""
        if seq <= self.through:
            return not _within(self.skipped, seq)
        return _within(self.runs, seq)

    def is_full(self, seq: int) -> bool:
        """Return whether storing ``seq`` would take one run more than are kept."""
        return len(_add(self.runs, seq)) > MAX_RUNS and seq > self.through + 1

    def store(self, seq: int, floor: int) -> Stream:
        """Return the stream with record ``seq`` stored, of a device that holds ``floor`` and up.

        ``seq`` may be stored already. Everything below ``floor`` was acknowledged or dropped by
        the device, so nobody waits for it any more.
        """
        runs, skipped = self.runs, self.skipped
        if seq > self.through:
            runs = _add(runs, seq)
        else:
            skipped = _remove(skipped, seq)
        through = self.through
        # A floor above the record itself would be a device that contradicts itself.
        given_up = min(floor, seq) - 1
        while True:
            if runs and runs[0][0] <= through + 1:
                through, runs = max(through, runs[0][1]), runs[1:]
            elif through < given_up:
                last = min(given_up, runs[0][0] - 1) if runs else given_up
                skipped, through = (*skipped, (through + 1, last)), last
            else:
                break
        return Stream(through, runs, skipped[-MAX_RUNS:])


def _within(runs: tuple[tuple[int, int], ...], seq: int) -> bool:
    at = bisect.bisect_right(runs, seq, key=lambda run: run[0])
    return at > 0 and runs[at - 1][1] >= seq


def _add(runs: tuple[tuple[int, int], ...], seq: int) -> tuple[tuple[int, int], ...]:
    if _within(runs, seq):
        return runs
    at = bisect.bisect_right(runs, seq, key=lambda run: run[0])
    before, after = runs[:at], runs[at:]
    first = last = seq
    if before and before[-1][1] == seq - 1:
        first, before = before[-1][0], before[:-1]
    if after and after[0][0] == seq + 1:
        last, after = after[0][1], after[1:]
    return (*before, (first, last), *after)


def _remove(runs: tuple[tuple[int, int], ...], seq: int) -> tuple[tuple[int, int], ...]:
    kept: list[tuple[int, int]] = []
    for first, last in runs:
        if first <= seq <= last:
            kept += [(a, b) for a, b in ((first, seq - 1), (seq + 1, last)) if a <= b]
        else:
            kept.append((first, last))
    return tuple(kept)
