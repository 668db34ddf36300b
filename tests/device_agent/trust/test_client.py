from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from aid_edge.catalogue.keys import KeyRole
from device_agent.contract.agent_config import AgentConfig, BrokerConfig
from device_agent.contract.errors import (
    AidError,
    DigestMismatchError,
    ExpiredError,
    MalformedMessageError,
    MessageTooLargeError,
    RollbackError,
    SignatureError,
    TrustError,
    UnsupportedVersionError,
    UnverifiableError,
    WrongDeviceError,
)
from device_agent.errors import StoreError, TransportError
from device_agent.trust import client
from device_agent.trust.client import TrustPaths, stored_metadata
from device_agent.trust.frames import (
    MAX_FRAME_BYTES,
    MetadataAnswer,
    NeedMetadata,
    PipeClosedError,
    Pipes,
    PipeTimeoutError,
    error_of,
    refusal,
)
from tests.support.releases import NOW, make_draft, publish
from tests.support.trust_world import World


def test_a_good_desired_state_comes_back_with_its_releases(world: World) -> None:
    """M-8.2-1."""
    verified = world.verify()
    assert verified.desired == world.desired()
    (release,) = verified.releases
    assert release.digest == world.published.digest
    assert (release.slot, release.counter) == ("active", 1)
    image = world.home.catalogue / "blobs/sha256" / release.digest.removeprefix("sha256:")
    assert image.stat().st_size == release.size


def test_two_slots_are_verified_each(world: World, tmp_path: Path) -> None:
    (two,) = publish(world.home, [make_draft(tmp_path / "2", version="2.0.0", seed=2)])
    import msgspec

    candidate = msgspec.structs.replace(world.slot(two), slot="candidate")
    verified = world.verify(world.envelope(world.desired(world.slot(), candidate)))
    assert [(r.slot, r.release.version, r.counter) for r in verified.releases] == [
        ("active", "1.0.0", 1),
        ("candidate", "2.0.0", 2),
    ]


def test_run_nothing_needs_no_metadata(world: World) -> None:
    """M-4.2-5."""
    verified = world.verify(world.envelope(world.desired(slots=())))
    assert (verified.releases, world.asked) == ((), [])


def test_what_is_known_is_not_fetched_again(world: World) -> None:
    world.verify()
    assert world.asked == ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]
    world.asked.clear()
    world.verify()
    assert world.asked == ["2.root.json", "timestamp.json"]


def test_what_was_verified_can_be_checked_again_without_a_hub(world: World) -> None:
    """M-8.2-3: long after everything has expired, and with no clock."""
    world.verify()
    again = client.verify(
        world.envelope(),
        client.Expected(
            fleet="fleet-a", device="camera-01", profile="generic-x86_64", last_revision=7
        ),
        world.paths,
        stored_metadata(world.paths),
        now_unix_s=0,
    )
    assert again.releases[0].digest == world.published.digest


def test_an_error_of_the_fetch_ends_the_step_and_comes_through(world: World) -> None:
    """M-4.8-3."""

    def failing(name: str, max_bytes: int) -> bytes | None:
        raise TransportError("the connection went away")

    with pytest.raises(TransportError, match="went away"):
        world.verify(fetch=failing)
    assert world.verify().releases


def test_a_step_that_takes_too_long_is_ended(world: World) -> None:
    def slow(name: str, max_bytes: int) -> bytes | None:
        time.sleep(0.3)
        return world.fetch(name, max_bytes)

    with pytest.raises(UnverifiableError, match="longer than"):
        client.verify(
            world.envelope(),
            client.Expected(
                fleet="fleet-a", device="camera-01", profile="generic-x86_64", last_revision=0
            ),
            world.paths,
            slow,
            now_unix_s=NOW.timestamp(),
            timeout_s=0.2,
        )


def test_a_step_that_dies_is_said_with_its_last_words(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\ncat > /dev/null & echo 'Killed by the tide' >&2; exit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(UnverifiableError, match="exit code 3") as caught:
        world.verify()
    assert "tide" in caught.value.cause


@pytest.mark.parametrize(
    "name", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]
)
def test_a_step_that_is_killed_loses_nothing(world: World, name: str) -> None:
    def killing(asked: str, max_bytes: int) -> bytes | None:
        if asked == name:
            tasks = Path("/proc/self/task")
            for child in (tasks / str(threading.get_native_id()) / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        return world.fetch(asked, max_bytes)

    with pytest.raises(UnverifiableError, match="exit code -9"):
        world.verify(fetch=killing)
    assert world.verify().releases


def test_an_interpreter_that_is_not_there_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UnverifiableError, match="cannot be started"):
        world.verify()


