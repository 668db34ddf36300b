"""What wheels a target takes: platform tags, Python, and the environment that markers see."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from aid_edge.errors import FlashError
from device_agent.contract.profile import HardwareProfile

ARCHITECTURES = ("x86_64", "aarch64", "armv7l", "armv6l")
"""What ``uname -m`` says on targets that a Linux bundle can be made for."""

_GLIBC_TAG = re.compile(r"manylinux_(\d+)_(\d+)_")
_LEGACY_GLIBC = {"manylinux2014": (2, 17), "manylinux2010": (2, 12), "manylinux1": (2, 5)}
_LIBC = re.compile(r"^(glibc|musl) (\d+)\.(\d+)$")


@dataclass(frozen=True)
class WheelTarget:
    """A platform to get wheels for.

    Attributes:
        platforms: Platform tags, best first, such as ``manylinux_2_28_aarch64``.
        python: Such as ``3.11``.
        arch: What ``uname -m`` says there.
    """

    platforms: tuple[str, ...]
    python: str
    arch: str

    @property
    def abi(self) -> str:
        """ABI tag of its CPython, such as ``cp311``."""
        return f"cp{self.python.replace('.', '')}"

    @property
    def environment(self) -> dict[str, str]:
        """What environment markers (PEP 508) see on the target."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
            "extra": "",
        }

    def tags(self) -> frozenset[Tag]:
        """Return every wheel tag that the target takes."""
        major, minor = self.python.split(".")
        version = (int(major), int(minor))
        return frozenset(
            [
                *cpython_tags(version, platforms=self.platforms),
                *compatible_tags(version, f"cp{major}{minor}", self.platforms),
            ]
        )

    def takes(self, wheel_name: str) -> bool:
        """Whether the target can install a wheel of this file name."""
        return not parse_wheel_filename(wheel_name)[3].isdisjoint(self.tags())


def target_of(profile: HardwareProfile) -> WheelTarget:
    """Return what wheels devices of ``profile`` take.

    Raises:
        FlashError: The profile is of a kind that no Linux bundle can be made for, or does not say
            its Python or wheel tags.
    """
    if profile.class_ != "linux" or profile.platform.os != "linux":
        raise FlashError(
            f"profile {profile.id!r} is of class {profile.class_!r}; bundles are made for Linux",
            hint="Choose a profile of class linux (`aid-edge profiles list`).",
        )
    if profile.arch not in ARCHITECTURES:
        raise FlashError(
            f"profile {profile.id!r} has arch {profile.arch!r}; "
            f"bundles are made for {', '.join(ARCHITECTURES)}"
        )
    if not profile.platform.python or not profile.platform.wheel_tags:
        raise FlashError(
            f"profile {profile.id!r} does not say which wheels its devices take",
            hint="Give platform.python and platform.wheel_tags in the profile.",
        )
    for tag in profile.platform.wheel_tags:
        if tag != "any" and not tag.endswith(f"_{profile.arch}"):
            raise FlashError(
                f"profile {profile.id!r}: platform.wheel_tags: {tag!r} is not for {profile.arch}"
            )
    return WheelTarget(
        tuple(t for t in profile.platform.wheel_tags if t != "any"),
        profile.platform.python,
        profile.arch,
    )


def glibc_needed(wheel_names: list[str], target: WheelTarget) -> tuple[int, int]:
    """Return the glibc version that these wheels need on ``target``; (0, 0) when none needs one.

    Of a wheel's several tags the lowest that the target takes counts (PEP 600).
    """
    return max((_lowest_glibc(name, target) for name in wheel_names), default=(0, 0))


def _lowest_glibc(wheel_name: str, target: WheelTarget) -> tuple[int, int]:
    found = []
    for tag in parse_wheel_filename(wheel_name)[3] & target.tags():
        if tag.platform == "any":
            return (0, 0)
        legacy = _LEGACY_GLIBC.get(tag.platform.partition("_")[0])
        if match := _GLIBC_TAG.match(tag.platform):
            found.append((int(match[1]), int(match[2])))
        elif legacy:
            found.append(legacy)
    return min(found, default=(0, 0))


def libc_of(profile: HardwareProfile) -> tuple[str, tuple[int, int]] | None:
    """Return kind and version of the C library that the profile promises, if it says one."""
    match = _LIBC.match(profile.platform.libc)
    return (match[1], (int(match[2]), int(match[3]))) if match else None
