from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from aid_edge.catalogue.create import create_home
from aid_edge.home import Home

NOW = dt.datetime(2026, 11, 23, 7, 0, tzinfo=dt.UTC)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(tmp_path / "home", "test-fleet", now=NOW)


@pytest.fixture(scope="session")
def wheel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all bundles of a run, so that each wheel is downloaded once."""
    return tmp_path_factory.mktemp("wheels")
