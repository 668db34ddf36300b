"""A hub's database filled by the hub's own writes, and its web view on a free port."""

from __future__ import annotations

import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from aid_edge.hub.auth import Guard
from aid_edge.hub.live import Live
from aid_edge.hub.queries import Queries
from aid_edge.hub.rows import PublishedRelease
from aid_edge.hub.store import Store
from aid_edge.hub.web.routes import mount
from device_agent.contract.messages import (
    Birth,
    Event,
    Feedback,
    ModelWindow,
    Outcomes,
    ReleaseRef,
    Reported,
    SlotReport,
    SpoolState,
    Telemetry,
)
from device_agent.contract.sketch import Sketch, bucket_of

TOKEN = "t" * 43
NEW = ReleaseRef("efficientnet-lite0", "1.1.0", "sha256:" + "b" * 64)
OLD = ReleaseRef("efficientnet-lite0", "1.0.0", "sha256:" + "a" * 64)
LABELS = ("cat", "dog", "coffee mug", "bicycle", "<b>bold</b>")
FLEET_SIZE = 120
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Catalogue:
    """The releases of the tests."""

    def published(self) -> Sequence[PublishedRelease]:
        return [
            PublishedRelease(
                name=r.name,
                version=r.version,
                profile="generic-x86_64",
                digest=r.digest,
                counter=i + 1,
                runtime="onnx_runtime",
                size_bytes=5_000_000,
            )
            for i, r in enumerate((OLD, NEW))
        ]

    def labels(self, digest: str) -> Sequence[str]:
        return LABELS if digest in {OLD.digest, NEW.digest} else ()

    def deadline_s(self, digest: str) -> float | None:
        return 0.25 if digest in {OLD.digest, NEW.digest} else None


def boot(device: str) -> str:
    return device.encode().hex().ljust(32, "0")[:32]


class Filler:
    """Writes what a hub's ingest would."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.random = random.Random(7)
        self.sequence = 0

    def connect(self, device: str, release: ReleaseRef | None = NEW, *, age_s: float = 2) -> None:
        now = time.time() - age_s
        slots: tuple[SlotReport, ...] = ()
        if release:
            slots = (SlotReport(slot="active", state="active", release=release),)
        with self.store.transaction() as t:
            t.register(device, "generic-x86_64", f"seed-{device}", now - 3600)
            t.birth(
                device,
                Birth(
                    boot_id=boot(device),
                    connection=1,
                    machine_id=boot(device),
                    agent_version="0.1.0",
                    profile="generic-x86_64",
                    runtimes={"onnx_runtime": "1.32.0"},
                    protections=("rlimits", "bubblewrap"),
                    seed_applied=f"seed-{device}",
                    # Not offline before the tests are over, however slow the machine is.
                    reporting_interval_s=600,
                ),
                now,
            )
            t.reported(device, Reported(boot_id=boot(device), revision=0, slots=slots))
            t.seen({device: now})

    def answer(
        self,
        device: str,
        requests: int,
        *,
        median_s: float = 0.012,
        late: int = 0,
        minutes_ago: float = 0,
    ) -> None:
        times = [self.random.lognormvariate(0, 0.35) * median_s for _ in range(requests)]
        counts: dict[int, int] = {}
        for seconds in times:
            counts[bucket_of(seconds)] = counts.get(bucket_of(seconds), 0) + 1
        self.sequence += 1
        start = time.time() - 60 * minutes_ago - 10
        window = ModelWindow(
            release=NEW,
            start_unix_s=start,
            duration_s=10,
            outcomes=Outcomes(ok=requests - late, deadline=late),
            latency={"total": Sketch(counts, sum(times))},
            classes={str(i): max(1, requests // (i + 1)) for i in range(len(LABELS))},
            confidence=tuple(requests // (10 - i) for i in range(10)),
            rss_bytes=80_000_000,
        )
        message = Telemetry(
            boot_id=boot(device),
            seq=self.sequence,
            windows=(window,),
            spool=SpoolState(1, 900),
            temperature_c=51.5,
            memory_available_bytes=2_000_000_000,
        )
        with self.store.transaction() as t:
            t.telemetry(device, message, time.time())

    def say(self, device: str, verdict: str, comment: str = "") -> None:
        self.sequence += 1
        message = Feedback(
            boot_id=boot(device),
            seq=self.sequence,
            at_unix_s=time.time() - 300,
            inference_id="01JDABCDEFGHJKMNPQRSTVWXYZ",
            release=NEW,
            verdict=verdict,  # type: ignore[arg-type]
            predicted="cat",
            confidence=0.62,
            latency_s=0.0131,
            label="dog",
            comment=comment,
        )
        with self.store.transaction() as t:
            t.feedback(device, message, time.time())

    def happen(self, device: str, state: str, detail: str = "") -> None:
        self.sequence += 1
        message = Event(
            boot_id=boot(device),
            seq=self.sequence,
            at_unix_s=time.time() - 1000 + self.sequence,
            kind="deployment",
            state=state,
            release=NEW,
            detail=detail,
        )
        with self.store.transaction() as t:
            t.event(device, message, time.time())

    def fail(self, device: str, reason: str) -> None:
        slots = (
            SlotReport(slot="active", state="active", release=OLD),
            SlotReport(slot="candidate", state="failed", release=NEW, reason=reason),
        )
        with self.store.transaction() as t:
            t.reported(
                device,
                Reported(
                    boot_id=boot(device), revision=0, accepted=False, reason=reason, slots=slots
                ),
            )


@dataclass(frozen=True)
class Site:
    """A web view that serves."""

    url: str
    filler: Filler
    live: Live


def fill(filler: Filler) -> None:
    """A fleet with every status that the tests look for."""
    for number in range(FLEET_SIZE):
        name = f"sensor-{number:03d}"
        filler.connect(name, age_s=5000 if number % 10 == 3 else 2)
    filler.connect("camera-01")
    for minutes in range(180, 0, -5):
        filler.answer(
            "camera-01", 40, median_s=0.011 + 0.00002 * minutes, minutes_ago=minutes, late=1
        )
    filler.say("camera-01", "wrong", "It was <script>alert(1)</script> my dog.")
    filler.say("camera-01", "right")
    for state in ("fetching", "verifying", "proving", "activating", "active"):
        filler.happen("camera-01", state, f"now {state}")
    filler.connect("camera-02", OLD)
    filler.fail("camera-02", "proving: output 'logits' differs by 0.31, allowed 0.05")
    with filler.store.transaction() as t:
        t.register("camera-03", "raspberry-pi-4", "seed-3", time.time() - 90)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filler]:
    store = Store(tmp_path_factory.mktemp("hub") / "hub.sqlite")
    filler = Filler(store)
    fill(filler)
    yield filler
    store.close()


def web_app(queries: Queries, live: Live, *, host: str = "127.0.0.1") -> FastAPI:
    app = FastAPI()
    mount(
        app,
        queries=queries,
        live=live,
        guard=Guard(TOKEN, host),
        fleet="test-fleet",
        version="0.1.0",
    )
    return app


@pytest.fixture(scope="module")
def site(filled: Filler) -> Iterator[Site]:
    queries = Queries(filled.store.path, Catalogue())
    live = Live(tick_s=0.1, recheck_s=1.0)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            web_app(queries, live),
            log_config=None,
            ws="websockets-sansio",
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}", filled, live)
        server.should_exit = True
        thread.join()
    queries.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for one module only: Playwright's event loop stands in the way of others."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(path).exists():
        pytest.skip(f"no Chromium at {path} (apt install chromium, or name it in CHROMIUM)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()
