from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from device_agent.errors import StoreError
from device_agent.telemetry.readings import machine_id, memory_available_bytes, temperature_c


def test_hottest_plausible_zone_counts(tmp_path: Path) -> None:
    for index, text in enumerate(["41000", "63500", "-274000", "999000", "broken"]):
        zone = tmp_path / f"thermal_zone{index}"
        zone.mkdir()
        (zone / "temp").write_text(text)
    assert temperature_c(tmp_path) == 63.5
    assert temperature_c(tmp_path / "none") is None


def test_available_memory_is_read_in_bytes(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8 kB\nMemAvailable:    2048 kB\n")
    assert memory_available_bytes(meminfo) == 2048 * 1024
    meminfo.write_text("MemAvailable: much\n")
    assert memory_available_bytes(meminfo) == 0
    assert memory_available_bytes(tmp_path / "none") == 0


def test_machine_id_stays_and_differs_for_every_kind_of_copy(tmp_path: Path) -> None:
    """A copied folder, and a copied disk in another machine, are other machines."""
    board = tmp_path / "board"
    serial = board / "proc/device-tree/serial-number"
    serial.parent.mkdir(parents=True)
    serial.write_bytes(b"1000000012345678\0")
    ours = tmp_path / "one" / "machine_id"
    found = machine_id(ours, board)
    assert found == machine_id(ours, board)
    assert len(found) == 32
    assert set(found) <= set("0123456789abcdef")
    assert ours.read_text().strip() not in found
    copy = tmp_path / "two"
    shutil.copytree(ours.parent, copy)
    assert machine_id(copy / "machine_id", board) != found
    serial.write_bytes(b"1000000087654321\0")
    assert machine_id(ours, board) != found


def test_machine_id_without_a_serial_number_is_still_one(tmp_path: Path) -> None:
    assert len(machine_id(tmp_path / "machine_id", tmp_path / "nothing")) == 32


def test_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        machine_id(tmp_path / "file" / "machine_id")
