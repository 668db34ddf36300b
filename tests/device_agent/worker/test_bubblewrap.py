"""The stand-in for Landlock on kernels without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.worker import landlock, limits
from device_agent.worker.handle import Worker, WorkerSpec
from tests.support import tiny_releases as tiny

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture(autouse=True)
def kernel_without_landlock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    limits._usable_bubblewrap.cache_clear()
    limits.protections.cache_clear()
    if limits._usable_bubblewrap() is None:
        pytest.skip("bubblewrap does not work here")
    yield
    limits._usable_bubblewrap.cache_clear()
    limits.protections.cache_clear()


@pytest.mark.parametrize(
    ("attempt", "is_refused"),
    [
        ("open(sys.argv[1] + '/new', 'w')", False),
        ("open(sys.argv[2] + '/new', 'w')", True),
        ("socket.create_connection(('127.0.0.1', int(sys.argv[3])), 5)", True),
    ],
)
def test_only_scratch_is_writable_and_no_network(
    tmp_path: Path, attempt: str, is_refused: bool
) -> None:
    import socket

    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    scratch.mkdir()
    outside.mkdir()
    code = f"import socket, sys\n{attempt}"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [str(scratch), str(outside), str(listener.getsockname()[1])]
        command = [*limits.wrapping(scratch), sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode != 0) is is_refused, done.stderr


def test_worker_runs_in_it_and_ends_with_it(tmp_path: Path) -> None:
    declared = tiny.manifest()
    folder = tiny.release_folder(tmp_path / "release", declared)
    spec = WorkerSpec(folder, declared, tmp_path / "scratch")
    with Worker.start(spec, start_timeout_s=60) as worker:
        assert worker.infer([tiny.floats(1, 5, 2, 0)], deadline_s=30).top_class == 1
        pid = worker.pid
        assert pid != worker._process.pid
        assert worker.rss_bytes() > 10 * 2**20
        assert "bubblewrap" in limits.protections()
    for _ in range(200):
        if limits.rss_bytes(pid) == 0:
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert limits.rss_bytes(pid) == 0
