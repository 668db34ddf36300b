from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aid_edge import leftovers
from aid_edge.evaluate.data.dataset import _Keeper

SCRIPT = """
import os, signal, sys
from pathlib import Path
from aid_edge import leftovers
(leftovers.make(Path(sys.argv[1]), "data-") / "file").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_only_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    mine = leftovers.make(tmp_path, "data-")
    elsewhere = tmp_path / "data-other-host-1-abc"
    old = tmp_path / "data-other-host-1-old"
    elsewhere.mkdir()
    old.mkdir()
    os.utime(old, (0, 0))
    leftovers.clear(tmp_path.glob("data-*"), "data-")
    assert not left.exists()
    assert not old.exists(), "nobody takes days for one"
    assert mine.exists()
    assert elsewhere.exists()


def test_samples_of_a_killed_run_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, signal\n"
        "from aid_edge.evaluate.data.dataset import _Keeper\n"
        "kept = _Keeper()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=False, env=environment)
    (left,) = tmp_path.glob("aid-edge-data-*")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    keeper = _Keeper()
    assert list(tmp_path.glob("aid-edge-data-*")) == [keeper.folder]
    assert left != keeper.folder
