"""A real process is killed at every point of an update; an intact model must serve each time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.deployment.controller import MAX_DEATHS
from device_agent.deployment.release import verify_release
from device_agent.deployment.table import BUSY, State
from tests.support.agent_doubles import HubDouble, wait_for
from tests.support.deployment_rig import Rig
from tests.support.killed_controller import NEW, OLD

ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = {r.digest: r.manifest for r in (OLD, NEW)}


def run_until(home: Path, point: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.killed_controller", str(home), point],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_recovers(home: Path) -> None:
    """An intact verified release serves without a hub, and with one the update goes through."""
    alone = Rig(home, hub=HubDouble(is_silent=True)).start()
    try:
        alone.wait(State.ACTIVE, State.FAILED)
        assert alone.serving in {"1.0.0", "1.1.0"}
        assert alone.slots.active is not None
        folder = alone.slots.folder(alone.slots.active)
        assert verify_release(folder, alone.slots.active) == MANIFESTS[alone.slots.active]
        for digest in alone.slots.installed():
            assert verify_release(alone.slots.folder(digest), digest) == MANIFESTS[digest]
        assert not alone.hub.asked
    finally:
        alone.stop()
    again = Rig(home).start()
    try:
        again.deploy(NEW, 2)
        assert again.serving == "1.1.0"
        assert again.slots.active == NEW.digest
    finally:
        again.stop()


POINTS = [
    *(f"state:{s.value}" for s in sorted(BUSY)),
    "state:active",
    "chunk:0",
    "chunk:1",
    "step:prepare",
    "step:prove",
    "step:promote",
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_any_state_an_intact_release_serves_and_the_update_goes_through(
    tmp_path: Path, point: str
) -> None:
    done = run_until(tmp_path / "home", point)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert_recovers(tmp_path / "home")


@pytest.mark.slow
def test_killed_before_any_write_an_intact_release_serves(tmp_path: Path) -> None:
    """Every write to the disk of an update, in turn."""
    whole = run_until(tmp_path / "whole", "none")
    assert whole.returncode == 0, whole.stderr
    count = int(whole.stdout)
    assert count > 20
    for number in range(1, count + 1):
        home = tmp_path / f"home-{number}"
        done = run_until(home, f"write:{number}")
        # Threads may order a last write otherwise; then the process ends whole.
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        assert_recovers(home)


def test_release_that_kills_the_agent_is_given_up(tmp_path: Path) -> None:
    """A model that takes the machine down while it is proved does not do so for ever."""
    home = tmp_path / "home"
    for _ in range(MAX_DEATHS):
        # Every start deploys 1.0.0 again under the same revision, which changes nothing.
        assert run_until_again(home) == -signal.SIGKILL
    rig = Rig(home).start()
    try:
        rig.wait(State.FAILED)
        assert "not tried again" in rig.reason
        rig.hub.add(NEW)
        rig.controller.want(NEW.wish(2))
        rig.history.clear()
        assert rig.serving == "1.0.0"
        rig.wait(State.FAILED)
        assert rig.states() == []
    finally:
        rig.stop()


def run_until_again(home: Path) -> int:
    """Deploy 1.1.0 as revision 2, again, and die while it is proved."""
    if not (home / "state").exists():
        return run_until(home, "step:prove").returncode
    code = (
        "from pathlib import Path; import sys\n"
        "from tests.support.killed_controller import NEW, die\n"
        "from tests.support.deployment_rig import Rig\n"
        "rig = Rig(Path(sys.argv[1])).start()\n"
        "rig.stage.on_step = lambda s, v: die() if (s, v) == ('prove', '1.1.0') else None\n"
        "rig.deploy(NEW, 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], cwd=ROOT, check=False)
    return done.returncode


def test_half_moved_folders_are_tidied_away(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "home").start()
    try:
        rig.deploy(OLD, 1)
        doomed = rig.home / "releases" / f".{'0' * 64}.gone"
        doomed.mkdir()
        (doomed / "model").write_bytes(b"x")
        rig.deploy(NEW, 2)
        # Tidying follows when the new one serves.
        wait_for("the half-moved folder to go", lambda: not doomed.exists())
    finally:
        rig.stop()
