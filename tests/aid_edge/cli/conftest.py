"""A running hub with published releases, for the verbs that talk to one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from aid_edge.catalogue.create import create_home
from aid_edge.home import Home
from aid_edge.hub.serve import RunningHub
from tests.support.releases import make_draft, publish
from tests.support.running_hubs import hub_of


@pytest.fixture
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home with digits 1.0.0 to 1.2.0, which is the one that verbs take."""
    now = dt.datetime.now(dt.UTC)
    home = create_home(tmp_path / "home", "fleet-a", now=now)
    drafts = [make_draft(tmp_path / f"draft-{i}", version=f"1.{i}.0", seed=i) for i in range(3)]
    for draft in drafts:
        publish(home, [draft], now=now)
    monkeypatch.setenv("AID_EDGE_HOME", str(home.path))
    return home


@pytest.fixture
def hub(hub_home: Home) -> Iterator[RunningHub]:
    """The hub of ``hub_home``, running."""
    with hub_of(hub_home) as running:
        yield running
