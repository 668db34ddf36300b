"""How python-tuf gets metadata in the trust step: it asks the supervisor, over the pipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface

BASE_URL = "aid://metadata/"
_NOT_FOUND = 404


class SupervisorFetcher(FetcherInterface):
    """Asks ``ask(name, max_bytes)`` for each file.

    "No such file" must be said explicitly (None): it is what ends the walk over root versions.

    Attributes:
        received: The last bytes received under each name.
    """

    def __init__(self, ask: Callable[[str, int], bytes | None]) -> None:
        self._ask = ask
        self._max_bytes = 0
        self.received: dict[str, bytes] = {}

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the file at ``url``; the bound is passed on, so no more need be sent."""
        self._max_bytes = max_length
        return super().download_bytes(url, max_length)

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(BASE_URL)
        data = self._ask(name, self._max_bytes)
        if data is None:
            raise DownloadHTTPError(f"{name} is not to be had", _NOT_FOUND)
        self.received[name] = data
        return iter((data,))
