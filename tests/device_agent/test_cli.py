"""``aid-agent`` as a real process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.agent_doubles import wait_for
from tests.support.agent_world import AgentWorld, RunningAgent, make_agent_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> AgentWorld:
    """A home in which two releases were deployed, one after the other; no agent runs in it."""
    made = make_agent_world(tmp_path_factory.mktemp("world"))
    running = RunningAgent(made)
    try:
        running.connect()
        running.deploy(made.good, 1)
        running.deploy(made.better, 2)
    finally:
        running.stop()
    return made


def aid_agent(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "device_agent.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def running(world: AgentWorld) -> Iterator[subprocess.Popen[str]]:
    """Run the agent without any broker."""
    command = [sys.executable, "-m", "device_agent.cli", "run", "--home", str(world.agent_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        home = world.agent_home
        wait_for("the API", lambda: home.api_address() is not None or process.poll() is not None)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
        if process.stderr:
            process.stderr.close()


def test_status_of_an_agent_that_does_not_run(world: AgentWorld) -> None:
    done = aid_agent("status", "--home", world.agent_path, "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["schema"] == "aid-edge/agent-status/v1"
    assert (status["running"], status["state"]) == (False, "active")
    assert status["active"] == world.better.digest
    assert "does not run" in aid_agent("status", "--home", world.agent_path).stdout


def test_verify_holds_everything_against_what_was_signed(world: AgentWorld) -> None:
    done = aid_agent("verify", "--home", world.agent_path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["signed"]
    assert {r["name"] for r in found["releases"]} == {"tiny@1.0.0", "tiny@1.1.0"}
    text = aid_agent("verify", "--home", world.agent_path).stdout
    assert "intact  tiny@1.1.0  active" in text
    assert "intact  tiny@1.0.0  previous" in text


@pytest.mark.parametrize("name", ["model", "labels", "manifest.json", "image.json"])
def test_verify_finds_what_was_altered(world: AgentWorld, name: str) -> None:
    path = world.agent_path / "slots" / "active" / name
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    try:
        done = aid_agent("verify", "--home", world.agent_path)
        assert done.returncode == 4
        assert "error [altered]" in done.stderr
        assert "hint:" in done.stderr
        as_json = aid_agent("verify", "--home", world.agent_path, "--json")
        assert as_json.returncode == 4
        assert not json.loads(as_json.stdout)["ok"]
        assert json.loads(as_json.stderr)["error"]["code"] == "altered"
    finally:
        path.write_bytes(intact)


def test_verify_finds_an_altered_desired_state(world: AgentWorld) -> None:
    path = world.agent_path / "state" / "desired.json"
    intact = path.read_bytes()
    path.write_bytes(intact.replace(b'"sig":"', b'"sig":"AAAA'))
    try:
        assert aid_agent("verify", "--home", world.agent_path).returncode == 4
    finally:
        path.write_bytes(intact)


def test_agent_serves_without_a_broker_and_ends_clean_on_sigterm(world: AgentWorld) -> None:
    with running(world) as process:
        done = aid_agent("status", "--home", world.agent_path, "--json")
        status = json.loads(done.stdout)
        assert (status["running"], status["connected"]) == (True, False)
        assert status["pid"] == process.pid

        def is_active() -> bool:
            text = aid_agent("status", "--home", world.agent_path).stdout
            return "slot active: active, serves tiny@1.1.0" in text

        wait_for("the model", is_active, 60)
        second = aid_agent("run", "--home", world.agent_path)
        assert second.returncode == 1
        assert f"pid {process.pid}" in second.stderr
        assert "hint:" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert "not connected" in log
    assert "Traceback" not in log
    assert not (world.agent_path / "run" / "api.json").exists()


def test_port_that_is_taken_is_a_clear_error(world: AgentWorld) -> None:
    import socket

    config = world.agent_path / "config.toml"
    intact = config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config.write_text(intact.replace("port = 0", f"port = {taken.getsockname()[1]}"))
        try:
            done = aid_agent("run", "--home", world.agent_path, "--json")
        finally:
            config.write_text(intact)
    assert done.returncode == 1
    assert json.loads(done.stderr[done.stderr.index("{") :])["error"]["code"] == "serving"


@pytest.mark.parametrize("verb", ["run", "status", "verify"])
def test_home_that_is_none_is_a_clear_error(tmp_path: Path, verb: str) -> None:
    done = aid_agent(verb, "--home", tmp_path)
    assert done.returncode == 1
    assert "error [config]" in done.stderr
    assert "config.toml" in done.stderr


def test_unknown_words_are_usage_errors() -> None:
    assert aid_agent("dance").returncode == 2
    assert aid_agent().returncode == 2
    assert aid_agent("--help").returncode == 0
