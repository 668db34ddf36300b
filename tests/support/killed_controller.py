"""A process with a controller that kills itself at a chosen point, as a power cut would.

``python -m tests.support.killed_controller HOME POINT``: deploys 1.0.0, then 1.1.0 over it. POINT
is ``state:NAME``, ``step:NAME`` (of the stage, for 1.1.0), ``chunk:N`` (before the N-th chunk of
1.1.0's model), ``write:N`` (before the N-th write to the disk of the second deployment), or
``none``. Prints how many writes there were when it was not killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_agent.deployment.table import State
from device_agent.errors import WorkerCrashedError
from tests.support.agent_doubles import HubDouble, StageDouble, make_release
from tests.support.deployment_rig import Rig

OLD, NEW = make_release("1.0.0"), make_release("1.1.0", counter=2)
_AUDITED = {"os.rename", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Writes:
    """Counts writes to the disk, and dies before the chosen one."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.count, self.is_on = fatal, 0, False
        for name in ("fsync", "pwrite", "posix_fallocate", "ftruncate"):
            setattr(os, name, self._wrap(getattr(os, name)))
        sys.addaudithook(self._hear)

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.one()
            return call(*args)

        return counted

    def _hear(self, event: str, _args: tuple[Any, ...]) -> None:
        if event in _AUDITED:
            self.one()

    def one(self) -> None:
        if self.is_on:
            self.count += 1
            if self.count == self.fatal:
                die()


def main(home: Path, point: str) -> None:
    kind, _, value = point.partition(":")
    writes = Writes(int(value) if kind == "write" else 0)
    stage = StageDouble()
    hub = HubDouble()
    rig = Rig(home, hub=hub, stage=stage).start()
    rig.deploy(OLD, 1)
    writes.is_on = True
    if kind == "state":

        def on_state(state: State) -> None:
            if state == value:
                die()

        rig.on_state = on_state

    def on_step(step: str, version: str) -> None:
        if (kind, step, version) == ("step", value, "1.1.0"):
            die()
        if value == State.ROLLING_BACK and step == "prove":
            raise WorkerCrashedError("so that it rolls back")

    stage.on_step = on_step
    model = NEW.manifest.blob("model")
    assert model is not None

    def on_chunk(digest: str, index: int) -> None:
        if kind == "chunk" and digest == model.digest and index == int(value):
            die()

    hub.on_chunk = on_chunk
    rig.deploy(NEW, 2)
    print(writes.count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
