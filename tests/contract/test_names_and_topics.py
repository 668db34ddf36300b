"""Identifiers, digests and topics (contract §1, §2)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from device_agent.contract import topics
from device_agent.contract.errors import MalformedMessageError
from device_agent.contract.names import (
    check_digest,
    check_identifier,
    check_version,
    digest_of,
)
from device_agent.contract.topics import DELIVERY, DOWN, UP, Channel

GOOD = ["a", "pi-1", "0", "lab.north_2", "x" * 63, "cast-iron"]
BAD = ["", "A", "-a", ".a", "_a", "a b", "a/b", "a+b", "#", "+", "a\n", "\na", "ä", "x" * 64, "a\0"]


@pytest.mark.parametrize("name", GOOD)
def test_identifier_is_taken(name: str) -> None:
    """M-1.1-1."""
    assert check_identifier("device", name) == name


@pytest.mark.parametrize("name", BAD)
def test_other_identifier_is_refused(name: str) -> None:
    """M-1.1-1."""
    with pytest.raises(MalformedMessageError) as caught:
        check_identifier("device", name)
    assert "device" in str(caught.value)
    assert "a-z" in caught.value.hint


@pytest.mark.parametrize("name", ["1.0", "2026-11-23", "v1+cpu", "A", "0" * 63])
def test_version_is_taken(name: str) -> None:
    """M-1.1-1."""
    assert check_version(name) == name


@pytest.mark.parametrize("name", ["", "../1", "1/2", "1 0", "1\n", "+1", "0" * 64])
def test_other_version_is_refused(name: str) -> None:
    """M-1.1-1."""
    with pytest.raises(MalformedMessageError):
        check_version(name)


def test_digest_of_known_bytes() -> None:
    """M-1.2-1: the test vector of FIPS 180-4 for "abc"."""
    known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(b"abc") == known
    assert digest_of(memoryview(b"abc")) == known
    assert check_digest(known) == known


@pytest.mark.parametrize(
    "digest",
    ["", "ab" * 32, "sha512:" + "ab" * 32, "sha256:" + "AB" * 32, "sha256:" + "ab" * 32 + "\n"],
)
def test_other_digest_is_refused(digest: str) -> None:
    """M-1.2-1."""
    with pytest.raises(MalformedMessageError):
        check_digest(digest)


@pytest.mark.parametrize("channel", list(Channel))
def test_topic_reads_back(channel: Channel) -> None:
    """M-2.1-1."""
    name = topics.topic("lab", "pi-1", channel)
    assert name == f"aid/v1/lab/pi-1/{channel.value}"
    assert topics.parse(name) == ("lab", "pi-1", channel)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "aid",
        "aid/v1/lab/pi-1",
        "aid/v1/lab/pi-1/",
        "aid/v2/lab/pi-1/conn",
        "/aid/v1/lab/pi-1/conn",
        "aid/v1/lab/pi-1/conn/",
        "aid/v1/lab/pi-1/conn/x",
        "aid/v1/lab/pi-1/blob",
        "aid/v1/lab/pi-1/blob/chunk/0",
        "aid/v1/lab/pi-1/CONN",
        "aid/v1/lab/+/conn",
        "aid/v1/LAB/pi-1/conn",
        "aid/v1//pi-1/conn",
        "aid/v1/lab/pi\n/conn",
    ],
)
def test_other_topic_is_refused(name: str) -> None:
    """M-2.1-2."""
    with pytest.raises(MalformedMessageError):
        topics.parse(name)


@pytest.mark.parametrize(("fleet", "device"), [("a/b", "pi"), ("lab", "+"), ("lab", "a/b")])
def test_topic_of_a_wrong_name_is_not_built(fleet: str, device: str) -> None:
    """M-1.1-1, M-2.1-1."""
    with pytest.raises(MalformedMessageError):
        topics.topic(fleet, device, Channel.CONN)


def test_cast_is_no_device() -> None:
    """M-1.1-2."""
    with pytest.raises(MalformedMessageError, match="reserved"):
        topics.topic("lab", "cast", Channel.CONN)
    with pytest.raises(MalformedMessageError, match="reserved"):
        topics.parse("aid/v1/lab/cast/conn")


@pytest.mark.parametrize("channel", list(Channel))
def test_subscription_matches_its_channel_only(channel: Channel) -> None:
    """M-2.2-1, with MQTT's own matching of filters."""
    from paho.mqtt.client import topic_matches_sub

    pattern = topics.subscription("lab", channel)
    for other in Channel:
        matches = topic_matches_sub(pattern, topics.topic("lab", "pi-1", other))
        assert matches is (other is channel)
    assert not topic_matches_sub(pattern, topics.topic("den", "pi-1", channel))


def test_subscription_of_a_wrong_fleet_is_not_built() -> None:
    """M-2.2-1: a fleet named ``+`` would read every fleet."""
    with pytest.raises(MalformedMessageError):
        topics.subscription("+", Channel.CONN)


def test_every_channel_has_one_direction() -> None:
    """M-2.3-1."""
    assert set(UP) | set(DOWN) == set(Channel)
    assert not set(UP) & set(DOWN)


def test_delivery_is_the_table_of_the_specification() -> None:
    """M-2.3-1."""
    text = Path(topics.__file__).with_name("README.md").read_text()
    rows = re.findall(r"^\| `([a-z/]+)` \| (up|down) \| (\d) \| (yes|no) \|", text, re.MULTILINE)
    assert len(rows) == len(Channel)
    for name, direction, qos, retained in rows:
        channel = Channel(name)
        assert channel in (UP if direction == "up" else DOWN)
        assert (DELIVERY[channel].qos, DELIVERY[channel].retain) == (int(qos), retained == "yes")
