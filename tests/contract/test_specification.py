"""Every requirement of the specification is named by a test; the code cites what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "device_agent" / "contract" / "README.md"
TEXT = README.read_text()

_REQUIREMENT = re.compile(r"^- \*\*(M-[0-9.]+-[0-9]+)\*\* \(([a-z]+)\) ", re.MULTILINE)
REQUIREMENTS = dict(_REQUIREMENT.findall(TEXT))
OWNERS = {"contract", "agent", "hub", "publisher"}


def _named_in_tests() -> set[str]:
    named: set[str] = set()
    for path in set((ROOT / "tests").rglob("*.py")) - {Path(__file__).resolve()}:
        named |= set(re.findall(r"M-[0-9.]+-[0-9]+", path.read_text()))
    return named


NAMED = _named_in_tests()


def test_requirements_are_numbered_once_and_owned() -> None:
    found = [number for number, _ in _REQUIREMENT.findall(TEXT)]
    assert len(found) == len(set(found)) > 70
    assert set(REQUIREMENTS.values()) == OWNERS
    assert found == re.findall(r"\*\*(M-[^*]+)\*\*", TEXT.replace("**M-4.1-2**, and", "")), (
        "a requirement is written in another form than `- **M-1.1-1** (owner) ...`"
    )


@pytest.mark.parametrize("number", REQUIREMENTS)
def test_requirement_stands_in_its_section(number: str) -> None:
    section = number.removeprefix("M-").rsplit("-", 1)[0]
    before = TEXT[: TEXT.index(f"- **{number}**")]
    heading = re.findall(r"^#{2,3} ([0-9.]+?)\.? ", before, re.MULTILINE)[-1]
    assert heading == section


@pytest.mark.parametrize("number", REQUIREMENTS)
def test_requirement_is_named_by_a_test(number: str) -> None:
    assert number in NAMED, f"no test names {number}, which {REQUIREMENTS[number]} must keep"


def test_tests_name_no_requirement_that_does_not_exist() -> None:
    assert set(REQUIREMENTS) >= NAMED


def test_code_cites_sections_that_exist() -> None:
    sections = set(re.findall(r"^#{2,3} ([0-9.]+?)\.? ", TEXT, re.MULTILINE))
    for package in ("device_agent", "aid_edge", "converters"):
        for path in (ROOT / package).rglob("*.py"):
            for cited in re.findall(r"contract ((?:§[0-9.]+(?:, )?)+)", path.read_text()):
                for section in re.findall(r"§([0-9]+(?:\.[0-9]+)?)", cited):
                    assert section in sections, f"{path.relative_to(ROOT)} cites §{section}"


def test_bounds_in_the_text_are_those_of_the_code() -> None:
    """M-3.4-1: the table of §3.4."""
    from device_agent.contract import desired, manifest, messages

    row = r"^\| ([a-zA-Z ]+) \| ([0-9,]+ ?[KMG]?i?B?)(?: characters)? \|$"
    rows = dict(re.findall(row, TEXT, re.MULTILINE))
    unit = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "": 1}
    told = {}
    for what, text in rows.items():
        number, _, suffix = text.replace(",", "").strip().partition(" ")
        told[what] = int(number) * unit[suffix]
    assert told == {
        "JSON message": messages.MAX_CONTROL_BYTES,
        "telemetry": messages.MAX_TELEMETRY_BYTES,
        "metadata file": messages.MAX_METADATA_BYTES,
        "signed desired state": desired.MAX_DESIRED_BYTES,
        "release manifest": manifest.MAX_MANIFEST_BYTES,
        "OCI image manifest": manifest.MAX_IMAGE_MANIFEST_BYTES,
        "blob": manifest.MAX_BLOB_BYTES,
        "chunk": manifest.CHUNK_BYTES,
        "text field": messages.MAX_TEXT_CHARACTERS,
        "chunks of one request": messages.MAX_WINDOW_CHUNKS,
    }
