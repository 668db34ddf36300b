from __future__ import annotations

import base64
import hashlib
import io
import tomllib
import zipfile
from pathlib import Path

import pytest

from aid_edge.errors import FlashError
from aid_edge.flash.agent_wheel import build_agent_wheel


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_holds_the_agent_and_nothing_of_the_host() -> None:
    wheel = build_agent_wheel(("onnxruntime",))
    files = members(wheel.data)
    tops = {name.split("/")[0] for name in files}
    info = next(top for top in tops if top.endswith(".dist-info"))
    assert tops == {"device_agent", info}
    assert "device_agent/contract/messages.py" in files
    assert not [name for name in files if name.endswith(".pyc")]
    assert b"aid-agent = device_agent.cli" in files[f"{info}/entry_points.txt"]
    assert b"aid-edge =" not in files[f"{info}/entry_points.txt"]


def test_requires_what_the_device_needs_and_offers_its_runtime_only() -> None:
    wheel = build_agent_wheel(("litert",))
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert {str(r) for r in wheel.requirements} == set(project["dependencies"])
    assert "ai-edge-litert" in {r.name for r in wheel.extra_requirements["litert"]}
    files = members(wheel.data)
    metadata = next(files[n] for n in files if n.endswith("/METADATA")).decode()
    assert "Provides-Extra: litert\n" in metadata
    assert "torch" not in metadata
    assert f"Version: {wheel.version}\n" in metadata


def test_record_has_the_hash_of_every_member() -> None:
    files = members(build_agent_wheel(()).data)
    name = next(n for n in files if n.endswith("/RECORD"))
    lines = [line.split(",") for line in files[name].decode().splitlines()]
    assert {line[0] for line in lines} == set(files)
    for path, digest, size in lines:
        if path == name:
            assert (digest, size) == ("", "")
            continue
        want = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={want}", len(files[path]))


def test_same_files_give_the_same_bytes() -> None:
    assert build_agent_wheel(("litert",)).data == build_agent_wheel(("litert",)).data


def test_an_unknown_extra_is_refused() -> None:
    with pytest.raises(FlashError, match="no extra 'cobol'"):
        build_agent_wheel(("cobol",))
