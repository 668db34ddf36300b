"""``aid-edge doctor``."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from aid_edge.cli import doctor
from aid_edge.cli.doctor import PARTS, requirements_of
from aid_edge.cli.main import run
from device_agent.contract.errors import EXIT_TOOLCHAIN_MISSING, EXIT_USAGE

ON_TWO_MACHINES = "(platform_machine == 'x86_64' or platform_machine == 'aarch64')"
LINES = (
    "msgspec>=0.19",
    "torch==2.13.0; extra == 'convert'",
    'fastapi>=0.115 ; extra == "hub"',
    f"iotcore>=0.4; {ON_TWO_MACHINES} and extra == 'hub'",
    "not a requirement !",
)


def _checks(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = run(["doctor", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def _without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_requirements_are_read_by_part() -> None:
    assert requirements_of("agent", LINES, "x86_64") == {"msgspec": ">=0.19"}
    assert requirements_of("convert", LINES, "x86_64") == {"torch": "==2.13.0"}
    assert requirements_of("hub", LINES, "aarch64") == {"fastapi": ">=0.115", "iotcore": ">=0.4"}
    assert requirements_of("hub", LINES, "riscv64") == {"fastapi": ">=0.115"}


def test_every_part_but_the_agent_is_an_extra() -> None:
    extras = importlib.metadata.metadata("aid-edge").get_all("Provides-Extra")
    assert set(PARTS) - {"agent"} <= set(extras)


def test_says_machine_packages_and_converters(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = _checks(capsys)
    assert code == 0
    assert result["schema"] == "aid-edge/doctor/v1"
    assert set(result["parts"]) == set(PARTS)
    by_name = {(c["part"], c["name"]): c for c in result["checks"]}
    assert by_name["agent", "msgspec"]["found"] == importlib.metadata.version("msgspec")
    assert by_name["machine", "python"]["state"] == "ok"
    assert ("convert", "converter onnx_runtime") in by_name
    assert "free" in by_name["machine", "disk"]["found"]


def test_missing_package_is_said_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _without(monkeypatch, "torch")
    code, result = _checks(capsys)
    assert code == 0
    assert result["parts"]["convert"] is False
    assert result["parts"]["hub"] is True
    torch = next(c for c in result["checks"] if c["name"] == "torch")
    assert torch["state"] == "missing"
    assert torch["hint"] == "pip install 'aid-edge[convert]'"


def test_required_part_that_lacks_something_exits_with_6(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _without(monkeypatch, "torch")
    assert _checks(capsys, "--require", "convert")[0] == EXIT_TOOLCHAIN_MISSING
    assert _checks(capsys, "--require", "hub")[0] == 0
    assert _checks(capsys, "--require", "hub", "--require", "convert")[0] == EXIT_TOOLCHAIN_MISSING


def test_package_of_a_wrong_version_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("packaging", reason="versions are compared where packaging is installed")
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.0" if name == "torch" else real(name)
    )
    _, result = _checks(capsys)
    torch = next(c for c in result["checks"] if c["name"] == "torch")
    assert (torch["state"], torch["found"]) == ("missing", "1.0, needs ==2.13.0")


def test_unknown_part_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--require", "kitchen"]) == EXIT_USAGE
    assert "kitchen" in capsys.readouterr().err


def test_missing_broker_is_a_warning_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_SYSTEM_FOLDERS", (str(tmp_path),))
    code, result = _checks(capsys, "--require", "hub")
    assert code == 0, "the hub runs without it, on its embedded broker"
    broker = next(c for c in result["checks"] if c["name"] == "mosquitto")
    assert broker["state"] == "warning"
    assert "embedded broker" in broker["hint"]


def test_program_that_does_not_start_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "mosquitto"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _, result = _checks(capsys)
    broker = next(c for c in result["checks"] if c["name"] == "mosquitto")
    assert broker["state"] == "warning"
    assert "does not start" in broker["found"]


def test_little_room_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 10**18)
    monkeypatch.setattr(doctor, "LOW_MEMORY_BYTES", 10**18)
    _, result = _checks(capsys)
    low = [c["name"] for c in result["checks"] if "Converting" in c["hint"]]
    assert low[0] == "disk"


def test_home_that_is_not_there_is_a_warning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, result = _checks(capsys, "--home", str(tmp_path / "not" / "yet"))
    home = next(c for c in result["checks"] if c["name"] == "home")
    assert home["state"] == "warning"
    assert "aid-edge init" in home["hint"]


def test_text_has_a_line_for_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    for part in PARTS:
        assert f"\n{part}: {PARTS[part]}" in out
