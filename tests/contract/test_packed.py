"""Models of several files in one blob: equal bytes, and nothing taken on trust (contract §5.5)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract.errors import MalformedMessageError, MessageTooLargeError
from device_agent.contract.packed import MAX_MEMBERS, OPENVINO_MEMBERS, pack, unpack

MEMBERS = {"model.xml": b"<net/>", "model.bin": bytes(range(256))}


def test_files_come_back_and_equal_files_are_equal_bytes(tmp_path: Path) -> None:
    """M-5.5-2."""
    path = tmp_path / "m"
    path.write_bytes(pack(MEMBERS))
    assert unpack(path, OPENVINO_MEMBERS) == MEMBERS
    assert pack(MEMBERS) == pack(dict(MEMBERS))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    "members", [{}, {"model.xml": b""}, {**MEMBERS, "more": b"x"}, {"../model.xml": b"", "b": b""}]
)
def test_other_files_than_wanted_are_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    """M-5.5-1."""
    path = tmp_path / "m"
    path.write_bytes(pack(members))
    with pytest.raises(MalformedMessageError, match=r"wanted model\.xml, model\.bin"):
        unpack(path, OPENVINO_MEMBERS)


def test_compressed_and_doubled_members_are_refused(tmp_path: Path) -> None:
    """M-5.5-1."""
    path = tmp_path / "m"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.xml", b"0" * 10_000)
        archive.writestr("model.bin", b"")
    with pytest.raises(MalformedMessageError, match=r"model\.xml .* not stored plainly"):
        unpack(path, OPENVINO_MEMBERS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.xml", b"a")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("model.xml", b"b")
    with pytest.raises(MalformedMessageError, match="two files of the same name"):
        unpack(path, OPENVINO_MEMBERS)


def test_damage_is_found(tmp_path: Path) -> None:
    """M-5.5-1: a byte of the content, and any other byte or length, gives the files or an error."""
    path, whole = tmp_path / "m", pack(MEMBERS)
    path.write_bytes(whole.replace(b"<net/>", b"<nEt/>"))
    with pytest.raises(MalformedMessageError, match="CRC"):
        unpack(path, OPENVINO_MEMBERS)
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(MalformedMessageError):
            unpack(path, OPENVINO_MEMBERS)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            assert unpack(path, OPENVINO_MEMBERS) == MEMBERS
        except MalformedMessageError:
            continue


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    """M-5.5-1."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m")
        path.write_bytes(data)
        with pytest.raises(MalformedMessageError):
            unpack(path, OPENVINO_MEMBERS)


def test_bounds() -> None:
    with pytest.raises(MessageTooLargeError, match="65"):
        pack({str(i): b"" for i in range(MAX_MEMBERS + 1)})
