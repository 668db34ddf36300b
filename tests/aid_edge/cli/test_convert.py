from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aid_edge.catalogue.draft import check_files, read_draft
from aid_edge.cli.main import run
from device_agent.contract.errors import EXIT_GATE_MISSED, EXIT_INTERRUPTED, EXIT_USAGE

NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 3)
    )
"""
CARD = """
schema = 1
name = "tiny-net"
version = "1.0.0"
task = "classification"
[[inputs]]
name = "image"
shape = [-1, 1, 8, 8]
[[outputs]]
name = "scores"
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "model.toml").write_text(CARD)
    generator = np.random.default_rng(0)
    for name, n in (("calibration", 32), ("fidelity", 64)):
        np.savez(tmp_path / f"{name}.npz", image=generator.random((n, 1, 8, 8), np.float32))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(folder: Path, *more: str, profile: str = "generic-x86_64") -> list[str]:
    return [
        "convert", f"{folder / 'net.py'}:make", "--profile", profile, "--runtime", "onnx_runtime",
        "--calibration", "calibration.npz", "--fidelity", "fidelity.npz", "--out", "out", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_real_network_is_converted_and_reported(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words(tiny), "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["schema"] == "aid-edge/convert/v1"
    (profile,) = result["profiles"]
    assert profile["chosen"] is not None
    float_one = next(c for c in profile["candidates"] if not c["compressed"])
    assert float_one["fidelity"]["agreement"] == 1.0
    assert float_one["fidelity"]["max_abs"] < 1e-4
    int8 = next(c for c in profile["candidates"] if c["compressed"])
    assert int8["digest"], int8["outcome"]
    assert int8["placement"]["integer"] == 2
    assert 0 < int8["fidelity"]["sqnr_db"] < float_one["fidelity"]["sqnr_db"]
    place = Path(result["releases"]["generic-x86_64"])
    assert len(check_files(place, read_draft(place))) == 5
    assert "onnx_runtime/float32: converting" in printed.err

    assert run(words(tiny)) == 0
    text = capsys.readouterr().out
    assert "report:" in text
    assert "AGREES" in text

    assert run(["report", "out"]) == 0
    assert profile["verdict"] in capsys.readouterr().out

    strict = Path("generic-x86_64.toml")
    found = run(["profiles", "show", "generic-x86_64", "--json"])
    assert found == 0
    from aid_edge.profiles import find_profile

    lines = find_profile("generic-x86_64").read_text().splitlines()
    strict.write_text(
        "\n".join('artifact = "1 kB"' if x.startswith("artifact =") else x for x in lines)
    )
    capsys.readouterr()
    assert run(words(tiny, profile=str(strict))) == EXIT_GATE_MISSED
    printed = capsys.readouterr()
    assert "artifact-too-large" in printed.out
    assert "[gate-missed]" in printed.err
    assert "report.html" in printed.err
    assert not place.exists()


@pytest.mark.parametrize("seed", ["-1", str(2**32), "x"])
def test_a_seed_that_no_generator_takes_is_refused_before_any_work(
    tiny: Path, seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(tiny, "--seed", seed)) == EXIT_USAGE
    assert "--seed" in capsys.readouterr().err
    assert not (tiny / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["convert", "x.onnx", "--out", "o"], "--profile"),
        (["convert", "x.onnx", "--profile", "generic-x86_64"], "--out"),
        (["convert", "x.onnx", "--profile", "toaster", "--out", "o", "--fidelity", "d"], "toaster"),
        (["convert", "x.onnx", "--profile", "generic-x86_64", "--out", "o"], "nothing to judge"),
        (["convert", "x", "--profile", "p", "--out", "o", "--weights", "no.pth"], "no.pth"),
        (["convert", "x", "--profile", "p", "--out", "o", "--search", "deep"], "--search"),
        (
            ["convert", "x", "--profile", "generic-x86_64", "--out", "o", "--time-budget", "10"],
            "such as 10m",
        ),
    ],
)
def test_usage_errors_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == EXIT_USAGE
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.out == ""


def test_errors_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["-q", "convert", "no.onnx", "--profile", "generic-x86_64", "--out", "o", "--json"]
    assert run([*arguments, "--fidelity", "d"]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "source"
    assert "no.onnx" in error["message"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from aid_edge.cli.main import run\n"
        "run(['convert', '--help']); run(['report', '--help'])\n"
        "heavy = {'numpy', 'torch', 'onnx', 'jinja2', 'PIL', 'rich', 'zstandard'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert "--calibration DATA" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_exits_130_and_leaves_nothing_half_written(
    tiny: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "aid_edge.cli", *words(tiny)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=dict(os.environ)
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "converting" in line:
            break
    time.sleep(0.5)
    os.killpg(process.pid, number)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_INTERRUPTED
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert not (tiny / "out").exists()
    assert list((tiny / "cache").rglob(".new-*")) == []


@pytest.mark.slow
def test_a_killed_search_is_taken_up_again(tiny: Path) -> None:
    command = [sys.executable, "-m", "aid_edge.cli", *words(tiny, "--json", "--jobs", "1")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    for line in process.stderr:
        if "static-int8-corrected: converting" in line:
            break
    time.sleep(0.5)
    process.kill()
    process.communicate(timeout=60)
    steps = tiny / "cache" / "aid-edge" / "steps"
    assert len(list(steps.glob("convert/*/*/entry.json"))) == 1, "the float one was done"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (profile,) = json.loads(done.stdout)["profiles"]
    assert profile["search"]["resumed"]
    assert profile["chosen"] is not None
    assert list(steps.rglob(".new-*")) == []


def test_a_hub_without_a_device_is_a_usage_error(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(tiny, "--hub", "http://127.0.0.1:1")) == EXIT_USAGE
    assert "no device to measure on" in capsys.readouterr().err
    assert not (tiny / "out").exists()
