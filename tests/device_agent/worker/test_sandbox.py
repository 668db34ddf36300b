"""What a confined worker cannot do: each tried for real, and shown to work when it is free."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device_agent.worker import landlock, limits, seccomp

CONFINED = """
import os, resource, socket, sys, threading
from pathlib import Path
from device_agent.contract.manifest import Limits
from device_agent.worker import sandbox
folder, scratch, outside = map(Path, sys.argv[1:4])
if sys.argv[4] == "confined":
    sandbox.confine(folder, scratch, Limits(memory_bytes=64 * 2**20, threads=1, deadline_s=1))
def attempt():
{attempt}
try:
    attempt()
except (OSError, MemoryError, ValueError) as e:
    print("refused", type(e).__name__)
else:
    print("done")
"""

ATTEMPTS = {
    "write outside": "(outside / 'new').write_text('x')",
    "change outside": "(outside / 'secret').write_text('x')",
    "delete outside": "(outside / 'secret').unlink()",
    "rename outside": "(outside / 'secret').rename(outside / 'other')",
    "link outside": "os.symlink('x', outside / 'link')",
    "truncate outside": "os.truncate(outside / 'secret', 0)",
    "read outside": "(outside / 'secret').read_text()",
    "list outside": "os.listdir(outside)",
    "write the release": "(folder / 'model').write_text('x')",
    "udp socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()",
    "unix socket": "socket.socket(socket.AF_UNIX).close()",
    "netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()",
    "fork": "os.fork() or os._exit(0); os.wait()",
    "spawn": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "allocate": "bytearray(2**30)",
    "large file": "os.posix_fallocate(os.open(scratch / 'f', os.O_RDWR | os.O_CREAT), 0, 2**27)",
    "many files": "[os.dup(1) for _ in range(500)]",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))",
    "give a file away": "os.chown(scratch, 12345, 12345)",
}
FREE_ONLY_FOR_ROOT = {"raise a limit", "give a file away"}

ALLOWED = {
    "read the release": "(folder / 'model').read_text()",
    "write scratch": "(scratch / 'new').write_text('x')",
    "thread": "t = threading.Thread(target=print); t.start(); t.join()",
    "socket pair": "a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'",
    "allocate a little": "bytearray(32 * 2**20)",
}


def run(tmp_path: Path, attempt: str, how: str) -> str:
    """Return what came of ``attempt`` in a child."""
    folders = [tmp_path / name for name in ("release", "scratch", "outside")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    (folders[0] / "model").write_text("model")
    (folders[2] / "secret").write_text("secret")
    code = CONFINED.format(attempt="    " + attempt)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *map(str, folders), how],
        capture_output=True,
        text=True,
        timeout=60,
        env=limits.environment(folders[1], 1),
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="the kernel has no Landlock")
needs_seccomp = pytest.mark.skipif(
    seccomp.program(platform.machine(), is_64_bit=sys.maxsize > 2**32) is None,
    reason="no seccomp filter for this machine",
)


@needs_landlock
@needs_seccomp
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_confined_worker_cannot(tmp_path: Path, attempt: str) -> None:
    assert run(tmp_path, ATTEMPTS[attempt], "confined").startswith("refused")


@pytest.mark.parametrize("attempt", sorted(ATTEMPTS.keys() - FREE_ONLY_FOR_ROOT))
def test_without_confinement_the_attempt_works(tmp_path: Path, attempt: str) -> None:
    """Or the tests above would prove nothing."""
    assert run(tmp_path, ATTEMPTS[attempt], "free") == "done"


@pytest.mark.parametrize("attempt", ALLOWED)
def test_confined_worker_still_can(tmp_path: Path, attempt: str) -> None:
    assert run(tmp_path, ALLOWED[attempt], "confined") == "done"


@needs_landlock
def test_tcp_is_refused_by_landlock_alone(tmp_path: Path) -> None:
    """Where seccomp is missing; needs version 4 of Landlock."""
    if landlock.abi() < 4:
        pytest.skip("this kernel's Landlock knows no TCP")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        attempt = f"socket.create_connection(('127.0.0.1', {port}), 5)"
        code = (
            "import socket, sys\nfrom pathlib import Path\n"
            "from device_agent.worker import landlock\n"
            "if sys.argv[1] == 'confined': landlock.restrict([Path('/')], [])\n"
            f"try: {attempt}\nexcept PermissionError: print('refused')\nelse: print('done')"
        )
        for how, outcome in (("confined", "refused"), ("free", "done")):
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code, how],
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            assert done.stdout.strip() == outcome


@needs_landlock
@needs_seccomp
def test_protections_are_reported_as_tried() -> None:
    assert set(limits.protections()) == {
        "memory-limit", "file-size-limit", "no-writes-outside", "no-reads-outside", "no-tcp",
        "no-sockets", "no-signals", "no-new-processes", "no-new-programs", "memory-watchdog",
    }  # fmt: skip


def test_protection_that_does_not_hold_is_not_reported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom device_agent.worker import probe, sandbox\n"
        "sandbox.confine = lambda *_: ()\nprobe.main(sys.argv[1:])"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "outside").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [str(listener.getsockname()[1]), str(tmp_path / "outside"), str(scratch)]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *words],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    assert done.stdout == "[]"


@pytest.mark.parametrize("machine", sorted({m for m, _ in seccomp.ARCHITECTURES}))
def test_filter_of_every_machine_is_whole(machine: str) -> None:
    """Jumps stay inside, and the last instruction returns."""
    for known, is_64_bit in seccomp.ARCHITECTURES:
        if known != machine:
            continue
        program = seccomp.program(machine, is_64_bit=is_64_bit)
        assert program is not None
        lines = [program[i : i + 8] for i in range(0, len(program), 8)]
        for index, line in enumerate(lines):
            code, if_true, if_false = line[0] + 256 * line[1], line[2], line[3]
            if code & 7 == 5:
                assert index + 1 + max(if_true, if_false) < len(lines)
        assert lines[-1][0] == 6


def test_unknown_machine_has_no_filter() -> None:
    assert seccomp.program("abacus", is_64_bit=True) is None


def test_environment_of_the_supervisor_does_not_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    environment = limits.environment(tmp_path, 2)
    assert "SECRET_TOKEN" not in environment
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["HOME"] == str(tmp_path)


def test_worker_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    """Even in the middle of an inference that would take for ever."""
    code = (
        "import sys, threading\nfrom pathlib import Path\n"
        "from device_agent.worker.handle import Worker, WorkerSpec\n"
        "from tests.support import tiny_releases as tiny\n"
        "d = tiny.manifest(inputs=tiny.NUMBER_INPUTS, outputs=tiny.NUMBER_OUTPUTS, task='other',"
        " deadline_s=600)\n"
        "home = Path(sys.argv[1])\n"
        "f = tiny.release_folder(home / 'r', d, tiny.slow_model)\n"
        "w = Worker.start(WorkerSpec(f, d, home / 's'), start_timeout_s=60)\n"
        "print(w.pid, flush=True)\n"
        "w.infer([tiny.count(10**12)], deadline_s=600)\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    with supervisor:
        assert supervisor.stdout is not None
        worker_pid = int(supervisor.stdout.readline())
        time.sleep(0.3)
        supervisor.send_signal(signal.SIGKILL)
    until_s = time.monotonic() + 30
    while Path(f"/proc/{worker_pid}/statm").exists() and time.monotonic() < until_s:
        if limits.rss_bytes(worker_pid) == 0:  # A zombie that nobody has waited for yet.
            return
        time.sleep(0.02)
    assert not Path(f"/proc/{worker_pid}").exists()
