"""A local API that serves a real worker, or its double."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.serving.models import ServedModel
from device_agent.worker.handle import Worker, WorkerSpec
from tests.support import tiny_releases as tiny
from tests.support.local_api import EchoWorker, Served, echo_model, serve


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Give a local API that serves nothing yet."""
    parts = serve(tmp_path)
    with parts.server:
        yield parts
    parts.models.close()


@pytest.fixture
def echo(served: Served) -> EchoWorker:
    """Serve the double as ``tiny`` and give it."""
    model = echo_model()
    served.models.activate(model)
    assert isinstance(model.worker, EchoWorker)
    return model.worker


@pytest.fixture
def real(served: Served, tmp_path: Path) -> ServedModel:
    """Serve the real tiny classifier in a real worker process."""
    declared = tiny.manifest(deadline_s=30)
    folder = tiny.release_folder(tmp_path / "release", declared)
    spec = WorkerSpec(folder, declared, tmp_path / "scratch")
    worker = Worker.start(spec, start_timeout_s=60)
    model = ServedModel(declared, tiny.release_ref(declared), worker, tiny.LABELS)
    served.models.activate(model)
    return model
