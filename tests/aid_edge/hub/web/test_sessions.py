from __future__ import annotations

from aid_edge.hub.web.sessions import LIFETIME_S, MAX_SESSIONS, Sessions


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_session_ends_by_itself_or_when_told() -> None:
    clock = Clock()
    sessions = Sessions(clock=clock)
    first, second = sessions.open(), sessions.open()
    assert sessions.is_open(first)
    sessions.close(second)
    assert not sessions.is_open(second)
    assert not sessions.is_open("made-up")
    assert not sessions.is_open("")
    clock.now_s += LIFETIME_S
    assert not sessions.is_open(first)


def test_the_oldest_ends_when_there_are_too_many() -> None:
    sessions = Sessions()
    names = [sessions.open() for _ in range(MAX_SESSIONS + 1)]
    assert not sessions.is_open(names[0])
    assert all(sessions.is_open(name) for name in names[1:])
