"""Who may look, what the headers forbid, and what becomes of addresses that lead nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from aid_edge.hub.live import Live
from aid_edge.hub.queries import Queries
from aid_edge.hub.web.pages import Pages, fleet_view
from tests.aid_edge.hub.web.conftest import TOKEN, Catalogue, Filler, web_app

HTML = {"Accept": "text/html"}


@pytest.fixture
def queries(filled: Filler) -> Iterator[Queries]:
    queries = Queries(filled.store.path, Catalogue())
    yield queries
    queries.close()


@pytest.fixture
def live() -> Live:
    return Live(tick_s=0.02, recheck_s=60)


@pytest.fixture
def local(queries: Queries, live: Live) -> TestClient:
    return TestClient(web_app(queries, live), base_url="http://127.0.0.1")


@pytest.fixture
def remote(queries: Queries, live: Live) -> TestClient:
    """A hub that listens on more than this machine: it asks for the token."""
    app = web_app(queries, live, host="0.0.0.0")
    return TestClient(app, base_url="https://hub.test", follow_redirects=False)


@pytest.mark.parametrize("path", ["/", "/devices/camera-01", "/login", "/static/page.js", "/nope"])
def test_every_answer_forbids_what_pages_do_not_need(local: TestClient, path: str) -> None:
    headers = local.get(path, headers=HTML).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_pages_have_nothing_inline(local: TestClient) -> None:
    for path in ("/", "/devices/camera-01", "/login"):
        html = local.get(path).text
        assert "<script>" not in html
        assert " style=" not in html
        assert " onclick" not in html
        assert "http://" not in html.replace("http://www.w3.org", "")
        assert "https://" not in html


def test_unknown_addresses_get_a_page_or_json(local: TestClient) -> None:
    for path in ("/nope", "/devices/no-such-device", "/devices/Bad%20Name%2F", "/static/nope"):
        answer = local.get(path, headers=HTML)
        assert answer.status_code == 404
        assert "There is no such page" in answer.text
        assert 'href="/"' in answer.text
    answer = local.get("/api/v1/nope", headers=HTML)
    assert answer.status_code == 404
    assert not answer.text.startswith("<!doctype")


@pytest.mark.parametrize(
    "query",
    ["status=nonsense", "after=%F0%9F%92%A9", "text=" + "x" * 5000, "text=%00", "release=%27%3B--",
     "status=ok&status=late&after=zzz", "&".join(f"a{i}=1" for i in range(15))],
)  # fmt: skip
def test_addresses_that_make_no_sense_still_show_the_fleet(local: TestClient, query: str) -> None:
    answer = local.get(f"/?{query}", headers=HTML)
    assert answer.status_code == 200
    assert "<h1>Fleet</h1>" in answer.text


def test_too_many_fields_are_not_read(local: TestClient) -> None:
    answer = local.get("/?" + "&".join(f"a{i}=1" for i in range(50)), headers=HTML)
    assert answer.status_code == 200


def test_view_of_an_address() -> None:
    view = fleet_view("status=late&text=%20cam%20&after=b")
    assert (view.status, view.text, view.after, view.is_filtered) == ("late", "cam", "b", True)
    assert not fleet_view("status=nonsense").is_filtered


def test_beyond_this_machine_only_who_is_logged_in_sees_anything(remote: TestClient) -> None:
    for path in ("/", "/devices/camera-01"):
        answer = remote.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    with pytest.raises(WebSocketDisconnect), remote.websocket_connect("wss://hub.test/live"):
        pass
    wrong = remote.post("/login", data={"token": "wrong"})
    assert wrong.status_code == 401
    assert "token is wrong" in wrong.text

    right = remote.post("/login", data={"token": TOKEN})
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "secure"))
    assert TOKEN not in cookie
    assert "camera-01" in remote.get("/").text


def test_the_token_itself_shows_pages_too(remote: TestClient) -> None:
    answer = remote.get("/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200


def test_other_sites_can_neither_log_in_nor_listen(local: TestClient, remote: TestClient) -> None:
    foreign = {"Origin": "https://evil.test"}
    assert remote.post("/login", data={"token": TOKEN}, headers=foreign).status_code == 403
    url = "ws://127.0.0.1/live"
    with pytest.raises(WebSocketDisconnect), local.websocket_connect(url, headers=foreign):
        pass


def test_a_login_that_is_too_long_is_refused(remote: TestClient) -> None:
    assert remote.post("/login", data={"token": "x" * 10_000}).status_code == 413


def test_socket_sends_what_the_page_shows_and_then_what_changed(
    local: TestClient, live: Live, filled: Filler
) -> None:
    with local.websocket_connect("ws://127.0.0.1/live") as socket:
        socket.send_text("/?text=sensor-00")
        assert set(json.loads(socket.receive_text())["parts"]) == {"tiles", "listing"}
        assert live.pages == 1
        filled.answer("sensor-004", 31)
        live.changed("sensor-004")
        parts = json.loads(socket.receive_text())["parts"]
        assert set(parts) == {"row-sensor-004"}
        assert "31" in parts["row-sensor-004"]
        # Another page, over the same socket.
        socket.send_text("/devices/camera-01")
        assert "device-latency" in json.loads(socket.receive_text())["parts"]
    assert live.pages == 0


@pytest.mark.parametrize(
    "address", ["/login", "/devices/no-such-device", "x" * 5000, "http://[", ""]
)
def test_socket_of_a_page_without_live_parts_is_closed(local: TestClient, address: str) -> None:
    with local.websocket_connect("ws://127.0.0.1/live") as socket:
        socket.send_text(address)
        with pytest.raises(WebSocketDisconnect):
            socket.receive_text()


def test_snapshot_of_a_device_concerns_that_device_only(queries: Queries) -> None:
    pages = Pages(queries, "test-fleet", "0.1.0")
    device, fleet = pages.snapshot("/devices/camera-01"), pages.snapshot("/")
    assert device is not None
    assert fleet is not None
    assert device.devices == {"camera-01"}
    assert fleet.devices is None
    assert len([name for name in fleet.parts if name.startswith("row-")]) == 50
