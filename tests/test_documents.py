"""Documents point at what exists: links, tests, requirements, verbs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from aid_edge.cli.main import VERBS, cli

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "hardware-profiles").glob("*.md"),
        ROOT / "device_agent" / "contract" / "README.md",
    ]
)
SPECIFICATION = (ROOT / "device_agent" / "contract" / "README.md").read_text()
THREATS = (ROOT / "docs" / "threat-model.md").read_text()


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(text: str) -> Iterator[str]:
    """Yield the shell lines of a document, continued ones joined."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        assert (path.parent / target).exists(), f"{_name(path)} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_shown_command_lines_have_verbs_and_options_that_exist(path: Path) -> None:
    for line in _blocks(path.read_text()):
        words = shlex.split(line, comments=True)
        if words[:1] != ["aid-edge"]:
            continue
        command: click.Command = cli
        for word in words[1:]:
            if isinstance(command, click.Group) and not word.startswith("-"):
                found = command.get_command(click.Context(command), word)
                assert found is not None, f"{_name(path)}: {line}"
                command = found
            elif word.startswith("-"):
                options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
                assert word.partition("=")[0] in options, f"{_name(path)}: {line}"


def test_threat_model_cites_tests_that_exist() -> None:
    cited = re.findall(r"`(tests/[^`]+)`", THREATS)
    assert len(cited) > 20
    for citation in cited:
        place, _, test = citation.partition("::")
        assert (ROOT / place).exists(), citation
        if test:
            text = (ROOT / place).read_text()
            assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), citation
        elif (ROOT / place).is_dir():
            assert list((ROOT / place).glob("test_*.py")), citation


def test_threat_model_cites_requirements_that_exist() -> None:
    for number in re.findall(r"`(M-[0-9.]+-[0-9]+)`", THREATS):
        assert f"**{number}**" in SPECIFICATION, number


def test_every_line_of_the_threat_model_names_a_test() -> None:
    rows = re.findall(r"^\|.*\|$", THREATS.partition("## Releases")[2], re.MULTILINE)
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if cells[0] == "vector" or set(cells[0]) <= {"-"}:
            continue
        assert len(cells) == 4, row
        assert "`M-" in cells[3] or "`tests/" in cells[3], row


def test_decisions_have_their_six_headings_and_stand_in_the_list() -> None:
    headings = ["Context", "Decision", "Rejected", "Consequences", "Price", "Status"]
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    decisions = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert len(decisions) >= 8
    for path in decisions:
        assert re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE) == headings, path.name
        assert f"({path.name})" in index, path.name


def test_readme_has_the_exit_codes_and_verbs_of_the_program() -> None:
    """What people script against is said once and truly."""
    readme = (ROOT / "README.md").read_text()
    codes = re.sub(r"\s+", " ", readme)
    for code in (
        "0 ok",
        "1 failed",
        "2 usage",
        "3 a gate was missed",
        "4 trust",
        "130 interrupted",
    ):
        assert code in codes
    assert set(re.findall(r"^aid-edge ([a-z]+)", readme, re.MULTILINE)) <= set(VERBS)