@pytest.mark.parametrize("which", ["root", "director_key"])
@pytest.mark.parametrize("data", [None, b"", b"{}", b"\xff", b"[]", b'{"keyid": 1}'])
def test_a_broken_bundle_is_said_so(world: World, which: str, data: bytes | None) -> None:
    path: Path = getattr(world.paths, which)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(UnverifiableError, match="cannot be read") as caught:
        world.verify()
    assert "lash the device" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_an_error(world: World) -> None:
    world.paths.metadata.parent.mkdir(parents=True)
    world.paths.metadata.write_text("a file where the folder should be")
    with pytest.raises(StoreError):
        world.verify()


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json"])
@pytest.mark.parametrize("data", [b"", b"{", None])
def test_stored_metadata_that_a_power_cut_spoiled_is_fetched_again(
    world: World, name: str, data: bytes | None
) -> None:
    world.verify()
    if data is None:
        (world.paths.metadata / name).unlink()
    else:
        (world.paths.metadata / name).write_bytes(data)
    (world.paths.metadata / "tmpabandoned").write_bytes(b"half")
    assert world.verify().releases
    assert not list(world.paths.metadata.glob("tmp*"))


def test_a_power_cut_does_not_take_the_memory_of_root_away(world: World) -> None:
    world.verify()
    (world.paths.metadata / "root.json").unlink()
    assert world.verify().releases


def test_no_child_is_left_behind(world: World) -> None:
    before = set(psutil.Process().children())
    for envelope in (None, b"nonsense"):
        try:
            world.verify(envelope)
        except TrustError as e:
            raise AssertionError from e
        except MalformedMessageError:
            pass
        # Other tests of this process may have children of their own.
        assert set(psutil.Process().children()) <= before


def test_the_supervisors_side_loads_neither_tuf_nor_cryptography() -> None:
    code = (
        "import sys, device_agent.trust.client\n"
        "heavy = ('tuf', 'securesystemslib', 'cryptography', 'numpy')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_paths_are_those_of_the_configuration(tmp_path: Path) -> None:
    config = AgentConfig(
        schema=1, device="camera-01", fleet="fleet-a", broker=BrokerConfig(url="mqtt://127.0.0.1:1")
    )
    assert TrustPaths.of(tmp_path, config) == TrustPaths(
        tmp_path / "trust/root.json", tmp_path / "trust/director.json", tmp_path / "state/tuf"
    )


@pytest.mark.parametrize(
    "error",
    [
        RollbackError("desired revision", 3, 4),
        DigestMismatchError("a", "sha256:1", "sha256:2"),
        MessageTooLargeError("desired state", 9000, 8192),
        UnsupportedVersionError("desired state", 2, 1),
        SignatureError("wrong", cause="why", hint="what"),
        UnverifiableError("x"),
        ExpiredError("x", hint="y"),
        WrongDeviceError("x"),
        TrustError("x"),
        MalformedMessageError("x"),
        StoreError("x"),
    ],
)
def test_errors_cross_the_pipe_with_class_and_fields(error: AidError) -> None:
    again = error_of(refusal(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def pipe_pair(deadline_s: float | None) -> tuple[Pipes, Pipes, list[int]]:
    one_r, one_w = os.pipe()
    two_r, two_w = os.pipe()
    return (
        Pipes(one_r, two_w, deadline_s=deadline_s),
        Pipes(two_r, one_w, deadline_s=deadline_s),
        [one_r, one_w, two_r, two_w],
    )


def test_frames_that_are_none_are_refused() -> None:
    here, there, descriptors = pipe_pair(time.monotonic() + 10)
    try:
        os.write(descriptors[1], (MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(MessageTooLargeError):
            here.receive(NeedMetadata)
        os.write(descriptors[1], b"\x00\x00\x00\x01\xc1")
        with pytest.raises(MalformedMessageError):
            here.receive(NeedMetadata)
        there.send(NeedMetadata(name="timestamp.json", max_bytes=1))
        with pytest.raises(MalformedMessageError):
            here.receive(MetadataAnswer)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_silence_and_a_closed_pipe_are_told_apart() -> None:
    here, _, descriptors = pipe_pair(time.monotonic() + 0.05)
    with pytest.raises(PipeTimeoutError):
        here.receive(NeedMetadata)
    with pytest.raises(PipeTimeoutError):
        here.send(MetadataAnswer(data=bytes(2**20)))
    for descriptor in descriptors:
        os.close(descriptor)
    here, _, descriptors = pipe_pair(None)
    os.close(descriptors[1])
    os.close(descriptors[2])
    with pytest.raises(PipeClosedError):
        here.receive(NeedMetadata)
    with pytest.raises(PipeClosedError):
        here.send(MetadataAnswer(data=None))
    os.close(descriptors[0])
    os.close(descriptors[3])


def test_the_director_key_of_the_bundle_is_the_homes(world: World) -> None:
    import json

    document = json.loads(world.paths.director_key.read_bytes())
    assert document["keyid"] == world.signer(KeyRole.DIRECTOR).public_key.keyid
    assert (document["keytype"], document["scheme"]) == ("ed25519", "ed25519")
