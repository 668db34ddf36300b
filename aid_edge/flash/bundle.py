"""Lays out a bundle: everything that one device needs, in one folder, and how to install it.

::

    README.txt  install.sh  aid-agent.service
    bundle.json  SHA256SUMS          what this is, and the hash of every file
    requirements.txt  wheels/        the agent, its runtimes and all they need, for the target
    home/                            what becomes the agent's home folder
      config.toml  profile.toml
      identity/  device.key device.pem ca.pem
      trust/     root.json director.json
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from packaging.utils import parse_wheel_filename

from aid_edge.flash.agent_wheel import AgentWheel
from aid_edge.flash.target import WheelTarget, glibc_needed
from aid_edge.flash.wheels import WheelSet
from device_agent.contract.agent_config import SCHEMA as CONFIG_SCHEMA
from device_agent.contract.agent_config import AgentConfig, read_config

SCHEMA = "aid-edge/bundle/v1"
BUNDLE_FILE = "bundle.json"
SUMS_FILE = "SHA256SUMS"
MAX_BUNDLE_FILE_BYTES = 1024 * 1024
PRIVATE_MODE = 0o600


class BundleFile(msgspec.Struct, frozen=True):
    """One file of a bundle: path inside it, size and hash."""

    path: str
    bytes: int
    sha256: str


class BundleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What ``bundle.json`` says.

    Attributes:
        id: Random id of this bundle; the device reports it as its seed.
        runtimes: Converter's name of a runtime to the installed version of its distribution.
        glibc: Lowest glibc that the wheels run on; ``0.0`` when they need none.
        certificate_sha256: Hash of the device's certificate (PEM).
    """

    schema: str
    id: str
    device: str
    fleet: str
    profile: str
    broker: str
    agent: str
    runtimes: dict[str, str]
    arch: str
    python: str
    glibc: str
    created: str
    certificate_sha256: str
    files: tuple[BundleFile, ...] = ()


@dataclass(frozen=True)
class Identity:
    """What the device shows and whom it trusts on a connection, PEM."""

    key: bytes
    certificate: bytes
    authority: bytes


@dataclass(frozen=True)
class Trust:
    """What the device starts its trust from: TUF root metadata, and the director's public key."""

    root: bytes
    director: bytes


@dataclass(frozen=True)
class Parts:
    """Everything that goes into a bundle.

    Attributes:
        profile: Bytes of the hardware profile's file.
        runtimes: Converter's name of a runtime to the name of its distribution.
    """

    id: str
    device: str
    fleet: str
    broker: str
    serving_port: int
    profile_id: str
    profile: bytes
    runtimes: dict[str, str]
    target: WheelTarget
    agent: AgentWheel
    wheels: WheelSet
    identity: Identity
    trust: Trust
    created: str


def read_info(data: bytes) -> BundleInfo | None:
    """Return what ``bundle.json`` says, or None when this is none of ours."""
    try:
        info = msgspec.json.decode(data, type=BundleInfo)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return info if info.schema == SCHEMA else None


def write_folder(parts: Parts, folder: Path) -> BundleInfo:
    """Write the bundle into ``folder``, which must be empty, and return what it is.

    Raises:
        OSError: It cannot be written.
        ConfigError: The configuration that was written is not one that the agent reads.
    """
    names = _copy_wheels(parts, folder / "wheels")
    glibc = ".".join(map(str, glibc_needed(names, parts.target)))
    _write_home(parts, folder / "home")
    values = {
        "DEVICE": parts.device,
        "FLEET": parts.fleet,
        "BUNDLE": parts.id,
        "PROFILE": parts.profile_id,
        "ARCH": parts.target.arch,
        "PYTHON": parts.target.python,
        "GLIBC": glibc,
    }
    for name in ("install.sh", "README.txt"):
        (folder / name).write_text(_filled(name, values))
    (folder / "install.sh").chmod(0o755)
    (folder / "aid-agent.service").write_text(_package_text("aid-agent.service"))
    (folder / "requirements.txt").write_text(_requirements(folder / "wheels", names))
    info = BundleInfo(
        schema=SCHEMA,
        id=parts.id,
        device=parts.device,
        fleet=parts.fleet,
        profile=parts.profile_id,
        broker=parts.broker,
        agent=parts.agent.version,
        runtimes={runtime: _version(names, dist) for runtime, dist in parts.runtimes.items()},
        arch=parts.target.arch,
        python=parts.target.python,
        glibc=glibc,
        created=parts.created,
        certificate_sha256=hashlib.sha256(parts.identity.certificate).hexdigest(),
        files=_listing(folder),
    )
    _write_listing(folder, info)
    return info


