"""Bundles for two kinds of devices, from the real package index; what is refused, and why."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import io
import sqlite3
import stat
import tarfile
import zipfile
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from aid_edge.errors import FlashError, HomeError, UsageError
from aid_edge.flash import bundle
from aid_edge.flash.make import Made, Order, check_broker, choose_runtimes, make_bundle
from aid_edge.flash.target import target_of
from aid_edge.home import Home
from aid_edge.hub.schema import database_path
from aid_edge.profiles import find_profile, load_profile
from device_agent.contract.agent_config import read_config
from device_agent.contract.errors import MalformedMessageError, ProfileError
from device_agent.contract.profile import read_profile

NOW = dt.datetime(2026, 11, 23, 7, 30, tzinfo=dt.UTC)
BROKER = "mqtts://hub.test:8883"


def order(tmp_path: Path, **changes: object) -> Order:
    base = Order(
        profile="generic-x86_64",
        device="camera-01",
        to=tmp_path / "out" / "camera-01",
        broker=BROKER,
        serving_port=0,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def registered(home: Home) -> dict[str, tuple[str, str]]:
    connection = sqlite3.connect(database_path(home))
    rows = connection.execute("SELECT id, profile, seed FROM device").fetchall()
    connection.close()
    return {row[0]: (row[1], row[2]) for row in rows}


def check_whole(folder: Path, made: Made, profile: str) -> None:
    """Everything that the bundle says of itself is so."""
    info = bundle.read_info((folder / "bundle.json").read_bytes())
    assert info == made.info
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert on_disk == {f.path for f in info.files} | {"bundle.json", "SHA256SUMS"}
    for file in info.files:
        data = (folder / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
    home = folder / "home"
    config = read_config(home / "config.toml")
    assert (config.device, config.fleet, config.seed) == ("camera-01", "test-fleet", info.id)
    assert (config.broker.url, config.serving.port) == (BROKER, 0)
    assert read_profile(home / config.profile)[1] == load_profile(profile)[1]
    for path in (config.broker.ca, config.broker.certificate, config.broker.key):
        assert (home / path).is_file()
    for path in (config.director_key, config.tuf_root):
        assert (home / path).is_file()
    assert stat.S_IMODE((home / config.broker.key).stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate((home / config.broker.certificate).read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=camera-01"
    authority = x509.load_pem_x509_certificate((home / config.broker.ca).read_bytes())
    certificate.verify_directly_issued_by(authority)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["generic-x86_64", "raspberry-pi-4"])
def test_bundle_holds_all_that_the_device_needs(
    home: Home, tmp_path: Path, wheel_cache: Path, profile: str
) -> None:
    made = make_bundle(home, order(tmp_path, profile=profile, wheel_cache=wheel_cache), now=NOW)
    check_whole(made.path, made, profile)
    target = target_of(load_profile(profile)[0])
    wheels = [p.name for p in (made.path / "wheels").iterdir()]
    assert [name for name in wheels if not target.takes(name)] == []
    names = {name.split("-")[0] for name in wheels}
    assert {"aid_edge", "msgspec", "paho_mqtt", "tuf", "cryptography", "onnxruntime"} <= names
    assert {"ai_edge_litert", "numpy", "pip"} <= names
    assert not names & {"torch", "onnx", "click", "fastapi"}
    assert set(made.info.runtimes) == {"onnx_runtime", "litert"}
    assert all(made.info.runtimes.values())
    assert registered(home) == {"camera-01": (profile, made.info.id)}
    assert [p.name for p in made.path.parent.iterdir()] == ["camera-01"]


@pytest.mark.slow
def test_archive_holds_the_same_and_only_one_runtime_if_told(
    home: Home, tmp_path: Path, wheel_cache: Path
) -> None:
    to = tmp_path / "camera-01.tar.gz"
    wanted = order(tmp_path, to=to, runtimes=("onnxruntime",), wheel_cache=wheel_cache)
    made = make_bundle(home, wanted, now=NOW)
    assert set(made.info.runtimes) == {"onnx_runtime"}
    assert not [f.path for f in made.info.files if "litert" in f.path]
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    with tarfile.open(to) as tar:
        tar.extractall(tmp_path / "x", filter="tar")
    check_whole(tmp_path / "x" / "aid-edge-camera-01", made, "generic-x86_64")

    # Once more, and to the same place: only with force, and with another identity.
    with pytest.raises(FlashError, match="already"):
        make_bundle(home, wanted, now=NOW)
    again = make_bundle(home, dataclasses.replace(wanted, force=True), now=NOW)
    assert again.cached
    assert again.info.id != made.info.id
    assert again.info.certificate_sha256 != made.info.certificate_sha256
    assert registered(home) == {"camera-01": ("generic-x86_64", again.info.id)}
    assert bundle.read_packed_info(to) == again.info


@pytest.mark.slow
def test_refuses_a_wheel_that_does_not_exist_for_the_target(
    home: Home, tmp_path: Path, wheel_cache: Path
) -> None:
    text = find_profile("raspberry-pi-4").read_text()
    text = text.replace('"raspberry-pi-4"', '"old-pi"').replace('"aarch64"', '"armv7l"')
    text = text.replace("_aarch64", "_armv7l")
    (tmp_path / "old-pi.toml").write_text(text)
    wanted = order(tmp_path, profile=str(tmp_path / "old-pi.toml"), wheel_cache=wheel_cache)
    with pytest.raises(FlashError, match=r"no wheel of \S+ exists for armv7l") as caught:
        make_bundle(home, wanted, now=NOW)
    assert "_armv7l" in caught.value.cause
    assert caught.value.hint
    assert not wanted.to.exists()
    assert registered(home) == {}


def test_refuses_a_device_that_is_registered_already(home: Home, tmp_path: Path) -> None:
    from aid_edge.hub.store import register_device

    register_device(home, "camera-01", "generic-x86_64", "seed")
    with pytest.raises(FlashError, match="in the fleet already") as caught:
        make_bundle(home, order(tmp_path), now=NOW)
    assert "--force" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_refuses_a_place_that_holds_anything_else(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("x")
    archive = tmp_path / "taken.tar.gz"
    archive.write_bytes(b"not a bundle")
    link = tmp_path / "link"
    link.symlink_to(folder)
    for to, message in (
        (folder, "holds something else"),
        (file, "is a file"),
        (archive, "holds something else"),
        (link, "symbolic link"),
    ):
        with pytest.raises(FlashError, match=message):
            make_bundle(home, order(tmp_path, to=to, force=True), now=NOW)
    assert (folder / "thesis.txt").read_text() == "years of work"
    other = bundle.BundleInfo(
        schema=bundle.SCHEMA, id="1", device="camera-02", fleet="f", profile="p", broker="b",
        agent="a", runtimes={}, arch="x86_64", python="3.11", glibc="2.28", created="",
        certificate_sha256="",
    )  # fmt: skip
    another = tmp_path / "another"
    another.mkdir()
    (another / "bundle.json").write_bytes(msgspec.json.encode(other))
    with pytest.raises(FlashError, match="holds the bundle of 'camera-02'"):
        make_bundle(home, order(tmp_path, to=another, force=True), now=NOW)


def test_refuses_what_cannot_be_meant(home: Home, tmp_path: Path) -> None:
    for changes, error, message in (
        ({"device": "Camera/1"}, MalformedMessageError, "not a valid identifier"),
        ({"profile": "no-such-thing"}, ProfileError, "no such hardware profile"),
        ({"profile": "android-arm64"}, FlashError, "made for Linux"),
        ({"serving_port": 70000}, UsageError, "--serving-port"),
        ({"runtimes": ("cobol",)}, UsageError, "has no runtime 'cobol'"),
    ):
        with pytest.raises(error, match=message):
            make_bundle(home, order(tmp_path, **changes), now=NOW)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_runtimes_come_in_the_profiles_order_by_either_name() -> None:
    profile, _ = load_profile("generic-x86_64")
    every = choose_runtimes(profile, ())
    assert set(every) == {"onnx_runtime", "litert"}
    assert choose_runtimes(profile, ("litert", "onnxruntime")) == every
    assert choose_runtimes(profile, ("onnx_runtime",)) == ("onnx_runtime",)


@pytest.mark.parametrize(
    "address",
    ["", "hub", "http://hub:1883", "mqtts://hub", "mqtts://hub:x", "mqtts://a:b@hub:1",
     "mqtts://hub:8883/path", "mqtt://hub.test:1883", "mqtts://hub:99999"],
)  # fmt: skip
def test_refuses_an_address_that_no_agent_can_use(address: str) -> None:
    with pytest.raises(UsageError):
        check_broker(address)


def test_takes_brokers_with_tls_and_local_ones() -> None:
    assert check_broker("mqtts://hub.local:8883/") == "mqtts://hub.local:8883"
    assert check_broker("mqtt://127.0.0.1:1883") == "mqtt://127.0.0.1:1883"
    assert check_broker("mqtt://[::1]:1883") == "mqtt://[::1]:1883"


@pytest.mark.slow
def test_missing_keys_leave_nothing_behind(home: Home, tmp_path: Path, wheel_cache: Path) -> None:
    (home.keys / "ca.key").unlink()
    with pytest.raises(HomeError, match=r"ca\.key"):
        make_bundle(home, order(tmp_path, wheel_cache=wheel_cache), now=NOW)
    assert registered(home) == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_agent_wheel_in_the_bundle_is_a_valid_wheel(
    home: Home, tmp_path: Path, wheel_cache: Path
) -> None:
    made = make_bundle(home, order(tmp_path, wheel_cache=wheel_cache), now=NOW)
    (path,) = (made.path / "wheels").glob("aid_edge-*.whl")
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.testzip() is None
        assert "device_agent/contract/agent_config.py" in archive.namelist()
