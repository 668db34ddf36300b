"""Finds and reads the hardware profiles that come with the program, or a file of the user's."""

from __future__ import annotations

from pathlib import Path

from device_agent.contract.errors import ProfileError
from device_agent.contract.profile import (
    HardwareProfile,
    find_profile_problems,
    read_profile,
)

_SUFFIX = ".toml"


def profiles_folder() -> Path:
    """Return the folder of the profiles that come with the program.

    A wheel has it inside the package; an editable install and a checkout have it beside.

    Raises:
        ProfileError: There is neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "hardware-profiles", package.parent / "hardware-profiles"):
        if folder.is_dir():
            return folder
    raise ProfileError(
        str(package), "", "hardware-profiles is missing", hint="Install aid-edge again."
    )


def find_profiles() -> dict[str, Path]:
    """Return the profiles that come with the program: id to file, sorted by id."""
    return {path.stem: path for path in sorted(profiles_folder().glob(f"*{_SUFFIX}"))}


def find_profile(name_or_path: str | Path) -> Path:
    """Return the file of a profile that is named by id or by path.

    What ends in ``.toml`` or has a path separator is a path.

    Raises:
        ProfileError: No such profile; the hint lists those there are.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(_SUFFIX) or "/" in text or "\\" in text:
        return Path(name_or_path)
    known = find_profiles()
    if text not in known:
        raise ProfileError(
            text,
            "",
            "no such hardware profile",
            hint=f"There are: {', '.join(known)}; or a .toml file.",
        )
    return known[text]


def load_profile(name_or_path: str | Path) -> tuple[HardwareProfile, str]:
    """Return a profile by id or path, and the digest of its bytes.

    Raises:
        ProfileError: It does not exist or is not valid; names file, key and what is allowed.
    """
    path = find_profile(name_or_path)
    profile, digest = read_profile(path)
    if path.stem != profile.id:
        raise _misnamed(path, profile)
    return profile, digest


def check_file(path: Path) -> list[ProfileError]:
    """Return everything that is wrong with the profile in the file at ``path``."""
    try:
        data = path.read_bytes()
    except OSError as e:
        return [ProfileError(str(path), "", f"cannot be read: {e.strerror}")]
    problems = find_profile_problems(data, str(path))
    if problems:
        return problems
    profile, _ = read_profile(path)
    return [] if path.stem == profile.id else [_misnamed(path, profile)]


def _misnamed(path: Path, profile: HardwareProfile) -> ProfileError:
    return ProfileError(
        str(path), "id", f"is {profile.id!r}, but the file's name says {path.stem!r}"
    )