def pack(folder: Path, archive: Path, top: str) -> None:
    """Write ``folder`` as a gzipped tar whose members lie below ``top``.

    Raises:
        OSError: It cannot be read or written.
    """
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.add(folder, arcname=top, filter=_anonymous)


def read_packed_info(archive: Path) -> BundleInfo | None:
    """Return what the packed bundle at ``archive`` is, or None when it is none of ours.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile() and member.name.split("/")[1:] == [BUNDLE_FILE]:
                    file = tar.extractfile(member)
                    return read_info(file.read(MAX_BUNDLE_FILE_BYTES)) if file else None
    except (tarfile.TarError, EOFError, gzip.BadGzipFile):
        return None
    return None


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _copy_wheels(parts: Parts, folder: Path) -> list[str]:
    folder.mkdir()
    for name in parts.wheels.names:
        shutil.copyfile(parts.wheels.folder / name, folder / name)
    (folder / parts.agent.name).write_bytes(parts.agent.data)
    return sorted([*parts.wheels.names, parts.agent.name])


def _write_home(parts: Parts, home: Path) -> None:
    for folder in (home, home / "identity", home / "trust"):
        folder.mkdir(mode=0o700 if folder.name == "identity" else 0o755)
    key = home / "identity" / "device.key"
    key.touch(mode=PRIVATE_MODE)
    key.write_bytes(parts.identity.key)
    (home / "identity" / "device.pem").write_bytes(parts.identity.certificate)
    (home / "identity" / "ca.pem").write_bytes(parts.identity.authority)
    (home / "trust" / "root.json").write_bytes(parts.trust.root)
    (home / "trust" / "director.json").write_bytes(parts.trust.director)
    (home / "profile.toml").write_bytes(parts.profile)
    config = home / "config.toml"
    config.write_text(_config(parts))
    _check_config(config, parts)


def _config(parts: Parts) -> str:
    """Return the agent's configuration. JSON strings are TOML basic strings (TOML 1.0)."""
    tables: dict[str, dict[str, Any]] = {
        "": {
            "schema": CONFIG_SCHEMA,
            "device": parts.device,
            "fleet": parts.fleet,
            "seed": parts.id,
        },
        "broker": {"url": parts.broker},
        "serving": {"port": parts.serving_port},
    }
    lines = ["# Written by `aid-edge flash`; every key is in the agent's documentation."]
    for table, entries in tables.items():
        lines += ["", f"[{table}]"] if table else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in entries.items()]
    return "\n".join(lines) + "\n"


def _check_config(path: Path, parts: Parts) -> None:
    config: AgentConfig = read_config(path)
    found = (config.device, config.fleet, config.seed, config.broker.url, config.serving.port)
    wanted = (parts.device, parts.fleet, parts.id, parts.broker, parts.serving_port)
    if found != wanted:
        raise RuntimeError(f"{path} reads back as {found}, not {wanted}")


def _requirements(folder: Path, names: list[str]) -> str:
    lines = []
    for name in names:
        distribution, version, _, _ = parse_wheel_filename(name)
        if distribution == "pip":
            continue  # Runs from its wheel to install the others.
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        lines.append(f"{distribution}=={version} --hash=sha256:{digest}\n")
    return "".join(lines)


def _version(names: list[str], distribution: str) -> str:
    versions = [
        parse_wheel_filename(n)[1] for n in names if parse_wheel_filename(n)[0] == distribution
    ]
    return str(versions[0]) if versions else ""


def _listing(folder: Path) -> tuple[BundleFile, ...]:
    return tuple(_entry(folder, p) for p in sorted(folder.rglob("*")) if p.is_file())


def _entry(folder: Path, path: Path) -> BundleFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return BundleFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def _write_listing(folder: Path, info: BundleInfo) -> None:
    (folder / BUNDLE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=1))
    entries = sorted([*info.files, _entry(folder, folder / BUNDLE_FILE)], key=lambda f: f.path)
    (folder / SUMS_FILE).write_text("".join(f"{f.sha256}  {f.path}\n" for f in entries))


def _package_text(name: str) -> str:
    return resources.files("aid_edge.flash").joinpath(name).read_text()


def _filled(name: str, values: dict[str, str]) -> str:
    """Return a template of this package with ``@NAME@`` replaced.

    Values are identifiers and versions, checked before, so they need no quoting in the shell.
    """
    text = _package_text(name)
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
