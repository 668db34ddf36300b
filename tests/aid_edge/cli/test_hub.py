from __future__ import annotations

import json
from pathlib import Path

import pytest

from aid_edge.cli.main import run
from aid_edge.home import Home
from aid_edge.hub.serve import RunningHub

Capture = pytest.CaptureFixture[str]


def test_status_says_how_the_hub_is(hub_home: Home, hub: RunningHub, capsys: Capture) -> None:
    assert run(["hub", "status"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"ok: fleet fleet-a at {hub.url}")
    assert run(["hub", "status", "--hub", hub.url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "aid-edge/hub-status/v1"
    assert (found["status"], found["connected"]) == ("ok", True)


def test_status_without_a_hub_is_an_error_with_a_hint(hub_home: Home, capsys: Capture) -> None:
    assert run(["hub", "status"]) == 1
    assert "aid-edge hub serve" in capsys.readouterr().err


def test_serving_a_home_twice_is_refused(hub_home: Home, hub: RunningHub, capsys: Capture) -> None:
    assert run(["hub", "serve", "--port", "0"]) == 1
    assert "runs already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--broker", "rabbit"], ["--port", "70000"], ["--broker-port", "x"]],
)
def test_bad_options_are_usage_errors(hub_home: Home, words: list[str]) -> None:
    assert run(["hub", "serve", "--port", "0", *words]) == 2


def test_broker_in_the_clear_over_a_network_is_refused(hub_home: Home, capsys: Capture) -> None:
    assert run(["hub", "serve", "--port", "0", "--broker", "mqtt://192.0.2.1"]) == 1
    assert "in the clear" in capsys.readouterr().err


def test_no_home_is_said(tmp_path: Path, capsys: Capture) -> None:
    assert run(["hub", "serve", "--home", str(tmp_path)]) == 1
    assert "aid-edge init" in capsys.readouterr().err
