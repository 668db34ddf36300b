"""Tool environments: made whole or not at all, once, from a pinned list, and bounded when run."""

from __future__ import annotations

import os
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from aid_edge import toolenv
from aid_edge.cli.output import Output
from aid_edge.cli.tools import command
from aid_edge.errors import StepCrashedError, UsageError
from aid_edge.isolate import Limits
from aid_edge.toolenv import Tool, ToolMissingError, environments

WORD = "print('the tool speaks')"


@dataclass(frozen=True)
class LocalTool(Tool):
    """A tool whose only distribution is a wheel in a folder."""

    wheels: Path = Path()

    @property
    def pins(self) -> str:
        return f"--no-index\n--find-links {self.wheels}\ntinytool==1.0\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    info = "tinytool-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinytool-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinytool.py", WORD)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinytool\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def tools(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of environments, with the tool ``tiny`` known but not made."""
    folder = tmp_path_factory.mktemp("tools")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environments.FOLDER, str(folder))
        tool = LocalTool("tiny", "tinytool", "speaks", 20, 99, wheels)
        patch.setitem(environments.TOOLS, "tiny", tool)
        yield folder


@pytest.fixture(scope="module")
def made(tools: Path) -> Path:
    """The same with ``tiny`` made by two at once, after somebody was killed on the way."""
    half = tools / "tiny-making-killed"
    half.mkdir()
    (half / "pins.txt").write_text("half")
    started: list[str] = []
    pythons: list[Path] = []

    def make() -> None:
        pythons.append(toolenv.ensure("tiny", lambda share, text: started.append(text)))

    makers = [threading.Thread(target=make) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(pythons) == 2
    assert len(set(pythons)) == 1
    assert started.count("make an environment for tiny 1.0") == 1
    assert not half.exists()
    assert [p.name for p in tools.iterdir() if p.is_dir()] == [environments.TOOLS["tiny"].key]
    return tools


@pytest.mark.parametrize("name", list(toolenv.TOOLS))
def test_lists_pin_every_distribution(name: str) -> None:
    tool = toolenv.TOOLS[name]
    lines = [line for line in tool.pins.splitlines() if line and not line.startswith("#")]
    assert all("==" in line.partition(";")[0] for line in lines)
    assert tool.version


def test_the_folder_is_named_after_the_list() -> None:
    first = LocalTool("tiny", "tinytool", "", 1, 99, Path("a"))
    second = LocalTool("tiny", "tinytool", "", 1, 99, Path("b"))
    assert first.key != second.key
    assert first.key == LocalTool("tiny", "tinytool", "", 1, 99, Path("a")).key


def test_environments_lie_in_the_cache_or_where_they_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(environments.FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environments.folder() == tmp_path / "aid-edge" / "tools"
    monkeypatch.setenv(environments.FOLDER, str(tmp_path / "there"))
    assert environments.folder() == tmp_path / "there"


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(UsageError, match="no tool 'hammer'") as caught:
        toolenv.ensure("hammer")
    assert "onnx2tf" in caught.value.hint


def test_a_python_without_wheels_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(environments.FOLDER, str(tmp_path))
    monkeypatch.setitem(
        environments.TOOLS, "tiny", LocalTool("tiny", "tinytool", "", 1, 10, tmp_path)
    )
    with pytest.raises(ToolMissingError, match=r"no wheels for Python over 3\.10"):
        toolenv.ensure("tiny")


@pytest.mark.slow
def test_two_makers_share_one_environment(made: Path) -> None:
    assert toolenv.is_installed("tiny")
    assert toolenv.ensure("tiny") == toolenv.find("tiny")
    run = toolenv.run("tiny", ["-m", "tinytool"])
    assert run.log == "the tool speaks"
    assert run.seconds > 0


@pytest.mark.slow
def test_the_tool_sees_none_of_our_packages(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    code = (
        "import importlib.util as u, os; print(u.find_spec('aid_edge'), 'PYTHONPATH' in os.environ)"
    )
    assert toolenv.run("tiny", ["-c", code]).log == "None False"


@pytest.mark.slow
def test_memory_time_and_log_are_bounded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = "import time; x = bytearray(300_000_000); time.sleep(60)"
    with pytest.raises(StepCrashedError, match="needed more than its 100 MiB"):
        toolenv.run("tiny", ["-c", greedy], limits=Limits(100 * 2**20, 60))
    lazy = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"  # noqa: E501 -- one program
    begun = time.monotonic()
    with pytest.raises(StepCrashedError, match=r"did not finish in its 0\.5 s"):
        toolenv.run("tiny", ["-c", lazy], limits=Limits(time_s=0.5))
    assert time.monotonic() - begun < 50
    monkeypatch.setattr("aid_edge.toolenv.processes.MAX_LOG_BYTES", 2**20)
    chatty = "while True: print('x' * 1000)"
    with pytest.raises(StepCrashedError, match="printed more than 1 MiB"):
        toolenv.run("tiny", ["-c", chatty], limits=Limits(time_s=60))


@pytest.mark.slow
def test_a_failure_carries_the_last_lines(made: Path) -> None:
    with pytest.raises(StepCrashedError, match="exit code 3") as caught:
        toolenv.run("tiny", ["-c", "import sys; print('no teeth'); sys.exit(3)"])
    assert caught.value.cause == "no teeth"


@pytest.mark.slow
def test_what_cannot_be_made_leaves_nothing_and_is_not_tried_again_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(environments.FOLDER, str(tmp_path))
    (tmp_path / "empty").mkdir()
    tool = LocalTool("tiny", "tinytool", "", 1, 99, tmp_path / "empty")
    monkeypatch.setitem(environments.TOOLS, "tiny", tool)
    with pytest.raises(ToolMissingError, match="No matching distribution") as caught:
        toolenv.ensure("tiny")
    assert "aid-edge tools install tiny" in caught.value.hint
    assert caught.value.exit_code == 6
    assert not toolenv.is_installed("tiny")
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"empty", "tiny.lock", "tiny.failed"}
    tried: list[str] = []
    with pytest.raises(ToolMissingError, match="No matching distribution"):
        toolenv.ensure("tiny", lambda share, text: tried.append(text))
    assert tried == []
    old = time.time() - environments.RETRY_AFTER_S - 1
    os.utime(tmp_path / "tiny.failed", (old, old))
    with pytest.raises(ToolMissingError):
        toolenv.ensure("tiny", lambda share, text: tried.append(text))
    assert tried


@pytest.mark.slow
def test_the_command_line_lists_and_removes(made: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(command, ["list"], obj=Output())
    assert listed.exit_code == 0
    assert "tiny" in listed.output
    older = made / "tiny-0123456789abcdef"
    older.mkdir()
    assert toolenv.remove("tiny") == 2
    assert not toolenv.is_installed("tiny")
    assert toolenv.remove("tiny") == 0
