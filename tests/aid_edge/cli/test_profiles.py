"""``aid-edge profiles``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aid_edge.cli.main import run
from aid_edge.profiles import find_profile
from device_agent.contract.errors import EXIT_USAGE


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["ID", "ARCH"]
    assert any(line.split()[:2] == ["raspberry-pi-4", "aarch64"] for line in lines)


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "list", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "aid-edge/profiles/v1"
    nuc = next(p for p in result["profiles"] if p["id"] == "intel-nuc-11")
    assert nuc["arch"] == "x86_64"
    assert nuc["calibrated"] is False


def test_show_says_units_and_lack_of_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "show", "raspberry-pi-4"]) == 0
    out = capsys.readouterr().out
    assert "512 MiB memory" in out
    assert "300 ms" in out
    assert "uncalibrated" in out


def test_show_with_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "generic-arm64.toml"
    path.write_text(
        find_profile("generic-arm64").read_text()
        + '\n[cost]\nlatency_factor = 6.5\nerror = 0.1\npoints = 9\ndate = "2026-11-23"\n'
    )
    assert run(["profiles", "show", str(path)]) == 0
    assert "device = 6.5 x host (9 points, 2026-11-23)" in capsys.readouterr().out


def test_show_as_json_is_in_bytes_and_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "show", "raspberry-pi-4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "aid-edge/profile/v1"
    assert result["profile"]["memory"]["models"] == 2**30
    assert result["profile"]["constraints"]["hard"]["latency_p95"] == pytest.approx(0.3)
    assert result["profile"]["class"] == "linux"


def test_show_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "show", "toaster"]) == EXIT_USAGE
    err = capsys.readouterr().err
    assert "toaster: no such hardware profile" in err
    assert "generic-x86_64" in err


def test_validate_those_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "validate"]) == 0
    assert capsys.readouterr().out.count(": valid") >= 5


def test_validate_says_all_problems_of_each_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "generic-arm64.toml"
    text = find_profile("generic-arm64").read_text()
    good.write_text(text)
    bad = tmp_path / "bad.toml"
    bad.write_text(text.replace("cores = 2", 'cores = "two"').replace('"1 GiB"', '"1 Gib"'))
    none = tmp_path / "none.toml"
    assert run(["profiles", "validate", str(good), str(bad), str(none)]) == EXIT_USAGE
    units = "B, kB, MB, GB, KiB, MiB, GiB ('4 GiB')"
    assert capsys.readouterr().out.splitlines() == [
        f"{good}: valid",
        f"{bad}: cores: Expected `int`, got `str`",
        f"{bad}: memory.ram: '1 Gib' has no known unit; allowed: {units}",
        f"{none}: cannot be read: No such file or directory",
    ]


def test_validate_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("schema = 3")
    assert run(["profiles", "validate", str(bad), "--json"]) == EXIT_USAGE
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "aid-edge/profiles-validation/v1"
    assert result["files"] == [
        {
            "file": str(bad),
            "valid": False,
            "problems": [{"key": "schema", "problem": "is 3; allowed: 1"}],
        }
    ]
