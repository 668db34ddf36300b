"""Finding and loading hardware profiles."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from aid_edge import profiles
from device_agent.contract.errors import EXIT_USAGE, ProfileError

NEEDED = {"generic-x86_64", "generic-arm64", "raspberry-pi-4", "intel-nuc-11", "android-arm64"}
ROOT = Path(__file__).parents[2]


def test_profiles_of_the_program_are_found() -> None:
    found = profiles.find_profiles()
    assert set(found) >= NEEDED
    assert list(found) == sorted(found)


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_profile_is_loaded_by_id(name: str) -> None:
    profile, digest = profiles.load_profile(name)
    assert profile.id == name
    assert len(digest) == len("sha256:") + 64
    assert {r.name for r in profile.runtimes} >= {"onnx_runtime", "litert"}


def test_activations_fit_the_kernels_of_the_architecture() -> None:
    """x86 fuses unsigned activations, Arm signed ones."""
    for name in profiles.find_profiles():
        profile, _ = profiles.load_profile(name)
        wanted = "uint8" if profile.arch == "x86_64" else "int8"
        assert profile.numerics.activations.dtype == wanted, name


def test_path_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    source = profiles.find_profile("generic-arm64").read_text()
    path.write_text(source.replace('id = "generic-arm64"', 'id = "my-board"'))
    assert profiles.load_profile(path)[0].id == "my-board"
    assert profiles.load_profile(str(path)) == profiles.load_profile(path)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError) as caught:
        profiles.load_profile("raspberry-pi-44")
    assert "raspberry-pi-44" in str(caught.value)
    assert set(caught.value.hint.replace(",", " ").replace(";", " ").split()) >= NEEDED
    assert caught.value.exit_code == EXIT_USAGE


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        profiles.load_profile(tmp_path / "none.toml")


def test_file_with_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "copy.toml"
    path.write_bytes(profiles.find_profile("generic-arm64").read_bytes())
    with pytest.raises(ProfileError, match="id: is 'generic-arm64'"):
        profiles.load_profile(path)
    assert [p.key for p in profiles.check_file(path)] == ["id"]


def test_wheel_carries_the_profiles_where_they_are_looked_for() -> None:
    """The build puts the folder where :func:`profiles_folder` looks first."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    target = config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert target == {"hardware-profiles": "aid_edge/hardware-profiles"}


def test_folder_inside_the_package_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed wheel uses its own folder, whatever lies beside it in site-packages."""
    package = tmp_path / "site-packages" / "aid_edge"
    (package / "hardware-profiles").mkdir(parents=True)
    (package.parent / "hardware-profiles").mkdir()
    monkeypatch.setattr(profiles, "__file__", str(package / "profiles.py"))
    assert profiles.profiles_folder() == package / "hardware-profiles"


def test_installation_without_profiles_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "__file__", str(tmp_path / "aid_edge" / "profiles.py"))
    with pytest.raises(ProfileError, match="hardware-profiles is missing"):
        profiles.find_profiles()
