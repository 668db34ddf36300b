"""Makes a bundle for one device, and puts the device into the fleet."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from aid_edge import profiles
from aid_edge.catalogue.director import public_key_document
from aid_edge.catalogue.keys import KeyRole, load_signer
from aid_edge.catalogue.metadata import read_chain
from aid_edge.errors import FlashError, HomeError, UsageError
from aid_edge.flash import bundle
from aid_edge.flash.agent_wheel import AgentWheel, build_agent_wheel
from aid_edge.flash.target import WheelTarget, glibc_needed, libc_of, target_of
from aid_edge.flash.wheels import WheelSet, default_cache, device_constraints, fetch_wheels
from aid_edge.home import Home
from aid_edge.hub.schema import database_path
from aid_edge.hub.store import Store, check_device
from aid_edge.identity import Authority
from device_agent.contract.profile import HardwareProfile

MAX_PORT = 65535
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")


@dataclass(frozen=True)
class RuntimePackage:
    """How a runtime gets onto a device: the extra of our distribution, and what it installs."""

    extra: str
    distribution: str


RUNTIMES = {
    "onnx_runtime": RuntimePackage("onnxruntime", "onnxruntime"),
    "litert": RuntimePackage("litert", "ai-edge-litert"),
    "openvino": RuntimePackage("openvino", "openvino"),
}
"""Runtimes that a bundle can carry, by their name in hardware profiles."""

_BY_EXTRA = {package.extra: name for name, package in RUNTIMES.items()}


@dataclass(frozen=True)
class Order:
    """What to make.

    Attributes:
        profile: Id or path of a hardware profile.
        to: A folder, or a file that ends in ``.tar.gz``.
        broker: Address that the device reaches the broker by, such as ``mqtts://hub.local:8883``.
        runtimes: Names of runtimes; empty means all that the profile has.
        force: Make it even if the device is registered already or ``to`` holds its bundle.
    """

    profile: str
    device: str
    to: Path
    broker: str
    runtimes: tuple[str, ...] = ()
    serving_port: int = 8470
    wheel_cache: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Made:
    """A bundle that was made.

    Attributes:
        bytes: Of all its files together.
        cached: Whether no wheel had to be downloaded.
    """

    info: bundle.BundleInfo
    path: Path
    bytes: int
    cached: bool


def make_bundle(
    home: Home, order: Order, *, now: dt.datetime, note: Callable[[str], None] = lambda _: None
) -> Made:
    """Make the bundle of ``order`` with keys of ``home``, and register the device.

    The target is there whole or not at all.

    Args:
        home: The operator's home: its authority signs the device's certificate.
        order: What to make.
        now: Time of issue.
        note: Told how the work goes.

    Raises:
        UsageError: The device, address or port cannot be meant.
        ProfileError: The profile does not exist or is not valid.
        FlashError: The target is in use, the device is registered already, a wheel is not to be
            had, or something cannot be written.
        HomeError: A key or the root of trust is missing.
    """
    check_device(order.device)
    broker = check_broker(order.broker)
    if not 0 <= order.serving_port <= MAX_PORT:
        raise UsageError(f"--serving-port {order.serving_port} is not 0 to {MAX_PORT}")
    profile, _ = profiles.load_profile(order.profile)
    target = target_of(profile)
    chosen = choose_runtimes(profile, order.runtimes)
    _check_place(order)
    if not order.force:
        _check_new(home, order.device)
    agent = build_agent_wheel(tuple(RUNTIMES[name].extra for name in chosen))
    wheels = fetch_wheels(
        _requirements(profile, chosen, agent, target),
        target,
        device_constraints(),
        order.wheel_cache or default_cache(),
        note,
    )
    _check_libc(profile, wheels, target)
    key, certificate, authority = _issue(home, order.device, now)
    parts = bundle.Parts(
        id=secrets.token_hex(16),
        device=order.device,
        fleet=home.fleet,
        broker=broker,
        serving_port=order.serving_port,
        profile_id=profile.id,
        profile=profiles.find_profile(order.profile).read_bytes(),
        runtimes={name: RUNTIMES[name].distribution for name in chosen},
        target=target,
        agent=agent,
        wheels=wheels,
        identity=bundle.Identity(key, certificate, authority),
        trust=_trust(home),
        created=now.isoformat(timespec="seconds"),
    )
    note("writing the bundle")
    info, size = _write(home, order, parts)
    return Made(info, order.to, size, wheels.cached)


def check_broker(address: str) -> str:
    """Return ``address`` if an agent can reach a broker by it.

    Raises:
        UsageError: It cannot: no MQTT address, no port, or without TLS beyond this machine.
    """
    hint = "Such as mqtts://hub.local:8883."
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as e:
        raise UsageError(f"{address!r} is not an address: {e}", hint=hint) from e
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or not port:
        raise UsageError(f"{address!r} is not the address of a broker", hint=hint)
    if parts.scheme == "mqtt" and not _is_loopback(parts.hostname):
        raise UsageError(
            f"{address!r}: without TLS only a broker on the device itself can be used", hint=hint
        )
    if parts.path not in {"", "/"} or parts.query or parts.username:
        raise UsageError(f"{address!r} has more than a host and a port", hint=hint)
    return f"{parts.scheme}://{parts.netloc}"


def choose_runtimes(profile: HardwareProfile, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the runtimes to install, in the profile's order.

    Args:
        profile: What the device can have.
        wanted: Names as in profiles, or of our extras; empty for all.

    Raises:
        UsageError: The profile does not have one of them.
        FlashError: None is left that a bundle can carry.
    """
    have = [r.name for r in profile.runtimes]
    names = {_BY_EXTRA.get(name, name) for name in wanted}
    if unknown := sorted(names - set(have)):
        raise UsageError(
            f"profile {profile.id!r} has no runtime {unknown[0]!r}",
            hint=f"It has: {', '.join(have)}.",
        )
    chosen = tuple(n for n in have if n in RUNTIMES and (not names or n in names))
    if not chosen or names - set(RUNTIMES):
        raise FlashError(
            f"no bundle can carry {', '.join(sorted(names - set(RUNTIMES)) or have)} yet",
            hint=f"Bundles can carry: {', '.join(RUNTIMES)}.",
        )
    return chosen


