from __future__ import annotations

import asyncio

from starlette.websockets import WebSocket

from aid_edge.hub.live import CLOSE_TRY_LATER, Live, Snapshot, difference


def snapshot(shape: str = "s", **parts: str) -> Snapshot:
    return Snapshot(shape, {"all": "".join(parts.values())}, parts)


def test_everything_is_sent_first_and_when_the_shape_changed() -> None:
    new = snapshot(a="1", b="2")
    assert difference(None, new) == {"all": "12"}
    assert difference(snapshot("other", a="1", b="2"), new) == {"all": "12"}


def test_afterwards_only_what_differs() -> None:
    old = snapshot(a="1", b="2")
    assert difference(old, snapshot(a="1", b="3")) == {"b": "3"}
    assert difference(old, snapshot(a="1", b="2")) == {}


class Socket(WebSocket):
    """A socket without a network: what the page says, and what it was told."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self.code = 0

    async def accept(self, *_: object) -> None:  # type: ignore[override]
        pass

    async def receive_text(self) -> str:
        return await self.heard.get()

    async def send_text(self, data: str) -> None:
        self.told.put_nowait(data)

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.code = code


def test_changes_of_other_devices_do_not_render_a_device_page_again() -> None:
    rendered: list[str] = []

    def render(address: str) -> Snapshot:
        rendered.append(address)
        return Snapshot("s", {"n": "x"}, {"n": str(len(rendered))}, frozenset({"a"}))

    async def scenario() -> None:
        live, socket = Live(tick_s=0.01, recheck_s=3600), Socket()
        socket.heard.put_nowait("/devices/a")
        task = asyncio.create_task(live.serve(socket, render))
        await socket.told.get()
        live.changed("b")
        await asyncio.sleep(0.1)
        assert len(rendered) == 1
        live.changed("a")
        assert await socket.told.get() == '{"parts": {"n": "2"}}'
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert live.pages == 0

    asyncio.run(scenario())


def test_a_page_is_looked_at_again_without_a_change() -> None:
    """A device that fell silent sends nothing, and still becomes offline."""

    async def scenario() -> None:
        live, socket = Live(tick_s=0.01, recheck_s=0.05), Socket()
        times = iter(range(1000))
        socket.heard.put_nowait("/")
        task = asyncio.create_task(
            live.serve(socket, lambda _: Snapshot("s", {}, {"n": str(next(times))}))
        )
        async with asyncio.timeout(20):
            await socket.told.get()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def test_too_many_pages_are_asked_to_come_later(monkeypatch: object) -> None:
    import aid_edge.hub.live as module

    async def scenario() -> None:
        live, socket = Live(), Socket()
        live._pages = module.MAX_PAGES
        await live.serve(socket, lambda _: None)
        assert socket.code == CLOSE_TRY_LATER

    asyncio.run(scenario())
