from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from aid_edge.errors import FlashError
from aid_edge.flash.target import WheelTarget
from aid_edge.flash.wheels import (
    device_constraints,
    explain,
    fetch_wheels,
    missing_requirements,
)

PI = WheelTarget(("manylinux_2_28_aarch64",), "3.11", "aarch64")
HERE = WheelTarget(("manylinux_2_28_x86_64",), "3.11", "x86_64")
ROOT = Path(__file__).parents[3]


def wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {r}" for r in requires]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    path.write_bytes(buffer.getvalue())
    return path


def offline(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_device_pins_are_those_of_the_whole_project() -> None:
    def pins(text: str) -> dict[str, str]:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return dict(line.split("==") for line in lines)

    device, project = pins(device_constraints()), pins((ROOT / "constraints.txt").read_text())
    assert {"msgspec", "paho-mqtt", "tuf", "cryptography", "onnxruntime"} <= set(device)
    assert {n: v for n, v in device.items() if n in project and project[n] != v} == {}
    assert set(device) - set(project) <= {"pip"}


def test_what_only_the_target_needs_is_found_missing(tmp_path: Path) -> None:
    wheels = [
        wheel(tmp_path, "top", "1.0", ("arm-only; platform_machine == 'aarch64'", "base>=2")),
        wheel(tmp_path, "base", "2.5", ("winonly; sys_platform == 'win32'", "opt; extra == 'x'")),
    ]
    want = [Requirement("top")]
    assert [r.name for r in missing_requirements(wheels, want, PI)] == ["arm-only"]
    assert missing_requirements(wheels, want, HERE) == []
    with_extra = [Requirement("top"), Requirement("base[x]")]
    assert [r.name for r in missing_requirements(wheels, with_extra, HERE)] == ["opt"]
    too_new = [Requirement("base>=3")]
    assert [str(r) for r in missing_requirements(wheels, too_new, HERE)] == ["base>=3"]


def test_wheels_of_another_platform_come_with_what_its_markers_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    wheel(index, "top", "1.0", ("arm_only; platform_machine == 'aarch64'",))
    wheel(index, "arm_only", "1.0", ("deeper",))
    wheel(index, "deeper", "3.0")
    offline(monkeypatch, index)
    got = fetch_wheels([Requirement("top")], PI, "", tmp_path / "cache")
    assert [n.split("-")[0] for n in got.names] == ["arm_only", "deeper", "top"]
    assert not got.cached

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    again = fetch_wheels([Requirement("top")], PI, "", tmp_path / "cache")
    assert again.cached
    assert again.names == got.names
    (again.folder / again.names[0]).write_bytes(b"spoilt")
    with pytest.raises(FlashError):
        fetch_wheels([Requirement("top")], PI, "", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".new-*"))


def test_a_wheel_that_does_not_exist_is_named_with_the_tags_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    wheel(index, "top", "1.0", ("absent",))
    offline(monkeypatch, index)
    with pytest.raises(FlashError, match=r"no wheel of absent .* aarch64, Python 3\.11") as caught:
        fetch_wheels([Requirement("top")], PI, "", tmp_path / "cache")
    assert "manylinux_2_28_aarch64" in caught.value.cause
    assert "--runtime" in caught.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_pinned_wheel_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    wheel(index, "top", "1.0")
    offline(monkeypatch, index)
    with pytest.raises(FlashError, match=r"no wheel of top==2\.0"):
        fetch_wheels([Requirement("top>=1")], PI, "top==2.0\n", tmp_path / "cache")
    with pytest.raises(FlashError, match="contradicts"):
        fetch_wheels([Requirement("top<2")], PI, "top==2.0\n", tmp_path / "cache")


def test_an_index_out_of_reach_is_told_from_a_missing_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(FlashError, match="index cannot be reached"):
        fetch_wheels([Requirement("top")], PI, "", tmp_path / "cache")


def test_other_failures_of_pip_are_passed_on() -> None:
    error = explain("WARNING: x\nERROR: the disk is full\n", PI)
    assert "the disk is full" in error.cause
    assert "WARNING" not in error.cause


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlashError, match="cannot be written"):
        fetch_wheels([Requirement("top")], PI, "", tmp_path / "file" / "cache")


def test_the_cache_index_lists_every_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    wheel(index, "top", "1.0")
    offline(monkeypatch, index)
    got = fetch_wheels([Requirement("top")], PI, "", tmp_path / "cache")
    assert set(json.loads((got.folder / "wheels.json").read_text())) == set(got.names)


def test_pips_words_for_two_ranges_are_understood() -> None:
    output = (
        "ERROR: Cannot install litert<3 and >=2.0 because these package versions have conflicting"
        " dependencies.\n\nThe conflict is caused by:\n    The user requested litert<3 and >=2.0\n"
        "    something that is no requirement !\n"
        "    The user requested (constraint) litert==2.3.0\n\nERROR: ResolutionImpossible: ...\n"
    )
    assert "no wheel of litert==2.3.0" in str(explain(output, PI))
    assert "contradicts" in str(explain(output.replace("<3", "<2.1"), PI))
