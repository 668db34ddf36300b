"""Connections of the local API: keep-alive, bounds, hostile and slow clients."""

from __future__ import annotations

import http.client
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from device_agent.errors import ServingError
from device_agent.serving.http import Bounds, HttpServer
from device_agent.serving.http1 import MAX_HEAD_BYTES, Head, Response, json_response
from tests.support.local_api import EchoWorker, Served

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(port: int) -> socket.socket:
    end = socket.create_connection(("127.0.0.1", port), 30)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end


def read_all(end: socket.socket) -> bytes:
    data = b""
    while chunk := end.recv(65536):
        data += chunk
    return data


def read_answer(end: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(end)
    response.begin()
    return response.status, response.read()


@contextmanager
def serving(tmp_path: Path, bounds: Bounds) -> Iterator[HttpServer]:
    """Serve the length of every body."""

    def answer(head: Head, body: memoryview, arrived_s: float) -> Response:
        return json_response(200, {"path": head.path, "bytes": len(body)})

    with HttpServer(answer, port=0, socket_path=tmp_path / "s", bounds=bounds) as server:
        yield server


def test_one_connection_serves_many_requests(served: Served) -> None:
    with connect(served.server.port) as end:
        for _ in range(3):
            end.sendall(LIVE)
            assert read_answer(end) == (200, b'{"live":true}')


def test_requests_sent_together_are_answered_in_turn(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds()) as server, connect(server.port) as end:
        posts = [
            b"POST /%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
            % (n, n, b"x" * n)
            for n in (3, 0, 5)
        ]
        posts.append(b"GET /end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        end.sendall(b"".join(posts))
        data = read_all(end)
    assert [f'{{"path":"/{n}","bytes":{n}}}'.encode() in data for n in (3, 0, 5)] == [True] * 3
    assert data.count(b"HTTP/1.1 200 OK") == 4


def test_head_and_body_may_come_in_pieces(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds()) as server, connect(server.port) as end:
        for piece in (b"POST /a HT", b"TP/1.1\r\nHost: localhost\r", b"\nContent-Length: 4\r\n\r",
                      b"\nab", b"c", b"d"):  # fmt: skip
            end.sendall(piece)
        assert read_answer(end) == (200, b'{"path":"/a","bytes":4}')


def test_client_that_waits_for_continue(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds()) as server, connect(server.port) as end:
        end.sendall(b"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
                    b"Expect: 100-continue\r\n\r\n")  # fmt: skip
        assert end.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        end.sendall(b"ab")
        assert read_answer(end) == (200, b'{"path":"/a","bytes":2}')


def test_http_1_0_closes(served: Served) -> None:
    with connect(served.server.port) as end:
        end.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        data = read_all(end)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in data


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA : b\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: b\nc: d\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
         400),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x10\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 411),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         411),
        (b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
        ((b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
          b"Content-Encoding: gzip\r\n\r\nabcde"), 415),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 2 * MAX_HEAD_BYTES + b"\r\n\r\n",
         431),
        (b"G" * 3 * MAX_HEAD_BYTES, 431),
    ],
)  # fmt: skip
def test_request_that_is_not_taken(served: Served, request_bytes: bytes, status: int) -> None:
    with connect(served.server.port) as end:
        end.sendall(request_bytes)
        data = read_all(end)
        assert data.startswith(f"HTTP/1.1 {status} ".encode()), data[:200]
        assert b'"error":' in data
        assert b"Connection: close" in data
    with served.client() as client:
        assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({"Host": "localhost:1234"}, True),
        ({"Host": "127.0.0.1"}, True),
        ({"Host": "[::1]:80"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "localhost.evil.example"}, False),
        ({"Host": "127.0.0.1.evil.example"}, False),
        ({"Host": "localhost@evil.example"}, False),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, True),
        ({"Host": "localhost", "Origin": "https://evil.example"}, False),
        ({"Host": "localhost", "Origin": "null"}, False),
    ],
)
def test_other_sites_are_kept_out(served: Served, headers: dict[str, str], is_let_in: bool) -> None:
    """A page of another site can make a browser ask; by DNS rebinding even under its own name."""
    with served.client() as client:
        response = client.get("/v2/health/live", headers=headers)
    assert response.status_code == (200 if is_let_in else 403)


def test_unix_socket_takes_any_host_name(served: Served) -> None:
    with served.unix_client() as client:
        assert client.get("/v2/health/live").status_code == 200


