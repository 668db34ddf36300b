from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aid_edge.errors import UsageError
from aid_edge.home import Home
from aid_edge.hub.queries import MAX_PAGE, Queries
from aid_edge.hub.rows import DeviceFilter
from aid_edge.hub.store import Store, register_device
from device_agent.contract.errors import MalformedMessageError
from device_agent.contract.messages import (
    Birth,
    ModelWindow,
    Outcomes,
    ReleaseRef,
    Reported,
    SlotReport,
    Telemetry,
)
from device_agent.contract.sketch import Sketch, bucket_of
from tests.aid_edge.hub.conftest import Clock

BOOT = "1" * 32
Registered = Callable[..., str]


@pytest.fixture
def device(store: Store, registered: Registered, clock: Clock) -> str:
    """A device that is online, runs nothing and should run nothing."""
    registered("cam-1")
    with store.transaction() as transaction:
        transaction.birth(
            "cam-1",
            Birth(
                boot_id=BOOT,
                connection=1,
                machine_id="a" * 32,
                agent_version="1",
                profile="generic-x86_64",
            ),
            clock(),
        )
        transaction.seen({"cam-1": clock()})
    return "cam-1"


def _window(release: ReleaseRef, start: float, **changes: Any) -> ModelWindow:
    facts: dict[str, Any] = {
        "outcomes": Outcomes(ok=2),
        "latency": {"total": Sketch({bucket_of(0.1): 2}, 0.2), "queue": Sketch()},
        "classes": {"1": 2},
        "confidence": (0,) * 9 + (2,),
    }
    return ModelWindow(release=release, start_unix_s=start, duration_s=10, **{**facts, **changes})


def _tell(store: Store, device: str, *windows: ModelWindow, now: float) -> None:
    with store.transaction() as transaction:
        transaction.telemetry(device, Telemetry(boot_id=BOOT, seq=1, windows=windows), now)


def _report(store: Store, device: str, **facts: Any) -> None:
    names = ("state", "release", "reason") if "state" in facts else ()
    slot = {k: facts.pop(k) for k in names if k in facts}
    slots = (SlotReport(slot="active", **slot),) if slot else ()
    with store.transaction() as transaction:
        transaction.reported(
            device, Reported(**{"boot_id": BOOT, "revision": 0, "slots": slots, **facts})
        )


def _status(queries: Queries, device: str) -> str:
    summary = queries.summary(device)
    assert summary is not None
    listed = queries.devices(DeviceFilter(status=(summary.status,)))
    assert [d.device for d in listed.devices] == [device]
    assert queries.counts().statuses[summary.status] == 1
    return summary.status


RELEASE = ReleaseRef("digits", "1.0.0", "sha256:" + "5" * 64)


def test_status_is_what_matters_most(
    store: Store, queries: Queries, device: str, clock: Clock
) -> None:
    assert _status(queries, device) == "ok"
    _report(store, device, state="fetching")
    assert _status(queries, device) == "updating"
    _report(store, device, state="failed", reason="out of memory")
    assert _status(queries, device) == "failed"
    _report(store, device, revision=3, accepted=False, reason="expired")
    assert _status(queries, device) == "failed"
    _report(store, device, state="active", release=RELEASE)
    assert _status(queries, device) == "ok"
    _tell(
        store, device, _window(RELEASE, clock(), outcomes=Outcomes(ok=90, deadline=10)), now=clock()
    )
    assert _status(queries, device) == "late"
    _tell(store, device, _window(RELEASE, clock(), outcomes=Outcomes(error=10)), now=clock())
    assert _status(queries, device) == "degraded"
    clock.now += 30.5
    assert _status(queries, device) == "offline"


def test_silence_is_measured_in_the_device_s_own_interval(
    store: Store, queries: Queries, device: str, clock: Clock
) -> None:
    with store.transaction() as transaction:
        transaction.birth(
            device,
            Birth(
                boot_id=BOOT,
                connection=2,
                machine_id="a" * 32,
                agent_version="1",
                profile="generic-x86_64",
                reporting_interval_s=600.0,
            ),
            clock(),
        )
    clock.now += 1799
    assert _status(queries, device) == "ok"
    clock.now += 2
    assert _status(queries, device) == "offline"


