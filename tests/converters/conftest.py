"""The tiny network, opened once for all tests of converters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aid_edge.model import SourceModel
from aid_edge.sources.opening import open_source
from device_agent.contract.profile import HardwareProfile, read_profile
from device_agent.contract.tensors import TensorInfo

PROFILES = Path(__file__).resolve().parents[2] / "hardware-profiles"


@pytest.fixture(scope="session")
def tiny() -> SourceModel:
    inputs = [TensorInfo("image", "FP32", (-1, 3, 8, 8))]
    return open_source("tests.support.tiny_nets:tiny", inputs=inputs)


@pytest.fixture(scope="session")
def images() -> dict[str, NDArray[Any]]:
    return {"image": np.random.default_rng(3).random((12, 3, 8, 8), np.float32)}


@pytest.fixture(scope="session")
def x86() -> HardwareProfile:
    return read_profile(PROFILES / "generic-x86_64.toml")[0]


@pytest.fixture(scope="session")
def arm() -> HardwareProfile:
    return read_profile(PROFILES / "raspberry-pi-4.toml")[0]
