"""The README's main command, on EfficientNet-Lite0 with its real weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1500)
def test_demo_goes_the_whole_way() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--no-wait", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads(Path("build/demo/summary.json").read_text())
    assert [d["device"] for d in summary["devices"]] == ["camera-01", "camera-02"]
    assert all(d["release"] == "efficientnet-lite0@1.0.0" for d in summary["devices"])
    assert summary["rolled_back"] is True
    assert len(summary["predictions"]) == 40
    assert [f["verdict"] for f in summary["feedback"]] == ["wrong"]
    known = {f"{r['name']}@{r['version']}" for r in summary["releases"]}
    assert {"efficientnet-lite0@1.0.0", "efficientnet-lite0@1.1.0", "digits@1.0.0"} <= known
