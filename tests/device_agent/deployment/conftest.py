from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment_rig import Rig

MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    """Make rigs in one home, one after another; each is stopped before the next."""
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        while made:
            made.pop().stop()
        made.append(Rig(tmp_path / "home", **options).start())
        return made[0]

    yield make
    while made:
        made.pop().stop()


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()
