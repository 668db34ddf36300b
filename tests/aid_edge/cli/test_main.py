"""Conventions of the command line: verbs, help, exit codes, errors, lean start."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from aid_edge.cli import main as cli_main
from aid_edge.cli.main import VERBS, cli, run
from aid_edge.errors import (
    GateMissedError,
    HubUnreachableError,
    MissingDependencyError,
    UsageError,
)
from device_agent.contract.errors import (
    EXIT_FAILED,
    EXIT_GATE_MISSED,
    EXIT_INTERRUPTED,
    EXIT_TOOLCHAIN_MISSING,
    EXIT_TRUST,
    EXIT_USAGE,
    AidError,
    SignatureError,
)

HEAVY = [
    "torch", "numpy", "onnx", "onnxruntime", "keras", "tensorflow", "paho", "fastapi", "rich",
    "cryptography", "tuf", "PIL", "jinja2", "httpx",
]  # fmt: skip
SILENT = {"hub serve", "completion", "hub ingest"}
"""Commands whose result is not one document."""


def _commands() -> Iterator[tuple[str, click.Command]]:
    for verb in VERBS:
        found = importlib.import_module(f"aid_edge.cli.{verb}").command
        yield from _below(verb, found)


def _below(path: str, found: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(found, click.Group):
        for name, sub in found.commands.items():
            yield from _below(f"{path} {name}", sub)
        return
    yield path, found


def _fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make the verb ``doctor`` end with ``error``."""

    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    def command(as_json: bool) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("aid_edge.cli.doctor"), "command", command)


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_a_command_with_help(verb: str) -> None:
    module = importlib.import_module(f"aid_edge.cli.{verb}")
    assert isinstance(module.command, click.Command)
    assert module.command.help, verb


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_every_verb_works(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: aid-edge {verb}")
    assert err == ""


def test_every_command_can_say_its_result_as_json() -> None:
    for path, found in _commands():
        options = {name for param in found.params for name in param.opts}
        assert "--json" in options or path in SILENT, path


def test_every_option_of_every_command_has_help() -> None:
    for path, found in _commands():
        for param in found.params:
            if isinstance(param, click.Option):
                assert param.help, f"{path} {param.opts[0]}"


def test_every_module_of_a_verb_is_a_verb() -> None:
    """A verb that the table forgot would never be found."""
    folder = Path(cli_main.__file__).parent
    with_command = {
        path.stem
        for path in folder.glob("*.py")
        # What is below a verb has the verb's name before its own.
        if path.stem.split("_")[0] not in VERBS or path.stem in VERBS
        if re.search(r"^def command\(|^command = ", path.read_text(), re.MULTILINE)
    }
    assert with_command == set(VERBS)


def test_help_names_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb}" in out
    codes = re.sub(r"\s+", " ", out)
    for code in ("0 ok", "3 gate missed", "6 toolchain missing", "130 interrupted"):
        assert code in codes


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom aid_edge.cli.main import run\nrun(['--help'])\n"
        f"print(*(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_help_imports_no_verb() -> None:
    code = (
        "import sys\nfrom aid_edge.cli.main import VERBS, run\nrun(['--help'])\n"
        "print(*(v for v in VERBS if f'aid_edge.cli.{v}' in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AidError("no"), EXIT_FAILED),
        (UsageError("no"), EXIT_USAGE),
        (GateMissedError("no"), EXIT_GATE_MISSED),
        (SignatureError("no"), EXIT_TRUST),
        (MissingDependencyError("x", "torch", "convert"), EXIT_TOOLCHAIN_MISSING),
        (HubUnreachableError("no"), EXIT_FAILED),
        (OSError(28, "No space left on device", "/out"), EXIT_FAILED),
        (KeyboardInterrupt(), EXIT_INTERRUPTED),
        (click.Abort(), EXIT_INTERRUPTED),
    ],
)
def test_exit_code_of_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    _fail_with(monkeypatch, error)
    assert run(["doctor"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_error_says_code_cause_and_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fail_with(monkeypatch, AidError("it failed", cause="it was wet", hint="dry it"))
    run(["doctor"])
    assert capsys.readouterr().err.splitlines() == [
        "error [failed]: it failed",
        "cause: it was wet",
        "hint: dry it",
    ]


def test_error_as_json_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fail_with(monkeypatch, HubUnreachableError("nobody there"))
    assert run(["doctor", "--json"]) == EXIT_FAILED
    out, err = capsys.readouterr()
    assert out == ""
    body = json.loads(err)
    assert body["schema"] == "aid-edge/error/v1"
    assert body["error"]["code"] == "hub-unreachable"
    assert "hub serve" in body["error"]["hint"]


def test_usage_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json", "--nonsense"]) == EXIT_USAGE
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "usage"


def test_verbose_error_has_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fail_with(monkeypatch, AidError("no"))
    assert run(["-v", "doctor"]) == EXIT_FAILED
    assert "Traceback" in capsys.readouterr().err


def test_bug_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What we did not foresee keeps its traceback."""
    _fail_with(monkeypatch, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        run(["doctor"])


def test_full_disk_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fail_with(monkeypatch, OSError(28, "No space left on device", "/out/model.onnx"))
    run(["doctor"])
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "/out/model.onnx" in err


def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fail_with(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch"))
    monkeypatch.setitem(cli_main.EXTRAS, "doctor", "convert")
    assert run(["doctor"]) == EXIT_TOOLCHAIN_MISSING
    err = capsys.readouterr().err
    assert "torch" in err
    assert "pip install 'aid-edge[convert]'" in err


def test_missing_module_of_ours_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(monkeypatch, ModuleNotFoundError("gone", name="aid_edge.gone"))
    with pytest.raises(ModuleNotFoundError):
        run(["doctor"])


def test_misspelt_verb_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profilse"]) == EXIT_USAGE
    assert "Did you mean 'profiles'?" in capsys.readouterr().err


def test_no_verb_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == EXIT_USAGE
    assert "Verbs" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"aid-edge, version \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_reader_that_goes_away_is_no_traceback() -> None:
    """As in ``aid-edge profiles list | head -1``."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "aid_edge.cli", "profiles", "list"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "Traceback" not in done.stderr


def test_without_click_the_extra_is_named(tmp_path: Path) -> None:
    """The device's installation has the console script but not its packages."""
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('no click', name='click')")
    done = subprocess.run(
        [sys.executable, "-m", "aid_edge.cli"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_TOOLCHAIN_MISSING
    assert "pip install 'aid-edge[all]'" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_verbs_options_and_profiles(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*VERBS, "validate", "require", "raspberry-pi-4"):
        assert word in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: its script was not parsed")
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["aid-edge", "pro"], ["profiles"]),
        (["aid-edge", "profiles", ""], ["list", "show", "validate", "calibrate", "--help"]),
        (
            ["aid-edge", "profiles", "show", "rasp"],
            ["raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2w"],
        ),
        (["aid-edge", "doctor", "--require", "h"], ["hub"]),
        (["aid-edge", "-q", "doctor", "--req"], ["--require"]),
        (["aid-edge", "publish", "--profile", "intel"], ["intel-nuc-11"]),
    ],
)
def test_completion_in_bash(
    words: list[str], offered: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The script itself is run, as bash runs it on Tab."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    run(["completion", "bash"])
    script = capsys.readouterr().out
    line = " ".join(f"'{w}'" for w in words)
    asked = (
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _aid_edge\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc"], input=script + asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == offered


def test_click_group_is_the_one_that_runs() -> None:
    assert cli.list_commands(click.Context(cli)) == list(VERBS)