def test_body_over_its_bound(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds(max_body_bytes=1000)) as server:
        url = f"http://127.0.0.1:{server.port}/a"
        assert httpx.post(url, content=b"x" * 1000).json()["bytes"] == 1000
        response = httpx.post(url, content=b"x" * 1001)
        assert (response.status_code, response.json()["code"]) == (413, "too-large")


def test_bodies_of_all_connections_have_a_bound(tmp_path: Path) -> None:
    bounds = Bounds(max_body_bytes=1000, max_all_bodies_bytes=1500)
    with serving(tmp_path, bounds) as server, connect(server.port) as holder:
        holder.sendall(b"POST /a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                       b"Content-Length: 1000\r\n\r\n")  # fmt: skip
        assert holder.recv(100).startswith(b"HTTP/1.1 100")
        url = f"http://127.0.0.1:{server.port}/b"
        response = httpx.post(url, content=b"x" * 600)
        assert (response.status_code, response.json()["code"]) == (503, "busy")
        holder.sendall(b"x" * 1000)
        assert read_answer(holder)[0] == 200
        assert httpx.post(url, content=b"x" * 600).status_code == 200


def test_largest_body_has_room_when_it_is_alone(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds(max_body_bytes=1000, max_all_bodies_bytes=10)) as server:
        response = httpx.post(f"http://127.0.0.1:{server.port}/a", content=b"x" * 1000)
        assert response.json()["bytes"] == 1000


def test_slow_head_is_ended(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds(head_s=0.2)) as server, connect(server.port) as end:
        end.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert read_all(end) == b""


def test_slow_body_is_ended(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds(body_s=0.2)) as server, connect(server.port) as end:
        end.sendall(b"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        assert read_all(end) == b""


def test_idle_connection_is_ended(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds(idle_s=0.2)) as server, connect(server.port) as end:
        assert read_all(end) == b""


def test_client_that_does_not_read_is_given_up(tmp_path: Path) -> None:
    def answer(head: Head, body: memoryview, arrived_s: float) -> Response:
        return Response(200, [b"x" * (64 * 2**20 if head.path == "/big" else 1)])

    bounds = Bounds(write_s=0.3, max_connections=1)
    with (
        HttpServer(answer, port=0, socket_path=tmp_path / "s", bounds=bounds) as server,
        connect(server.port) as lazy,
    ):
        lazy.sendall(LIVE.replace(b"/v2/health/live", b"/big"))
        # Until its thread is gone, there is no room for another.
        while httpx.get(f"http://127.0.0.1:{server.port}/").status_code == 503:
            pass


def test_connections_have_a_bound(tmp_path: Path) -> None:
    with (
        serving(tmp_path, Bounds(max_connections=2)) as server,
        connect(server.port) as one,
        connect(server.port) as two,
    ):
        for end in (one, two):
            end.sendall(LIVE)
            assert read_answer(end)[0] == 200
        with connect(server.port) as three:
            assert b'"code":"busy"' in read_all(three)
        one.sendall(LIVE)
        assert read_answer(one)[0] == 200


def test_port_in_use(tmp_path: Path, served: Served) -> None:
    with pytest.raises(ServingError, match="cannot listen") as raised:
        HttpServer(lambda *_: Response(200), port=served.server.port, socket_path=tmp_path / "t")
    assert "serving.port" in raised.value.hint


def test_unix_socket_of_a_running_agent_is_not_taken(served: Served) -> None:
    with pytest.raises(ServingError, match="another agent"):
        HttpServer(lambda *_: Response(200), port=0, socket_path=served.socket_path)
    with served.unix_client() as client:
        assert client.get("/v2/health/live").status_code == 200


def test_unix_socket_of_a_dead_agent_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with HttpServer(lambda *_: Response(204), port=0, socket_path=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


def test_unix_socket_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="at most 107 bytes"):
        HttpServer(lambda *_: Response(200), port=0, socket_path=tmp_path / ("s" * 120))


def test_only_loopback_is_listened_on(served: Served) -> None:
    address = served.server._tcp.getsockname()
    assert address[0] == "127.0.0.1"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_close_ends_idle_connections_and_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_files()
    with serving(tmp_path, Bounds()) as server:
        end = connect(server.port)
        end.sendall(LIVE)
        assert read_answer(end)[0] == 200
    with end:
        assert end.recv(10) == b""
    server.close()
    assert open_files() == before


def test_client_that_goes_away_in_the_middle(served: Served, echo: EchoWorker) -> None:
    for half in (
        b"POST /v2/models/tiny/infer HTTP/1.1\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nabc",
    ):
        with connect(served.server.port) as end:
            end.sendall(half)
    with served.client() as client:
        assert client.get("/v2/health/live").status_code == 200