def test_windows_are_merged_into_histogram_series_and_classes(
    store: Store,
    queries: Queries,
    device: str,
    clock: Clock,
    release: Callable[..., str],
) -> None:
    ref = ReleaseRef("digits", "1.0.0", release())
    _report(store, device, state="active", release=ref)
    slow = {"total": Sketch({bucket_of(0.8): 1}, 0.8)}
    _tell(
        store,
        device,
        _window(ref, clock() - 150),
        _window(ref, clock() - 30),
        _window(ref, clock() - 28, latency=slow, outcomes=Outcomes(ok=1), classes={"0": 1, "7": 1}),
        now=clock(),
    )
    detail = queries.device(device)
    assert detail is not None
    assert [b.count for b in detail.histogram] == [4, 1]
    assert all(b.low_s < b.high_s for b in detail.histogram)
    assert sum(p.requests for p in detail.series) == 5
    assert [p.start_unix_s % 60 for p in detail.series] == [0] * len(detail.series)
    assert len(detail.series) >= 2
    # Labels come from the release's own file: index 1 is "one"; 7 has none.
    assert [(c.index, c.label, c.count) for c in detail.classes] == [
        ("1", "one", 4),
        ("0", "zero", 1),
        ("7", "", 1),
    ]
    assert detail.confidence == (0,) * 9 + (6,)
    assert detail.summary.p50_s == pytest.approx(0.1, rel=0.03)


def test_only_the_last_day_counts(
    store: Store, queries: Queries, device: str, clock: Clock
) -> None:
    _tell(store, device, _window(RELEASE, clock() - 30 * 3600), now=clock())
    _tell(store, device, _window(RELEASE, clock() - 60), now=clock())
    summary = queries.summary(device)
    assert summary is not None
    assert summary.requests == 2


@pytest.mark.parametrize("start", [0.0, 4e9])
def test_window_stamped_by_a_wrong_clock_counts_as_now(
    store: Store, queries: Queries, device: str, clock: Clock, start: float
) -> None:
    _tell(store, device, _window(RELEASE, start), now=clock())
    summary = queries.summary(device)
    assert summary is not None
    assert summary.requests == 2


def test_old_windows_events_and_conflicts_are_dropped(
    store: Store, queries: Queries, device: str, clock: Clock
) -> None:
    _tell(store, device, _window(RELEASE, clock()), now=clock())
    clock.now += 100 * 24 * 3600
    with store.transaction() as transaction:
        transaction.prune(clock())
    rows = store._connection.execute("SELECT count(*) FROM usage_window").fetchone()
    assert rows[0] == 0


def test_fleet_of_many_is_paged_without_gaps(store: Store, queries: Queries) -> None:
    names = [f"d{i:04d}" for i in range(450)]
    with store.transaction() as transaction:
        for name in names:
            transaction.register(name, "p", "", 0.0)
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = queries.devices(after=after, limit=MAX_PAGE)
        found += [d.device for d in page.devices]
        after = page.next
    assert found == names
    assert queries.device_ids() == tuple(names)


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
def test_page_of_no_size_is_refused(queries: Queries, limit: int) -> None:
    with pytest.raises(UsageError):
        queries.devices(limit=limit)


def test_absent_device_is_none(queries: Queries) -> None:
    assert queries.device("nobody") is None
    assert queries.summary("nobody") is None


def test_registering_again_changes_profile_and_seed(home: Home, queries: Queries) -> None:
    register_device(home, "cam-1", "generic-x86_64", "one")
    register_device(home, "cam-1", "raspberry-pi-4", "two")
    detail = queries.device("cam-1")
    assert detail is not None
    assert (detail.summary.profile, detail.seed) == ("raspberry-pi-4", "two")


@pytest.mark.parametrize("name", ["hub", "cast", "Upper", "a/b", "", "a\n"])
def test_name_that_no_device_can_have_is_refused(home: Home, name: str) -> None:
    with pytest.raises((UsageError, MalformedMessageError)):
        register_device(home, name, "generic-x86_64", "")
