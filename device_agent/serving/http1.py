"""HTTP/1.1 as the local API speaks it: heads parsed and written strictly, no I/O (RFC 9112).

The standard library's server would do, but costs 3 MB of memory for its mail parser, half of the
time that a small request may take, and accepts what should be refused: two lengths, folded lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote

import msgspec

from device_agent.serving.refusals import (
    BadRequestError,
    HeaderTooLargeError,
    LengthRequiredError,
    TooLargeError,
    UnsupportedEncodingError,
)

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 64
HEAD_END = b"\r\n\r\n"

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,2048}) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class Head:
    """Request line and headers; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    is_persistent: bool

    @property
    def wants_continue(self) -> bool:
        """Whether the client waits for an interim answer before it sends the body."""
        return self.headers.get("expect", "").lower() == "100-continue"

    def body_bytes(self, max_bytes: int) -> int:
        """Return the length of the body.

        Raises:
            LengthRequiredError: A body is announced without its length.
            UnsupportedEncodingError: It is compressed.
            BadRequestError: The length is no number.
            TooLargeError: It is over ``max_bytes``.
        """
        if "transfer-encoding" in self.headers:
            raise LengthRequiredError("the body comes in chunks", is_closing=True)
        given = self.headers.get("content-length")
        if given is None:
            if self.method == "POST":
                raise LengthRequiredError("the body's length is not given", is_closing=True)
            return 0
        if not _LENGTH.fullmatch(given):
            raise BadRequestError(f"Content-Length is {given[:40]!r}", is_closing=True)
        if int(given) > max_bytes:
            raise TooLargeError(
                f"the body has {given} bytes; at most {max_bytes} are taken",
                hint="The bound is serving.max_request_bytes of the agent's configuration.",
                is_closing=True,
            )
        encoding = self.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise UnsupportedEncodingError(
                f"the body has Content-Encoding {encoding[:40]!r}", is_closing=True
            )
        return int(given)


@dataclass(frozen=True)
class Response:
    """An answer: the parts of the body are sent one after another, without being copied."""

    status: int
    parts: Sequence[bytes | memoryview] = ()
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    is_closing: bool = False

    def head(self, *, is_persistent: bool) -> bytes:
        """Return status line and headers."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [
            f"Content-Type: {self.content_type}",
            f"Content-Length: {sum(len(p) for p in self.parts)}",
            # What a browser shows of it is data, never a page.
            "X-Content-Type-Options: nosniff",
            "Cache-Control: no-store",
            f"Connection: {'keep-alive' if is_persistent else 'close'}",
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def json_response(
    status: int, document: object, *, headers: Mapping[str, str] | None = None,
    is_closing: bool = False,
) -> Response:  # fmt: skip
    """Return ``document`` as a JSON answer."""
    return Response(
        status, [msgspec.json.encode(document)], headers=headers or {}, is_closing=is_closing
    )


def parse_head(data: bytes) -> Head:
    """Return the head of a request, without the empty line that ends it.

    Raises:
        BadRequestError: It is not one of HTTP/1.x.
        HeaderTooLargeError: It has too many headers.
    """
    first, *rest = data.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequestError("the request line is not one of HTTP/1.1", is_closing=True)
    if len(rest) > MAX_HEADERS:
        raise HeaderTooLargeError(
            f"the request has {len(rest)} headers; at most {MAX_HEADERS} are taken",
            is_closing=True,
        )
    headers: dict[str, str] = {}
    for raw in rest:
        header = _HEADER.fullmatch(raw)
        if header is None:
            raise BadRequestError("a header line is not valid", is_closing=True)
        name = header[1].decode("ascii").lower()
        if name in headers and name in {"content-length", "host", "transfer-encoding"}:
            raise BadRequestError(f"header {name} is there twice", is_closing=True)
        headers[name] = header[2].decode("latin-1").rstrip(" \t")
    is_newer = line[3] == b"1"
    if is_newer and "host" not in headers:
        raise BadRequestError("the header Host is missing", is_closing=True)
    connection = headers.get("connection", "").lower()
    is_persistent = "close" not in connection if is_newer else "keep-alive" in connection
    path = unquote(line[2].decode("ascii").partition("?")[0])
    return Head(line[1].decode("ascii"), path, headers, is_persistent)


_LOOPBACK = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://(.+)", re.IGNORECASE)


def is_local(head: Head) -> bool:
    """Return whether a request was meant for this machine by a program or page of this machine.

    Another site's page can make a browser send requests here: under its own name, by rebinding
    it to 127.0.0.1 (then Host gives it away), or across sites (then Origin does).
    """
    if not _LOOPBACK.fullmatch(head.headers.get("host", "localhost")):
        return False
    origin = head.headers.get("origin")
    if origin is None:
        return True
    parts = _ORIGIN.fullmatch(origin)
    return parts is not None and _LOOPBACK.fullmatch(parts[1]) is not None
