"""A bundle is installed where no package index can be reached, and its agent starts from there."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from aid_edge.catalogue.create import create_home
from aid_edge.flash.make import Made, Order, make_bundle

NOW = dt.datetime(2026, 11, 23, 7, 30, tzinfo=dt.UTC)
NOWHERE = "http://127.0.0.1:9"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() != "x86_64" or sys.version_info[:2] != (3, 11),
        reason="the bundle of generic-x86_64 runs on x86_64 with Python 3.11 only",
    ),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, wheel_cache: Path) -> Made:
    folder = tmp_path_factory.mktemp("flash")
    home = create_home(folder / "home", "test-fleet", now=NOW)
    order = Order(
        profile="generic-x86_64",
        device="camera-01",
        to=folder / "camera-01",
        broker="mqtts://127.0.0.1:1",
        runtimes=("onnx_runtime",),
        serving_port=0,
        wheel_cache=wheel_cache,
    )
    return make_bundle(home, order, now=NOW)


@pytest.fixture(scope="module")
def installed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("device") / "agent"
    done = install(made.path, "--prefix", str(prefix))
    assert done.returncode == 0, done.stderr
    assert f"{prefix}/venv/bin/aid-agent run --home {prefix}/home" in done.stdout
    return prefix


def environment(**changes: str) -> Mapping[str, str]:
    """No index, no proxy that leads anywhere, nothing of the developer's pip."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "HTTP_PROXY": NOWHERE,
        "HTTPS_PROXY": NOWHERE,
        "PIP_INDEX_URL": f"{NOWHERE}/simple",
        **changes,
    }


def install(bundle: Path, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(bundle / "install.sh"), *words],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def copy_of(made: Made, tmp_path: Path) -> Path:
    """A copy of the bundle that may be changed; wheels are linked, to be quick."""
    copy = tmp_path / "copy"
    shutil.copytree(made.path, copy, copy_function=os.link)
    return copy


def change(path: Path, old: str, new: str) -> None:
    """Change a file without changing the one that it is linked to."""
    text = path.read_text()
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new))


def agent(prefix: Path, verb: str) -> dict[str, object]:
    done = subprocess.run(
        [prefix / "venv" / "bin" / "aid-agent", verb, "--home", prefix / "home", "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_agent_runs_from_what_was_installed(made: Made, installed: Path) -> None:
    status = agent(installed, "status")
    assert (status["device"], status["fleet"]) == ("camera-01", "test-fleet")
    assert (status["profile"], status["version"]) == ("generic-x86_64", made.info.agent)
    assert agent(installed, "verify")["releases"] == []
    code = "import device_agent; print(device_agent.__file__)"
    where = subprocess.run(
        [installed / "venv" / "bin" / "python", "-I", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(installed))


def test_environment_holds_the_runtime_and_nothing_of_the_host(installed: Path) -> None:
    code = (
        "import importlib.util as u, onnxruntime, msgspec, tuf, paho;"
        "print([m for m in ('aid_edge', 'torch', 'click', 'pip') if u.find_spec(m)])"
    )
    done = subprocess.run(
        [installed / "venv/bin/python", "-I", "-c", code],
        env=environment(ORT_DISABLE_TELEMETRY="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_home_is_laid_out_with_tight_modes(made: Made, installed: Path) -> None:
    home = installed / "home"
    for name in ("config.toml", "profile.toml", "trust/root.json", "identity/device.key"):
        assert (home / name).read_bytes() == (made.path / "home" / name).read_bytes()
    assert stat.S_IMODE((home / "identity/device.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "identity").stat().st_mode) == 0o700


def test_installing_again_keeps_the_state(made: Made, installed: Path) -> None:
    kept = installed / "home" / "state" / "spool-of-the-test"
    kept.write_text("measurements")
    done = install(made.path, "--prefix", str(installed))
    assert done.returncode == 0, done.stderr
    assert kept.read_text() == "measurements"
    assert len(list((installed / "envs").iterdir())) == 1


def test_refuses_an_altered_bundle(made: Made, tmp_path: Path) -> None:
    copy = copy_of(made, tmp_path)
    change(copy / "home" / "config.toml", "test-fleet", "best-fleet")
    done = install(copy, "--prefix", str(tmp_path / "agent"))
    assert done.returncode == 1
    assert "home/config.toml" in done.stderr
    assert not (tmp_path / "agent").exists()


def test_refuses_another_machine_or_python(made: Made, tmp_path: Path) -> None:
    for old, new, message in (
        ("ARCH='x86_64'", "ARCH='aarch64'", "this bundle is for aarch64"),
        ("PYTHON_VERSION='3.11'", "PYTHON_VERSION='3.77'", "no CPython 3.77 here"),
        ("GLIBC='2.", "GLIBC='9.", "need glibc 9."),
    ):
        copy = copy_of(made, tmp_path / message.replace(" ", "-"))
        change(copy / "install.sh", old, new)
        done = install(copy, "--prefix", str(tmp_path / "agent"))
        assert done.returncode == 1
        assert message in done.stderr
        assert "hint: " in done.stderr
    assert not (tmp_path / "agent").exists()


def test_refuses_the_place_of_another_device(made: Made, tmp_path: Path) -> None:
    config = tmp_path / "agent" / "home" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('device = "camera-02"\n')
    done = install(made.path, "--prefix", str(tmp_path / "agent"))
    assert done.returncode == 1
    assert "camera-02" in done.stderr
    assert config.read_text() == 'device = "camera-02"\n'


def test_wrong_words_are_a_usage_error(made: Made) -> None:
    assert install(made.path, "--no-such-option").returncode == 2
    assert install(made.path, "--prefix").returncode == 2
    done = install(made.path, "--help")
    assert done.returncode == 0
    assert "--prefix DIR" in done.stdout


def test_refuses_a_place_that_cannot_be_written(made: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = install(made.path, "--prefix", str(tmp_path / "file" / "agent"))
    assert done.returncode == 1
    assert "cannot be made" in done.stderr
