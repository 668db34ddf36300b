"""Starting the agent loads no framework, no numpy, and in the supervisor no cryptography.

Linters see import statements only; this looks at what is really loaded.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = ["torch", "tensorflow", "keras", "onnx", "onnxruntime", "ai_edge_litert", "numpy"]
CRYPTOGRAPHY = ["cryptography", "tuf", "securesystemslib"]
HOST = ["aid_edge", "converters", "click", "fastapi"]
SUPERVISOR = [
    "device_agent.cli",
    "device_agent.agent.core",
    "device_agent.deployment.controller",
    "device_agent.serving.http",
    "device_agent.worker.handle",
    "device_agent.trust.client",
    "device_agent.mqtt",
    "device_agent.spool",
]


def _loaded(module: str) -> set[str]:
    """Return the top packages that are loaded after importing ``module`` in a fresh interpreter."""
    code = (
        f"import sys, {module}\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", SUPERVISOR)
def test_supervisor_is_lean(module: str) -> None:
    loaded = _loaded(module)
    assert "device_agent" in loaded
    assert loaded.isdisjoint([*FRAMEWORKS, *CRYPTOGRAPHY, *HOST])


def test_contract_loads_one_package() -> None:
    """What both sides share stays small: the codec and the standard library."""
    loaded = _loaded("device_agent.contract.messages, device_agent.contract.profile")
    assert "msgspec" in loaded
    assert loaded.isdisjoint([*FRAMEWORKS, *CRYPTOGRAPHY, *HOST, "paho"])


def test_this_test_can_see_a_framework() -> None:
    """A framework that is loaded is seen, or the tests above would prove nothing."""
    pytest.importorskip("numpy", reason="needs a package that must not be loaded elsewhere")
    assert "numpy" in _loaded("numpy")
