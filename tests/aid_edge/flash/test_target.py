from __future__ import annotations

import msgspec
import pytest

from aid_edge.errors import FlashError
from aid_edge.flash.target import WheelTarget, glibc_needed, libc_of, target_of
from aid_edge.profiles import load_profile

PI = WheelTarget(
    ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"), "3.11", "aarch64"
)


def test_takes_its_own_wheels_and_pure_ones_only() -> None:
    assert PI.takes("numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl")
    assert PI.takes("cryptography-50.0.2-cp37-abi3-manylinux_2_28_aarch64.whl")
    assert PI.takes("tqdm-4.70.1-py3-none-any.whl")
    assert not PI.takes("numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert not PI.takes("numpy-2.4.6-cp312-cp312-manylinux_2_28_aarch64.whl")
    assert not PI.takes("numpy-2.4.6-cp311-cp311-manylinux_2_34_aarch64.whl")


def test_glibc_is_the_highest_of_what_each_wheel_needs_at_least() -> None:
    names = [
        "tqdm-4.70.1-py3-none-any.whl",
        "cffi-2.1.1-cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl",
    ]
    assert glibc_needed(names[:1], PI) == (0, 0)
    assert glibc_needed(names[:2], PI) == (2, 17)
    assert glibc_needed(names, PI) == (2, 28)


def test_profile_says_target_and_libc() -> None:
    profile, _ = load_profile("raspberry-pi-4")
    target = target_of(profile)
    assert (target.arch, target.abi) == ("aarch64", "cp311")
    assert target.environment["platform_machine"] == "aarch64"
    assert libc_of(profile) is not None


def test_refuses_what_no_linux_bundle_fits() -> None:
    android, _ = load_profile("android-arm64")
    with pytest.raises(FlashError, match="bundles are made for Linux"):
        target_of(android)
    profile, _ = load_profile("raspberry-pi-4")
    silent = msgspec.structs.replace(
        profile, platform=msgspec.structs.replace(profile.platform, wheel_tags=())
    )
    with pytest.raises(FlashError, match="does not say which wheels"):
        target_of(silent)
    mixed = msgspec.structs.replace(
        profile,
        platform=msgspec.structs.replace(profile.platform, wheel_tags=("manylinux_2_28_x86_64",)),
    )
    with pytest.raises(FlashError, match="is not for aarch64"):
        target_of(mixed)
