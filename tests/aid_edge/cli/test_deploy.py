from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from aid_edge.cli.main import run
from aid_edge.home import Home
from aid_edge.hub.serve import RunningHub
from aid_edge.hub.store import register_device
from aid_edge.identity import hub_files
from tests.support.running_hubs import obedient_device

Capture = pytest.CaptureFixture[str]


def test_deploy_waits_until_the_device_runs_it(
    hub_home: Home, hub: RunningHub, tmp_path: Path, capsys: Capture
) -> None:
    with obedient_device(hub_home, hub, "one", tmp_path / "ids"):
        assert run(["deploy", "digits@1.0.0", "--to", "one", "--wait", "20"]) == 0
        told = capsys.readouterr()
        assert told.out == "1 of 1 devices run digits@1.0.0.\n"
        assert "one: told digits@1.0.0, revision 1" in told.err
        assert "one: runs digits@1.0.0" in told.err


def test_deploy_ends_with_5_and_reasons_when_some_devices_fail(
    hub_home: Home, hub: RunningHub, tmp_path: Path, capsys: Capture
) -> None:
    ids = tmp_path / "ids"
    with (
        obedient_device(hub_home, hub, "fine", ids),
        obedient_device(hub_home, hub, "broken", ids, failing="1.1.0"),
        obedient_device(hub_home, hub, "wary", ids, refusing="1.1.0"),
    ):
        assert run(["deploy", "digits@1.1.0", "--all", "--wait", "20", "--json"]) == 5
        result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "aid-edge/deployment/v1"
    found = {row["device"]: (row["outcome"], row["detail"]) for row in result["devices"]}
    assert found == {
        "fine": ("done", "runs digits@1.1.0"),
        "broken": ("failed", "failed: golden vectors differ"),
        "wary": ("failed", "refused: expired"),
    }


def test_deploy_that_nobody_carries_out_runs_out_of_time(
    hub_home: Home, hub: RunningHub, capsys: Capture
) -> None:
    register_device(hub_home, "asleep", "generic-x86_64", "")
    assert run(["deploy", "digits@1.0.0", "--to", "asleep", "--wait", "0.5"]) == 5
    assert "asleep: timed-out" in capsys.readouterr().out
    assert run(["-q", "deploy", "digits@1.0.0", "--to", "asleep"]) == 0
    told = capsys.readouterr()
    assert told.out == "1 devices told digits@1.0.0.\n"
    assert told.err == ""


def test_dry_run_changes_nothing(hub_home: Home, hub: RunningHub, capsys: Capture) -> None:
    register_device(hub_home, "one", "generic-x86_64", "")
    assert run(["deploy", "digits@1.0.0", "--to", "one", "--dry-run", "--wait", "5"]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert hub.services.queries.updates("one") == ()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["digits@9.9.9", "--to", "one"], "digits@9.9.9"),
        (["digits@1.0.0", "--to", "nobody"], "nobody"),
        (["digits", "--to", "one"], "NAME@VERSION"),
        (["digits@", "--to", "one"], "NAME@VERSION"),
        (["digits@1.0.0"], "--to"),
        (["digits@1.0.0", "--to", "one", "--all"], "--all"),
        (["digits@1.0.0", "--to", "one", "--wait", "-1"], "wait"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    hub_home: Home, hub: RunningHub, capsys: Capture, words: list[str], named: str
) -> None:
    register_device(hub_home, "one", "generic-x86_64", "")
    assert run(["deploy", *words]) == 2
    assert named in capsys.readouterr().err


def test_profile_without_the_release_is_refused(
    hub_home: Home, hub: RunningHub, capsys: Capture
) -> None:
    register_device(hub_home, "pi", "raspberry-pi-4", "")
    assert run(["deploy", "digits@1.0.0", "--to", "pi", "--json"]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "refused"
    assert "raspberry-pi-4" in error["message"]


def test_hub_that_does_not_run_is_said(hub_home: Home, capsys: Capture) -> None:
    assert run(["deploy", "digits@1.0.0", "--all"]) == 1
    assert "hub-unreachable" in capsys.readouterr().err
    assert run(["deploy", "digits@1.0.0", "--all", "--hub", "http://127.0.0.1:9"]) == 1
    assert "hub-unreachable" in capsys.readouterr().err
    assert run(["deploy", "digits@1.0.0", "--all", "--hub", "127.0.0.1"]) == 2


def test_wrong_token_ends_with_4(hub_home: Home, hub: RunningHub, capsys: Capture) -> None:
    hub_files(hub_home.hub).token.write_text("wrong\n")
    assert run(["deploy", "digits@1.0.0", "--all"]) == 4
    assert "unauthorized" in capsys.readouterr().err


def test_hub_of_another_version_is_said(
    hub_home: Home, hub: RunningHub, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Newer(msgspec.Struct):
        something_else: int

    monkeypatch.setattr("aid_edge.hub.client.DevicePage", Newer)
    assert run(["devices", "list"]) == 1
    said = capsys.readouterr().err
    assert "another version" in said
    assert "Traceback" not in said
