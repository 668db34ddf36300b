from __future__ import annotations

import json
from pathlib import Path

import pytest

from aid_edge.cli.main import run
from aid_edge.home import Home
from aid_edge.hub.serve import RunningHub
from tests.support.running_hubs import obedient_device

Capture = pytest.CaptureFixture[str]


def test_rollback_goes_back_and_then_further(
    hub_home: Home, hub: RunningHub, tmp_path: Path, capsys: Capture
) -> None:
    with obedient_device(hub_home, hub, "one", tmp_path / "ids"):
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            assert run(["deploy", f"digits@{version}", "--to", "one", "--wait", "20"]) == 0
        capsys.readouterr()
        for expected in ("1.1.0", "1.0.0"):
            assert run(["rollback", "--to", "one", "--wait", "20", "--json"]) == 0
            (row,) = json.loads(capsys.readouterr().out)["devices"]
            assert (row["release"], row["outcome"]) == (f"digits@{expected}", "done")
        assert run(["rollback", "--to", "one"]) == 1
        assert "no release to go back to" in capsys.readouterr().err


def test_dry_run_says_where_it_would_go(
    hub_home: Home, hub: RunningHub, tmp_path: Path, capsys: Capture
) -> None:
    with obedient_device(hub_home, hub, "one", tmp_path / "ids"):
        for version in ("1.0.0", "1.1.0"):
            run(["deploy", f"digits@{version}", "--to", "one", "--wait", "20"])
        capsys.readouterr()
        assert run(["rollback", "--all", "--dry-run"]) == 0
        told = capsys.readouterr()
        assert "would be told digits@1.0.0, revision 3 (was digits@1.1.0)" in told.err
        summary = hub.services.queries.summary("one")
        assert summary is not None
        assert summary.desired == "digits@1.1.0"


def test_rollback_of_nobody_is_a_usage_error(hub_home: Home, capsys: Capture) -> None:
    assert run(["rollback"]) == 2
    assert "--to" in capsys.readouterr().err
