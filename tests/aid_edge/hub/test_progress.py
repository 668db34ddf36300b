from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aid_edge.hub.progress import progress_of
from aid_edge.hub.queries import Queries
from aid_edge.hub.rows import DeviceSummary
from aid_edge.hub.store import Store
from device_agent.contract.messages import Reported, SlotReport

WANTED = "digits@1.1.0"


def summary(**changes: Any) -> DeviceSummary:
    facts: dict[str, Any] = {
        "device": "cam-1",
        "profile": "generic-x86_64",
        "status": "ok",
        "release": "digits@1.0.0",
        "desired": WANTED,
        "revision": 2,
        "desired_revision": 2,
        "accepted": True,
        "deployment_state": "proving",
        "retrying": False,
        "reason": "",
        "p50_s": None,
        "p95_s": None,
        "requests": 0,
        "errors": 0,
        "deadline_misses": 0,
        "rejected": 0,
        "wrong_reports": 0,
        "last_seen_unix_s": 1.0,
        "conflict": "",
    }
    return DeviceSummary(**{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "outcome", "says"),
    [
        ({"revision": 1}, "waiting", "told"),
        ({"revision": 1, "status": "offline"}, "waiting", "offline"),
        ({}, "waiting", "proving"),
        ({"desired_revision": 3}, "failed", "overtaken by revision 3"),
        ({"accepted": False, "reason": "expired"}, "failed", "refused: expired"),
        ({"deployment_state": "failed", "reason": "cosine 0.2"}, "failed", "failed: cosine 0.2"),
        (
            {"deployment_state": "failed", "reason": "disk full", "retrying": True},
            "waiting",
            "failed, and tries again: disk full",
        ),
        ({"deployment_state": "active", "release": WANTED}, "done", f"runs {WANTED}"),
    ],
)
def test_how_far_a_device_is(changes: dict[str, Any], outcome: str, says: str) -> None:
    progress = progress_of(summary(**changes), WANTED, 2)
    assert (progress.outcome, progress.text) == (outcome, says)


def test_what_the_device_tries_again_is_known_from_its_report(
    store: Store, queries: Queries, registered: Callable[..., str]
) -> None:
    device = registered("cam-1")
    for retrying in (True, False):
        slot = SlotReport(slot="active", state="failed", reason="why", retrying=retrying)
        with store.transaction() as transaction:
            transaction.reported(device, Reported(boot_id="0" * 32, revision=1, slots=(slot,)))
        found = queries.summary(device)
        assert found is not None
        assert found.retrying is retrying
