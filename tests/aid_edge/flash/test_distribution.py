"""The project's own wheel: holds what is no Python, and flashes like the source tree does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from aid_edge.flash.agent_wheel import build_agent_wheel

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling (extra flash) builds the wheel")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", folder, ROOT],
        check=True,
        capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("aid_edge-*.whl")
    return path


def test_holds_templates_scripts_and_profiles(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("aid_edge/flash", "aid_edge/hub/web/static", "aid_edge/hub/web/templates"):
        data = {
            p.relative_to(ROOT).as_posix()
            for p in (ROOT / folder).iterdir()
            if p.is_file() and p.suffix not in {".py", ".pyc"}
        }
        assert data
        assert data <= names
    assert "aid_edge/hardware-profiles/raspberry-pi-4.toml" in names
    assert not [name for name in names if name.startswith("tests/")]


def test_an_installed_wheel_makes_the_same_agent_wheel(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--target", tmp_path / "site", wheel],
        check=True,
        capture_output=True,
    )  # fmt: skip
    code = (
        "import hashlib, aid_edge; from aid_edge.flash.agent_wheel import build_agent_wheel;"
        "print(aid_edge.__file__, hashlib.sha256(build_agent_wheel(('litert',)).data).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    where, digest = done.stdout.split()
    assert where.startswith(str(tmp_path))
    assert digest == hashlib.sha256(build_agent_wheel(("litert",)).data).hexdigest()
