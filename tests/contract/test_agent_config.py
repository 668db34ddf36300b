"""The agent's configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.contract.agent_config import ConfigError, read_config

GOOD = """
schema = 1
device = "pi-1"
fleet = "lab"
[broker]
url = "mqtts://hub.lan:8883"
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_small_configuration_has_bounds_for_everything(tmp_path: Path) -> None:
    config = read_config(_write(tmp_path, GOOD))
    assert (config.device, config.fleet) == ("pi-1", "lab")
    assert config.limits.spool_max_bytes == 64 * 2**20
    assert config.broker.ca == "identity/ca.pem"
    assert config.serving.port == 8470


@pytest.mark.parametrize(
    "url",
    ["mqtts://hub.lan:8883", "mqtt://127.0.0.1:1883", "mqtt://localhost:1883", "mqtt://[::1]:1883"],
)
def test_address_is_taken(tmp_path: Path, url: str) -> None:
    """M-8.3-1."""
    path = _write(tmp_path, GOOD.replace("mqtts://hub.lan:8883", url))
    assert read_config(path).broker.url == url


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://hub.lan:1883",
        "mqtt://192.168.1.5:1883",
        "mqtt://127.0.0.1.evil.example:1883",
        "mqtt://0.0.0.0:1883",
        "mqtt://localhost@evil.example:1883",
    ],
)
def test_address_without_tls_is_refused(tmp_path: Path, url: str) -> None:
    """M-8.3-1."""
    with pytest.raises(ConfigError, match=r"broker\.url: "):
        read_config(_write(tmp_path, GOOD.replace("mqtts://hub.lan:8883", url)))


@pytest.mark.parametrize(
    "url", ["", "hub.lan", "http://hub.lan:80", "mqtts://hub.lan", "mqtts://:1", "mqtts://h:x"]
)
def test_what_is_no_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml: broker\.url: "):
        read_config(_write(tmp_path, GOOD.replace("mqtts://hub.lan:8883", url)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("schema = 1", "schema = 9", "schema: is 9; allowed: 1"),
        ('device = "pi-1"', 'device = "Pi 1"', "device: "),
        ('device = "pi-1"', "", "device: missing"),
        ('fleet = "lab"', 'flet = "lab"', "did you mean 'fleet'?"),
        ("[broker]", "[brokers]", "did you mean 'broker'?"),
        ("[broker]", "[serving]\nport = 70000\n[broker]", "serving.port: Expected `int` <= 65535"),
        ("[broker]", "[limits]\nfetch_stall_s = 0\n[broker]", "limits.fetch_stall_s: "),
        ("[broker]", '[limits]\nreleases_kept = "3"\n[broker]', "limits.releases_kept: "),
    ],
)
def test_wrong_key_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    """M-3.2-2."""
    with pytest.raises(ConfigError) as caught:
        read_config(_write(tmp_path, GOOD.replace(old, new)))
    assert says in str(caught.value)
    assert str(tmp_path / "config.toml") in str(caught.value)


def test_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config(_write(tmp_path, "schema = ["))
    with pytest.raises(ConfigError, match="larger than"):
        read_config(_write(tmp_path, "#" * 70_000))
