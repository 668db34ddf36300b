"""The table of served models: swaps under load, queues, leases."""

from __future__ import annotations

import threading
import time

import pytest

from device_agent.serving.models import ModelTable, ServedModel
from device_agent.serving.refusals import (
    DeadlineError,
    QueueFullError,
    RejectedError,
    UnknownModelError,
)
from tests.support import tiny_releases as tiny
from tests.support.local_api import EchoWorker, echo_model

INPUT = [tiny.floats(1, 5, 2, 0)]


def worker_of(model: ServedModel) -> EchoWorker:
    assert isinstance(model.worker, EchoWorker)
    return model.worker


def ask(table: ModelTable, *, within_s: float = 30.0, version: str | None = None) -> str:
    """Return the version that answered."""
    with table.lease("tiny", version) as lease:
        lease.infer(INPUT, until_s=time.monotonic() + within_s)
        return lease.model.manifest.version


def test_name_and_version_choose() -> None:
    table = ModelTable()
    model = echo_model()
    assert table.get("tiny") is None
    table.activate(model)
    assert table.get("tiny") is model
    assert table.get("tiny", "1.0.0") is model
    assert table.get("tiny", "2.0.0") is None
    assert table.served() == (model,)
    with (
        pytest.raises(UnknownModelError, match=r"version '2\.0\.0'") as raised,
        table.lease("tiny", "2.0.0"),
    ):
        pass
    assert "tiny 1.0.0" in raised.value.hint
    table.remove("tiny")
    table.remove("tiny")
    assert table.get("tiny") is None
    table.close()
    assert worker_of(model).is_closed


def test_swap_lets_the_old_worker_finish_first() -> None:
    table = ModelTable()
    old, new = echo_model(), echo_model(version="2.0.0")
    table.activate(old)
    worker_of(old).gate.clear()
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(ask(table)))
    thread.start()
    assert worker_of(old).entered.acquire(timeout=30)
    table.activate(new)
    assert ask(table) == "2.0.0"
    assert not worker_of(old).is_closed
    worker_of(old).gate.set()
    thread.join()
    table.close()
    assert answers == ["1.0.0"]
    assert worker_of(old).is_closed
    assert worker_of(new).is_closed


def test_activating_the_same_worker_again_keeps_it() -> None:
    table = ModelTable()
    model = echo_model()
    table.activate(model)
    table.activate(model)
    assert ask(table) == "1.0.0"
    table.close()


def test_no_request_fails_while_models_are_swapped() -> None:
    table = ModelTable()
    table.activate(echo_model())
    is_over = threading.Event()
    failures: list[Exception] = []
    answered = [0]

    def keep_asking() -> None:
        while not is_over.is_set():
            try:
                ask(table)
                answered[0] += 1
            except Exception as e:
                failures.append(e)
                return

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    models = [echo_model(version=f"{n}.0.0") for n in range(2, 40)]
    for model in models:
        table.activate(model)
    is_over.set()
    for thread in threads:
        thread.join()
    table.close()
    assert failures == []
    assert answered[0] > 0
    assert all(worker_of(m).is_closed for m in models)


def test_queue_has_a_bound() -> None:
    table = ModelTable(queue_max_requests=2)
    model = echo_model()
    worker = worker_of(model)
    table.activate(model)
    worker.gate.clear()
    threads = [threading.Thread(target=ask, args=(table,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    with table.lease("tiny") as lease:
        while lease._waiting < 2:
            time.sleep(0.001)
    with pytest.raises(QueueFullError, match="2 requests wait"):
        ask(table)
    worker.gate.set()
    for thread in threads:
        thread.join()
    assert ask(table) == "1.0.0"
    table.close()


def test_wait_for_the_turn_ends_with_the_deadline() -> None:
    table = ModelTable()
    model = echo_model()
    worker = worker_of(model)
    table.activate(model)
    worker.gate.clear()
    thread = threading.Thread(target=ask, args=(table,))
    thread.start()
    assert worker.entered.acquire(timeout=30)
    with pytest.raises(DeadlineError, match="waited for its turn"):
        ask(table, within_s=0.05)
    worker.gate.set()
    thread.join()
    table.close()
    assert worker.calls == 1


def test_idle_model_is_tried_whatever_the_estimate_says() -> None:
    table = ModelTable()
    model = echo_model()
    worker_of(model).compute_s = 100.0
    table.activate(model)
    assert ask(table) == "1.0.0"
    assert ask(table, within_s=5.0) == "1.0.0"
    table.close()


def test_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    table = ModelTable()
    model = echo_model()
    worker = worker_of(model)
    worker.compute_s = 100.0
    table.activate(model)
    ask(table)
    worker.gate.clear()
    thread = threading.Thread(target=ask, args=(table,))
    thread.start()
    for _ in range(2):
        assert worker.entered.acquire(timeout=30)
    with pytest.raises(RejectedError, match="1 requests are ahead"):
        ask(table, within_s=20.0)
    worker.gate.set()
    thread.join()
    table.close()


def test_deadline_that_passed_costs_no_work() -> None:
    table = ModelTable()
    model = echo_model()
    table.activate(model)
    with pytest.raises(DeadlineError, match="before the work began"):
        ask(table, within_s=-1.0)
    table.close()
    assert worker_of(model).calls == 0


def test_class_without_a_label_is_its_index() -> None:
    model = echo_model()
    assert [model.label(i) for i in (0, 2, 3, -1)] == ["ant", "cat", "3", "-1"]
