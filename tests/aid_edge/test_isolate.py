"""Worker processes: what comes back, what is bounded, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from aid_edge import isolate
from aid_edge.errors import MissingDependencyError, StepCrashedError, UnsupportedModelError
from aid_edge.isolate import Limits
from tests.support import isolate_steps as steps


def test_a_result_comes_back_with_time_memory_and_log() -> None:
    outcome = isolate.run(steps.double, 21)
    assert outcome.value == 42
    assert outcome.log == "doubling"
    assert outcome.seconds > 0
    assert 2**20 < outcome.peak_rss_bytes < 2**30


def test_the_memory_of_the_parent_is_not_counted() -> None:
    ballast = bytearray(b"x" * (400 * 2**20))
    outcome = isolate.run(steps.double, 1)
    assert outcome.peak_rss_bytes < len(ballast) // 2


def test_progress_arrives_in_order() -> None:
    seen: list[tuple[float, str]] = []
    outcome = isolate.run_with(
        Limits(), lambda share, text: seen.append((share, text)), steps.count_slowly, 4
    )
    assert outcome.value == "counted"
    assert seen == [(0.0, "step 0"), (0.25, "step 1"), (0.5, "step 2"), (0.75, "step 3")]


def test_our_errors_keep_type_fields_and_hint() -> None:
    with pytest.raises(UnsupportedModelError, match=r"^cannot$") as caught:
        isolate.run(steps.refuse)
    assert caught.value.reasons == ["Conv: no", "Gelu: no"]
    assert caught.value.hint == "retrain"
    with pytest.raises(MissingDependencyError, match="notorch") as missing:
        isolate.run(steps.miss_a_package)
    assert missing.value.extra == "convert"
    assert missing.value.exit_code == 6


def test_a_foreign_error_is_a_crash_with_its_name_and_the_log() -> None:
    with pytest.raises(StepCrashedError, match="raised ValueError: nobody expects this") as caught:
        isolate.run(steps.fail_with_a_foreign_error)
    assert "nobody expects this" in caught.value.cause


def test_a_segmentation_fault_is_named() -> None:
    with pytest.raises(StepCrashedError, match=r"isolate_steps\.crash was ended by SIGSEGV"):
        isolate.run(steps.crash)


def test_an_early_exit_is_named_with_its_last_words() -> None:
    with pytest.raises(StepCrashedError, match="exit code 7") as caught:
        isolate.run(steps.exit_early)
    assert "giving up" in caught.value.cause


def test_a_hang_ends_at_the_time_limit() -> None:
    with pytest.raises(StepCrashedError, match=r"did not finish in its 1 s"):
        isolate.run_with(Limits(time_s=1), None, steps.hang)


def test_memory_ends_at_the_limit() -> None:
    with pytest.raises(StepCrashedError, match=r"more than its 128 MiB of memory") as caught:
        isolate.run_with(Limits(memory_bytes=128 * 2**20), None, steps.eat, 2**30)
    assert caught.value.hint


def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(StepCrashedError, match="cannot be sent back"):
        isolate.run(steps.return_something_unpicklable)


def test_the_function_sees_an_empty_stdin() -> None:
    assert isolate.run(steps.read_stdin).value == ""


def test_telemetry_of_the_runtime_is_off() -> None:
    assert isolate.run(steps.environment).value["ORT_DISABLE_TELEMETRY"] == "1"


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.02)


_SCRIPT = """
    import sys
    sys.path.insert(0, {folder!r})
    from tests.support import isolate_steps
    from aid_edge import isolate
    isolate.run(isolate_steps.start_a_child_and_hang, {pid_file!r})
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_command(tmp_path: Path, how: signal.Signals) -> None:
    """Ctrl-C kills the worker and all it started; a killed command at least its worker."""
    pid_file = tmp_path / "pids"
    # No main guard: a spawned child of multiprocessing would run this script again.
    script = _SCRIPT.format(folder=str(Path(__file__).parents[2]), pid_file=str(pid_file))
    command = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE
    )
    grandchild = 0
    try:
        deadline = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        worker, grandchild = map(int, pid_file.read_text().split())
        command.send_signal(how)
        command.communicate(timeout=30)
        _wait_until_gone([worker, grandchild] if how == signal.SIGINT else [worker])
    finally:
        command.kill()
        if grandchild and _is_running(grandchild):
            os.kill(grandchild, signal.SIGKILL)
