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
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from aid_edge.errors import FlashError

DISTRIBUTION = "aid-edge"
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
    requires_python: str
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
    try:
        installed = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as e:
        raise FlashError(
            f"the distribution {DISTRIBUTION} is not installed here, so its agent has no version",
            hint="pip install -e '.[flash]' in the source tree, or pip install 'aid-edge[flash]'.",
        ) from e
    offered = set(installed.metadata.get_all("Provides-Extra") or ())
    if unknown := [extra for extra in extras if extra not in offered]:
        raise FlashError(
            f"{DISTRIBUTION} {installed.version} has no extra {unknown[0]!r}",
            hint=f"Installed extras: {', '.join(sorted(offered))}. Reinstall {DISTRIBUTION}.",
        )
    requirements = [Requirement(text) for text in installed.requires or ()]
    base = tuple(r for r in requirements if _applies(r, ""))
    by_extra = {
        extra: tuple(r for r in requirements if _applies(r, extra) and not _applies(r, ""))
        for extra in extras
    }
    version = f"{installed.version.partition('+')[0]}+{LOCAL_VERSION}"
    stem = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    requires_python = _field(installed, "Requires-Python")
    files = dict(_package_files())
    info = f"{stem}.dist-info"
    files[f"{info}/METADATA"] = _metadata(installed, version, base, by_extra)
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: aid-edge flash\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = _entry_points(installed)
    return AgentWheel(
        name=f"{stem}-py3-none-any.whl",
        version=version,
        data=_zip(files, f"{info}/RECORD"),
        requires_python=requires_python,
        requirements=base,
        extra_requirements=by_extra,
    )


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether the requirement belongs to ``extra``; other markers are the target's to judge."""
    if requirement.marker is None:
        return extra == ""
    text = str(requirement.marker)
    if "extra ==" not in text:
        return extra == ""
    return f'extra == "{extra}"' in text


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


def _metadata(
    installed: metadata.Distribution,
    version: str,
    base: tuple[Requirement, ...],
    by_extra: dict[str, tuple[Requirement, ...]],
) -> bytes:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {DISTRIBUTION}",
        f"Version: {version}",
        "Summary: The agent of AID Edge: runs verified models on a device.",
        f"License: {_field(installed, 'License-Expression')}",
    ]
    if python := _field(installed, "Requires-Python"):
        lines.append(f"Requires-Python: {python}")
    lines += [f"Requires-Dist: {requirement}" for requirement in base]
    for extra, requirements in by_extra.items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    return "".join(f"{line}\n" for line in lines).encode()


def _field(installed: metadata.Distribution, name: str) -> str:
    values = installed.metadata.get_all(name)
    return values[0] if values else ""


def _entry_points(installed: metadata.Distribution) -> bytes:
    scripts = [
        f"{e.name} = {e.value}"
        for e in installed.entry_points
        if e.group == "console_scripts" and e.value.partition(":")[0].split(".")[0] == PACKAGE
    ]
    if not scripts:
        raise FlashError(f"{DISTRIBUTION} {installed.version} installs no command of the agent")
    return ("[console_scripts]\n" + "\n".join(sorted(scripts)) + "\n").encode()


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