def _requirements(
    profile: HardwareProfile, chosen: tuple[str, ...], agent: AgentWheel, target: WheelTarget
) -> list[Requirement]:
    """What the agent and its runtimes need on the target, with pip to install it."""
    found = [Requirement("pip"), *agent.requirements]
    for name in chosen:
        found += agent.extra_requirements[RUNTIMES[name].extra]
        runtime = profile.runtime(name)
        if runtime is not None:
            found.append(Requirement(f"{RUNTIMES[name].distribution}{runtime.version}"))
    applying = [r for r in found if r.marker is None or r.marker.evaluate(target.environment)]
    # Judged here, for the target: pip would judge by the Python that runs it.
    return [Requirement(str(r).partition(";")[0]) for r in applying]


def _check_libc(profile: HardwareProfile, wheels: WheelSet, target: WheelTarget) -> None:
    """Refuse wheels that the C library which the profile promises cannot load."""
    libc = libc_of(profile)
    needed = glibc_needed(list(wheels.names), target)
    if libc is None or needed == (0, 0):
        return
    kind, version = libc
    if kind != "glibc" or version < needed:
        raise FlashError(
            f"the wheels need glibc {'.'.join(map(str, needed))}, "
            f"but profile {profile.id!r} has {profile.platform.libc}",
            hint="Correct platform.wheel_tags or platform.libc in the profile.",
        )


def _issue(home: Home, device: str, now: dt.datetime) -> tuple[bytes, bytes, bytes]:
    authority = Authority.open(home.keys, home.hub)
    key, certificate = authority.issue_device(device, now=now)
    return key, certificate, authority.certificate_pem


