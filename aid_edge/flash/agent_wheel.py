"""The agent's own wheel: the device's package of this installation, and nothing of the host.

A device needs ``device_agent`` and its base dependencies only. The wheel is put together from the
installed package, in the same way for a source checkout, an editable install and an installed
wheel, so a bundle never needs the source tree, and the same files give the same bytes.

Format: PyPA "Binary distribution format" 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from aid_edge.errors import FlashError
from aid_edge.flash.distribution import DISTRIBUTION, Facts, installed_facts

PACKAGE = "device_agent"
LOCAL_VERSION = "agent"
"""Marks the wheel as the device's part of the distribution (PEP 440 local version)."""

MAX_PACKAGE_FILES = 1000

_EPOCH = (2020, 1, 1, 0, 0, 0)
"""Modification time of every member, so that the same files give the same bytes."""


@dataclass(frozen=True)
class AgentWheel:
    """The agent's wheel.

    Attributes:
        name: File name.
        version: Version with the local part, such as ``0.1.0+agent``.
        extra_requirements: Extra (a runtime's) to what it requires.
    """

    name: str
    version: str
    data: bytes
    requirements: tuple[Requirement, ...]
    extra_requirements: dict[str, tuple[Requirement, ...]]


def build_agent_wheel(extras: tuple[str, ...]) -> AgentWheel:
    """Return the wheel of the installed agent.

    Args:
        extras: Extras of the distribution that the wheel shall offer: the device's runtimes.

    Raises:
        FlashError: The distribution is not installed, has no such extra, or its package holds no
            agent.
    """
    facts = installed_facts()
    if unknown := [extra for extra in extras if extra not in facts.extras]:
        raise FlashError(
            f"{DISTRIBUTION} {facts.version} has no extra {unknown[0]!r}",
            hint=f"It has: {', '.join(sorted(facts.extras))}. Reinstall {DISTRIBUTION}.",
        )
    by_extra = {extra: facts.extras[extra] for extra in extras}
    version = f"{facts.version.partition('+')[0]}+{LOCAL_VERSION}"
    stem = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    files = dict(_package_files())
    info = f"{stem}.dist-info"
    files[f"{info}/METADATA"] = _metadata(facts, version, by_extra)
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: aid-edge flash\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = _entry_points(facts)
    return AgentWheel(
        name=f"{stem}-py3-none-any.whl",
        version=version,
        data=_zip(files, f"{info}/RECORD"),
        requirements=facts.requirements,
        extra_requirements=by_extra,
    )


def _package_files() -> list[tuple[str, bytes]]:
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise FlashError(f"the package {PACKAGE} is not installed here")
    root = Path(places[0])
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )
    if not (root / "cli.py").is_file() and not (root / "cli").is_dir():
        raise FlashError(f"{root} has no agent in it (no cli module)")
    if len(paths) > MAX_PACKAGE_FILES:
        raise FlashError(f"{root} has {len(paths)} files; at most {MAX_PACKAGE_FILES} are expected")
    return [(f"{PACKAGE}/{p.relative_to(root).as_posix()}", p.read_bytes()) for p in paths]


def _metadata(facts: Facts, version: str, by_extra: dict[str, tuple[Requirement, ...]]) -> bytes:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {DISTRIBUTION}",
        f"Version: {version}",
        "Summary: The agent of AID Edge: runs verified models on a device.",
        f"License: {facts.license}",
        f"Requires-Python: {facts.requires_python}",
        *(f"Requires-Dist: {requirement}" for requirement in facts.requirements),
    ]
    for extra, requirements in by_extra.items():
        lines.append(f"Provides-Extra: {extra}")
        for requirement in requirements:
            marker = f"({requirement.marker}) and " if requirement.marker else ""
            text = str(requirement).partition(";")[0]
            lines.append(f'Requires-Dist: {text}; {marker}extra == "{extra}"')
    return "".join(f"{line}\n" for line in lines).encode()


def _entry_points(facts: Facts) -> bytes:
    scripts = [
        f"{name} = {target}\n"
        for name, target in sorted(facts.scripts.items())
        if target.partition(":")[0].split(".")[0] == PACKAGE
    ]
    if not scripts:
        raise FlashError(f"{DISTRIBUTION} {facts.version} has no command of the agent")
    return ("[console_scripts]\n" + "".join(scripts)).encode()


def _zip(files: dict[str, bytes], record_name: str) -> bytes:
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    lines.append(f"{record_name},,\n")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*files.items(), (record_name, "".join(lines).encode())]:
            member = zipfile.ZipInfo(name, _EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, data)
    return buffer.getvalue()
