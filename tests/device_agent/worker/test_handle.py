"""Behavior of a worker process seen from its supervisor: answers, proofs, and every way to die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_agent.contract.manifest import Manifest
from device_agent.contract.tensors import TensorInfo
from device_agent.errors import (
    LimitExceededError,
    SandboxError,
    WorkerCrashedError,
    WorkerTimeoutError,
)
from device_agent.worker import handle
from device_agent.worker.handle import (
    MissedDeadlineError,
    ModelLoadError,
    RequestRefusedError,
    Worker,
    WorkerSpec,
)
from tests.support import tiny_releases as tiny

START_S = 60.0


def number_manifest(**kwargs: object) -> Manifest:
    return tiny.manifest(
        inputs=tiny.NUMBER_INPUTS, outputs=tiny.NUMBER_OUTPUTS, task="other", **kwargs
    )


def spec(
    tmp_path: Path, declared: Manifest, model: Callable[[Path], None] = tiny.classifier_model,
    golden: bytes | None = None,
) -> WorkerSpec:  # fmt: skip
    folder = tiny.release_folder(tmp_path / "release", declared, model, golden)
    return WorkerSpec(folder, declared, tmp_path / "scratch")


def start(wanted: WorkerSpec, **kwargs: object) -> Worker:
    return Worker.start(wanted, start_timeout_s=START_S, **kwargs)


def test_infers_with_top_class_and_probability(tmp_path: Path) -> None:
    with start(spec(tmp_path, tiny.manifest())) as worker:
        result = worker.infer([tiny.floats(1, 5, 2, 0)], deadline_s=10)
        assert tiny.values_of(result.outputs[0]).tolist() == [[1, 5, 2]]
        assert result.outputs[0].name == "scores"
        weights = np.exp([1, 5, 2])
        assert result.top_class == 1
        assert result.confidence == pytest.approx(weights[1] / weights.sum())
        assert 0 < result.compute_s < 10
        assert worker.alive
        assert worker.rss_bytes() > 2**20
        assert worker.loaded is not None
        assert worker.loaded.runtime_version
    assert not worker.alive
    assert worker.rss_bytes() == 0


def test_a_batch_has_no_single_top_class(tmp_path: Path) -> None:
    with start(spec(tmp_path, tiny.manifest())) as worker:
        two = tiny.tensor("image", np.eye(2, 4, dtype="f4"))
        result = worker.infer([two], deadline_s=10)
        assert result.outputs[0].shape == (2, 3)
        assert (result.top_class, result.confidence) == (None, None)


def test_not_a_number_has_no_top_class(tmp_path: Path) -> None:
    with start(spec(tmp_path, tiny.manifest())) as worker:
        result = worker.infer([tiny.floats(1, float("nan"), 2, 0)], deadline_s=10)
        assert (result.top_class, result.confidence) == (None, None)


def test_runtime_refuses_one_request_and_worker_serves_on(tmp_path: Path) -> None:
    with start(spec(tmp_path, tiny.manifest())) as worker:
        with pytest.raises(RequestRefusedError, match="image"):
            worker.infer([tiny.tensor("image", np.zeros((1, 5), "f4"))], deadline_s=10)
        assert worker.infer([tiny.floats(1, 0, 0, 0)], deadline_s=10).top_class == 0


def test_proof_of_a_faithful_artifact(tmp_path: Path) -> None:
    with start(spec(tmp_path, tiny.manifest())) as worker:
        proof = worker.prove()
    assert (proof.vectors, proof.agreement) == (2, 1.0)
    assert proof.min_cosine == pytest.approx(1)
    assert 0 < proof.p50_s <= proof.p95_s
    assert proof.peak_rss_bytes > 2**20
    assert proof.runs >= 20


def test_proof_shows_an_artifact_that_answers_otherwise(tmp_path: Path) -> None:
    golden = tiny.golden_frame(np.roll(tiny.WEIGHTS, 1, axis=1))
    with start(spec(tmp_path, tiny.manifest(), golden=golden)) as worker:
        proof = worker.prove()
    assert proof.agreement == 0
    assert proof.min_cosine < 0.9


@pytest.mark.parametrize("golden", [b"", b"\0\0\0\2{}", b"\0\0\0\xffnothing"])
def test_broken_golden_blob_is_refused_and_worker_lives(tmp_path: Path, golden: bytes) -> None:
    with start(spec(tmp_path, tiny.manifest(), golden=golden)) as worker:
        with pytest.raises(RequestRefusedError):
            worker.prove()
        assert worker.alive


def test_model_that_is_none(tmp_path: Path) -> None:
    wanted = spec(tmp_path, tiny.manifest(), lambda path: path.write_bytes(b"not a model"))
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        start(wanted)


def test_model_whose_tensors_are_not_the_manifests(tmp_path: Path) -> None:
    declared = tiny.manifest(inputs=(TensorInfo("image", "FP32", (-1, 5)),))
    with pytest.raises(ModelLoadError, match=r"image FP32 \[-1, 5\] is declared"):
        start(spec(tmp_path, declared))


def test_unknown_runtime(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="abacus") as raised:
        start(spec(tmp_path, tiny.manifest(runtime="abacus")))
    assert "litert" in raised.value.hint


@pytest.mark.parametrize("signal_number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_crash_is_told_once_and_names_the_signal(tmp_path: Path, signal_number: int) -> None:
    told: list[SandboxError] = []
    heard = threading.Event()

    def on_death(cause: SandboxError) -> None:
        told.append(cause)
        heard.set()

    with start(spec(tmp_path, tiny.manifest()), on_death=on_death) as worker:
        os.kill(worker.pid, signal_number)
        assert heard.wait(10)
        with pytest.raises(WorkerCrashedError, match=signal.Signals(signal_number).name) as raised:
            worker.infer([tiny.floats(1, 0, 0, 0)], deadline_s=10)
        assert raised.value.returncode == -signal_number
        assert not worker.alive
    assert len(told) == 1


def test_worker_may_be_closed_by_whom_its_death_is_told(tmp_path: Path) -> None:
    closed = threading.Event()

    def on_death(_: SandboxError) -> None:
        worker.close()
        closed.set()

    worker = start(spec(tmp_path, tiny.manifest()), on_death=on_death)
    os.kill(worker.pid, signal.SIGKILL)
    assert closed.wait(10)
    assert not worker.alive


def test_crash_in_the_middle_of_a_request_ends_the_wait(tmp_path: Path) -> None:
    declared = number_manifest(deadline_s=100)
    with start(spec(tmp_path, declared, tiny.slow_model)) as worker:
        killer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGSEGV))
        killer.start()
        with pytest.raises(WorkerCrashedError) as raised:
            worker.infer([tiny.count(10**12)], deadline_s=100)
        assert raised.value.returncode == -signal.SIGSEGV
        killer.join()


def test_missed_deadline_costs_the_request_and_not_the_worker(tmp_path: Path) -> None:
    with start(spec(tmp_path, number_manifest(), tiny.slow_model)) as worker:
        pid = worker.pid
        with pytest.raises(MissedDeadlineError) as raised:
            worker.infer([tiny.count(10**6)], deadline_s=0.01)
        assert raised.value.limit_s == 0.01
        result = worker.infer([tiny.count(7)], deadline_s=30)
        assert tiny.values_of(result.outputs[0]) == 7
        assert worker.pid == pid


def test_hang_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "HANG_MIN_S", 0.3)
    declared = number_manifest(deadline_s=0.05)
    with start(spec(tmp_path, declared, tiny.slow_model)) as worker:
        with pytest.raises(WorkerTimeoutError, match="hung") as raised:
            worker.infer([tiny.count(10**12)], deadline_s=60)
        assert not isinstance(raised.value, MissedDeadlineError)
        assert not worker.alive
        with pytest.raises(WorkerTimeoutError, match="hung"):
            worker.infer([tiny.count(1)], deadline_s=60)


def test_start_has_a_deadline(tmp_path: Path) -> None:
    with pytest.raises(WorkerTimeoutError, match="not ready"):
        Worker.start(spec(tmp_path, tiny.manifest()), start_timeout_s=0.001)


def test_memory_bomb_is_refused_by_the_limit(tmp_path: Path) -> None:
    with start(spec(tmp_path, number_manifest(), tiny.hungry_model)) as worker:
        with pytest.raises(LimitExceededError) as raised:
            worker.infer([tiny.count(10**9)], deadline_s=60)
        assert raised.value.what == "memory"
        assert raised.value.limit == tiny.MEMORY_BYTES
        assert tiny.values_of(worker.infer([tiny.count(10)], deadline_s=60).outputs[0]) == 0


def ask_until_it_dies(wanted: WorkerSpec) -> None:
    with start(wanted) as worker:
        while True:
            worker.infer([tiny.floats(1, 0, 0, 0)], deadline_s=60)


def test_resident_set_over_the_limit_is_killed(tmp_path: Path) -> None:
    # Loading alone takes more than this; the address space bound has slack, the watchdog none.
    declared = tiny.manifest(memory_bytes=8 * 2**20)
    with pytest.raises(LimitExceededError) as raised:
        ask_until_it_dies(spec(tmp_path, declared))
    assert raised.value.limit == 8 * 2**20


def test_close_during_a_request_ends_it(tmp_path: Path) -> None:
    declared = number_manifest(deadline_s=100)
    worker = start(spec(tmp_path, declared, tiny.slow_model))
    closer = threading.Timer(0.2, worker.close)
    closer.start()
    with pytest.raises(SandboxError):
        worker.infer([tiny.count(10**12)], deadline_s=100)
    closer.join()
    worker.close()
    with pytest.raises(SandboxError, match="closed"):
        worker.infer([tiny.count(1)], deadline_s=1)


def test_many_threads_get_each_their_own_answer(tmp_path: Path) -> None:
    with start(spec(tmp_path, tiny.manifest())) as worker:
        wrong: list[object] = []

        def ask(mine: int) -> None:
            for _ in range(50):
                row = [0.0, 0, 0, 0]
                row[mine] = 1
                if worker.infer([tiny.floats(*row)], deadline_s=60).top_class != mine:
                    wrong.append(mine)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_worker_leaves_nothing_in_its_home(tmp_path: Path) -> None:
    with start(spec(tmp_path, tiny.manifest())) as worker:
        worker.infer([tiny.floats(1, 0, 0, 0)], deadline_s=10)
    assert list((tmp_path / "scratch").rglob("*")) == []


def test_measured_runs_are_counted_without_warmup(tmp_path: Path) -> None:
    with start(spec(tmp_path, tiny.manifest())) as worker:
        found = worker.measure(25, 5, timeout_s=30)
        assert worker.infer([tiny.floats(1, 0, 0, 0)], deadline_s=10).top_class == 0
    assert len(found.latencies_s) == 25
    assert all(value > 0 for value in found.latencies_s)
    assert found.peak_rss_bytes > 2**20