def _trust(home: Home) -> bundle.Trust:
    path = home.metadata / f"{read_chain(home.metadata).root.signed.version}.root.json"
    try:
        root = path.read_bytes()
    except OSError as e:
        raise HomeError(f"{path}: cannot be read: {e.strerror}") from e
    director = load_signer(home.keys, KeyRole.DIRECTOR)
    return bundle.Trust(root, public_key_document(director.public_key))


def _check_new(home: Home, device: str) -> None:
    with _transaction(home) as store, store.transaction() as transaction:
        if transaction.facts(device) is not None:
            raise _registered(device)


def _register(home: Home, order: Order, profile: str, seed: str) -> None:
    with _transaction(home) as store, store.transaction() as transaction:
        if not order.force and transaction.facts(order.device) is not None:
            raise _registered(order.device)
        transaction.register(order.device, profile, seed, store.clock())
        transaction.audit("aid-edge flash", "register", order.device, "ok", f"profile {profile}")


@contextlib.contextmanager
def _transaction(home: Home) -> Iterator[Store]:
    store = Store(database_path(home))
    try:
        yield store
    finally:
        store.close()


def _registered(device: str) -> FlashError:
    return FlashError(
        f"a device {device!r} is in the fleet already",
        hint="Two devices with one id disturb each other. Choose another id, or, to replace that "
        "device, --force: it gets a new identity.",
    )


def _is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVE_SUFFIXES)


def _check_place(order: Order) -> None:
    """Refuse to overwrite anything but an earlier bundle of the same device, with force."""
    path = order.to
    try:
        if path.is_symlink():
            raise FlashError(f"{path} is a symbolic link", hint="Name the place itself.")
        if _is_archive(path):
            taken = path.exists()
            old = bundle.read_packed_info(path) if taken else None
        elif path.exists() and not path.is_dir():
            raise FlashError(
                f"{path} is a file",
                hint=f"Name a folder, or a file that ends in {ARCHIVE_SUFFIXES[0]}.",
            )
        else:
            taken = path.is_dir() and any(path.iterdir())
            marker = path / bundle.BUNDLE_FILE
            old = bundle.read_info(marker.read_bytes()) if marker.is_file() else None
    except OSError as e:
        raise FlashError(f"{path}: cannot be read: {e.strerror or e}") from e
    if not taken:
        return
    if old is None or old.device != order.device:
        what = f"the bundle of {old.device!r}" if old else "something else"
        raise FlashError(f"{path} holds {what}", hint="Name a new or empty folder.")
    if not order.force:
        raise FlashError(
            f"{path} holds a bundle of {order.device!r} already",
            hint="Replace it, with a new identity, by --force.",
        )


def _write(home: Home, order: Order, parts: bundle.Parts) -> tuple[bundle.BundleInfo, int]:
    to = order.to
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}-"))
    except OSError as e:
        raise FlashError(f"{to.parent}: cannot be written: {e.strerror or e}") from e
    try:
        folder = scratch / "bundle"
        folder.mkdir()
        info = bundle.write_folder(parts, folder)
        size = sum(file.bytes for file in info.files)
        ready = folder
        if _is_archive(to):
            ready = scratch / "bundle.tar.gz"
            ready.touch(mode=bundle.PRIVATE_MODE)
            bundle.pack(folder, ready, f"aid-edge-{order.device}")
            size = ready.stat().st_size
        _register(home, order, parts.profile_id, parts.id)
        _place(ready, to, scratch)
    except OSError as e:
        raise FlashError(f"{to}: cannot be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return info, size


def _place(ready: Path, to: Path, scratch: Path) -> None:
    """Move what is ready to where it belongs; an earlier bundle is set aside until it is there."""
    if not to.is_dir():
        ready.replace(to)
        return
    old = scratch / "old"
    to.rename(old)
    try:
        ready.rename(to)
    except OSError:
        old.rename(to)
        raise


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
