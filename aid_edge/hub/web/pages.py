"""What the pages show: queries in, HTML out. Pages and live updates render the same templates."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import jinja2
from markupsafe import Markup

from aid_edge.hub.live import Snapshot
from aid_edge.hub.queries import DEFAULT_PAGE, Queries
from aid_edge.hub.rows import (
    STATUSES,
    DeviceDetail,
    DeviceFilter,
    DevicePage,
    FleetCounts,
    Status,
)
from aid_edge.hub.web import charts, texts
from device_agent.contract.errors import AidError
from device_agent.contract.names import IDENTIFIER_PATTERN

MAX_TEXT_CHARACTERS = 100
MAX_RELEASE_CHARACTERS = 130
MAX_FIELDS = 20
COUNTS_AGE_S = 1.0
"""How old the status tiles may be: counting reads every device."""
MAX_CLASSES = 20
"""Classes shown; the others are summed up in one line."""
DEVICE_PATH = "/devices/"
_IDENTIFIER = re.compile(IDENTIFIER_PATTERN)


@dataclass(frozen=True)
class FleetView:
    """What the address of the fleet page says."""

    status: Status | None = None
    text: str = ""
    release: str = ""
    after: str = ""

    @property
    def filter(self) -> DeviceFilter:
        """The devices that are chosen."""
        status: tuple[Status, ...] = (self.status,) if self.status else ()
        return DeviceFilter(status=status, text=self.text, release=self.release)

    @property
    def is_filtered(self) -> bool:
        """Whether not all devices are chosen."""
        return bool(self.status or self.text or self.release)


def fleet_view(query: str) -> FleetView:
    """Return what the query string of the fleet page says; what makes no sense is left out."""
    try:
        values = parse_qs(query, max_num_fields=MAX_FIELDS)
    except ValueError:
        values = {}

    def first(name: str, most: int) -> str:
        return values.get(name, [""])[0].strip()[:most]

    wanted = first("status", 20)
    return FleetView(
        status=next((s for s in STATUSES if s == wanted), None),
        text=first("text", MAX_TEXT_CHARACTERS),
        release=first("release", MAX_RELEASE_CHARACTERS),
        after=first("after", 63),
    )


class Pages:
    """Renders the pages of one fleet.

    Args:
        queries: Reads of the hub's database.
        fleet: Name of the fleet.
        version: Version of the program.
        clock: Present time in seconds since 1970.
    """

    def __init__(
        self,
        queries: Queries,
        fleet: str,
        version: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._queries = queries
        self._clock = clock
        self._counts: FleetCounts | None = None
        self._counted_at = 0.0
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("aid_edge.hub.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(
            fleet=fleet, version=version, statuses=STATUSES, meanings=texts.STATUS_MEANINGS
        )
        self._templates.filters.update(
            sign=texts.sign,
            duration=texts.duration,
            count=texts.count,
            size=texts.size,
            moment=texts.moment,
            iso=texts.iso,
            short=texts.short_digest,
            id=_element_id,
            part=lambda value: quote(value, safe=""),
        )

    def fleet(self, view: FleetView) -> str:
        """Return the fleet page."""
        page = self._queries.devices(view.filter, after=view.after)
        problem = ""
        try:
            releases = sorted({f"{r.name}@{r.version}" for r in self._queries.releases()})
        except AidError as e:
            # The catalogue is altered or unreadable: said on the page, and devices are shown.
            problem, releases = str(e), []
        if view.release and view.release not in releases:
            releases.append(view.release)
        values = self._fleet_values(view, page)
        return self._render("fleet.html", **values, releases=releases, problem=problem)

    def device(self, device: str) -> str | None:
        """Return the page of ``device``, or None when there is no such device."""
        detail = self._detail(device)
        return None if detail is None else self._render("device.html", **self._values(detail))

    def login(self, problem: str = "") -> str:
        """Return the page that asks for the token."""
        return self._render("login.html", problem=problem)

    def error(self, title: str, text: str) -> str:
        """Return a page that says that something went wrong."""
        return self._render("error.html", title=title, text=text)

    def snapshot(self, address: str) -> Snapshot | None:
        """Return what the page at ``address`` (path and query) shows, or None for other pages."""
        try:
            parts = urlsplit(address)
            if parts.path == "/":
                return self._fleet_snapshot(fleet_view(parts.query))
        except ValueError:
            return None
        if parts.path.startswith(DEVICE_PATH):
            return self._device_snapshot(parts.path.removeprefix(DEVICE_PATH))
        return None

    def _fleet_snapshot(self, view: FleetView) -> Snapshot:
        page = self._queries.devices(view.filter, after=view.after)
        values = self._fleet_values(view, page)
        tiles = self._render("_tiles.html", **values)
        rows = {
            _element_id(f"row-{row.device}"): self._render("_row.html", row=row, **self._times())
            for row in page.devices
        }
        return Snapshot(
            shape=(view, page.next is None, tuple(rows), bool(values["conflicts"])),
            whole={"tiles": tiles, "listing": self._render("_listing.html", **values)},
            parts={"tiles": tiles, **rows},
        )

    def _device_snapshot(self, device: str) -> Snapshot | None:
        detail = self._detail(device)
        if detail is None:
            return None
        values = self._values(detail)
        names = ("head", "facts", "slots", "latency", "answers", "updates", "events", "feedback")
        parts = {f"device-{name}": self._render(f"_{name}.html", **values) for name in names}
        return Snapshot(
            shape=device, whole=parts, parts=parts, devices=frozenset({detail.summary.device})
        )

    def _fleet_values(self, view: FleetView, page: DevicePage) -> dict[str, Any]:
        def address(**changes: str) -> str:
            kept = {"status": view.status or "", "text": view.text, "release": view.release}
            query = urlencode({k: v for k, v in {**kept, **changes}.items() if v})
            return f"/?{query}" if query else "/"

        return {
            "view": view,
            "page": page,
            "counts": self._cached_counts(),
            "address": address,
            "page_size": DEFAULT_PAGE,
            "conflicts": [row for row in page.devices if row.conflict],
            **self._times(),
        }

    def _values(self, detail: DeviceDetail) -> dict[str, Any]:
        row = detail.summary
        marks = (("p50", row.p50_s), ("p95", row.p95_s), ("deadline", detail.deadline_s))
        shown = detail.classes[:MAX_CLASSES]
        return {
            "device": detail,
            "row": row,
            "latency": charts.latency_chart(detail.histogram, marks),
            "latency_rows": charts.merge_buckets(detail.histogram, charts.MAX_BARS)
            if detail.histogram
            else [],
            "confidence": charts.share_chart(detail.confidence),
            "series": _series(detail),
            "classes": shown,
            "answers": sum(c.count for c in detail.classes),
            "other_answers": sum(c.count for c in detail.classes[len(shown) :]),
            "other_classes": len(detail.classes) - len(shown),
            "share": texts.share,
            **self._times(),
        }

    def _detail(self, device: str) -> DeviceDetail | None:
        return self._queries.device(device) if _IDENTIFIER.fullmatch(device) else None

    def _cached_counts(self) -> FleetCounts:
        now = time.monotonic()
        if self._counts is None or now - self._counted_at > COUNTS_AGE_S:
            self._counts, self._counted_at = self._queries.counts(), now
        return self._counts

    def _times(self) -> dict[str, Any]:
        now = self._clock()

        def when(unix_s: float | None) -> Markup:
            """Return a relative time, with the absolute one as its title."""
            if unix_s is None:
                return Markup("never")
            return Markup('<time datetime="{}" title="{}">{}</time>').format(
                texts.iso(unix_s), texts.moment(unix_s), texts.ago(unix_s, now)
            )

        return {"when": when}

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)


def _element_id(text: str) -> str:
    """Return an id for an element that needs no escaping in a selector, one for each ``text``."""
    return re.sub(r"[^a-z0-9-]", lambda m: f"_{ord(m[0]):x}_", text)


def _series(detail: DeviceDetail) -> str:
    """Return the columns that uPlot draws: seconds since 1970, p50 and p95 in milliseconds."""

    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else round(seconds * 1e3, 4)

    points = detail.series
    return json.dumps(
        [
            [p.start_unix_s for p in points],
            [ms(p.p50_s) for p in points],
            [ms(p.p95_s) for p in points],
        ]
    )
