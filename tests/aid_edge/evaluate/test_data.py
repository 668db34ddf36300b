from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aid_edge.errors import DataError
from aid_edge.evaluate import data
from aid_edge.evaluate.data import dataset
from aid_edge.model import SourceModel

Make = Callable[..., SourceModel]
Save = Callable[..., Path]


def arrays(n: int = 6, **changes: object) -> dict[str, object]:
    generator = np.random.default_rng(0)
    image = generator.normal(size=(n, 3, 8, 8)).astype(np.float32)
    return {"image": image, "labels": np.arange(n) % 3, **changes}


def save(path: Path, content: dict[str, object]) -> str:
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return str(path)


def test_npz_holds_inputs_labels_and_groups(tmp_path: Path, make_model: Make) -> None:
    spec = save(tmp_path / "d.npz", arrays(groups=np.array(["a", "a", "b", "b", "c", "c"])))
    loaded = data.load(spec, make_model(), labelled=True)
    assert len(loaded) == 6
    assert loaded.clusters == 3
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert loaded.take([1, 4])["image"].shape == (2, 3, 8, 8)


def test_digest_follows_content_not_place(tmp_path: Path, make_model: Make) -> None:
    one = data.load(save(tmp_path / "a.npz", arrays()), make_model())
    two = data.load(save(tmp_path / "b.npz", arrays()), make_model())
    other = data.load(save(tmp_path / "c.npz", arrays(labels=np.zeros(6, int))), make_model())
    assert one.digest == two.digest != other.digest
    assert one.sample_digests == other.sample_digests


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": np.zeros((6, 8, 8, 3), np.float32)}, r"'image'.*\[n, 3, 8, 8\].*\[6, 8, 8, 3\]"),
        ({"image": np.zeros((6, 3, 8, 8), np.float64)}, "'image'.*float32, found float64"),
        ({"image": np.zeros((0, 3, 8, 8), np.float32), "labels": None}, "is empty"),
        ({"image": np.float32(1), "labels": None}, "is empty"),
        ({"image": None}, "expected an array for each input .image.; found labels"),
        ({"picture": np.zeros(6)}, "found image, labels, picture"),
        ({"labels": np.zeros(5, int)}, r"labels: expected shape \[6\], found \[5\]"),
        ({"labels": np.zeros(6)}, "labels: expected whole numbers, found dtype float64"),
        ({"labels": np.full(6, 3)}, "3 is not a class of output 'scores', which has 3"),
        ({"labels": np.full(6, -1)}, "-1 is not a class"),
        ({"groups": np.zeros((6, 2))}, "groups: expected shape"),
    ],
)
def test_wrong_arrays_are_refused_by_name(
    tmp_path: Path, make_model: Make, changes: dict[str, object], words: str
) -> None:
    spec = save(tmp_path / "d.npz", {**arrays(), **changes})
    with pytest.raises(DataError, match=words):
        data.load(spec, make_model())


def test_not_finite_samples_are_counted(tmp_path: Path, make_model: Make) -> None:
    content = arrays()
    content["image"][2, 0, 1, 1] = np.nan  # type: ignore[index]
    content["image"][5, 0, 1, 1] = np.inf  # type: ignore[index]
    with pytest.raises(
        DataError, match="2 of 6 samples read together hold NaN or infinity, first sample 2"
    ):
        data.load(save(tmp_path / "d.npz", content), make_model())


def test_broken_files_are_refused(tmp_path: Path, make_model: Make) -> None:
    whole = Path(save(tmp_path / "whole.npz", arrays())).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    np.savez(tmp_path / "pickled.npz", image=np.array([{"a": 1}], dtype=object))
    np.savez_compressed(tmp_path / "rotten.npz", image=np.arange(5000, dtype=np.float32))
    rotten = bytearray((tmp_path / "rotten.npz").read_bytes())
    rotten[300:400] = bytes(b ^ 0xFF for b in rotten[300:400])
    (tmp_path / "rotten.npz").write_bytes(rotten)
    for name in ("cut", "text", "empty", "one", "pickled", "rotten", "missing"):
        with pytest.raises(DataError, match=name):
            data.load(str(tmp_path / f"{name}.npz"), make_model())


def test_a_header_that_claims_terabytes_is_refused(tmp_path: Path, make_model: Make) -> None:
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3, 8, 8)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("image.npy", header.getvalue() + bytes(100))
    with pytest.raises(DataError, match="is not a readable"):
        data.load(str(tmp_path / "d.npz"), make_model())


def test_an_archive_over_the_bound_is_refused_before_it_is_unpacked(
    tmp_path: Path, make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "d.npz", image=np.zeros((50, 3, 8, 8), np.float32))
    assert (tmp_path / "d.npz").stat().st_size < 2000
    monkeypatch.setattr(dataset, "MAX_DATA_BYTES", 30_000)
    with pytest.raises(DataError, match="at most 30000 are allowed"):
        data.load(str(tmp_path / "d.npz"), make_model())


def test_class_folders_follow_the_labels(
    tmp_path: Path, make_model: Make, save_photo: Save
) -> None:
    for seed, name in enumerate(["dog", "fox", "cat", "dog"]):
        save_photo(tmp_path / name / f"{seed}.png", seed)
    loaded = data.load(str(tmp_path), make_model(), labelled=True)
    assert loaded.labels is not None
    assert dict(zip(loaded.names, loaded.labels.tolist(), strict=True)) == {
        "cat/2.png": 0, "dog/0.png": 1, "dog/3.png": 1, "fox/1.png": 2,
    }  # fmt: skip
    assert loaded.inputs["image"].shape == (4, 3, 8, 8)
    assert loaded.images is not None


def test_class_folders_may_be_numbers(tmp_path: Path, make_model: Make, save_photo: Save) -> None:
    save_photo(tmp_path / "2" / "a.png", 0)
    loaded = data.load(str(tmp_path), make_model())
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [2]
    save_photo(tmp_path / "7" / "b.png", 1)
    with pytest.raises(DataError, match="7 is not a class"):
        data.load(str(tmp_path), make_model())


def test_flat_folder_has_no_labels_and_knows_crops(
    tmp_path: Path, make_model: Make, save_photo: Save
) -> None:
    for i in range(6):
        save_photo(tmp_path / f"photo{i // 2}__{i}.png", i)
    loaded = data.load(str(tmp_path), make_model())
    assert loaded.labels is None
    assert loaded.clusters == 3
    with pytest.raises(
        DataError, match="has no labels, without which there is nothing to judge or train by"
    ) as caught:
        data.load(str(tmp_path), make_model(), labelled=True)
    assert "--fidelity" in caught.value.hint


def test_wrong_folders_are_refused(tmp_path: Path, make_model: Make, save_photo: Save) -> None:
    with pytest.raises(DataError, match="holds no images"):
        data.load(str(tmp_path), make_model())
    save_photo(tmp_path / "cow" / "a.png", 0)
    with pytest.raises(DataError, match="'cow' is neither a label"):
        data.load(str(tmp_path), make_model())
    with pytest.raises(DataError, match="declares no preprocessing"):
        data.load(str(tmp_path), make_model(steps=()))
    save_photo(tmp_path / "b.png", 0)
    with pytest.raises(DataError, match="images beside class folders"):
        data.load(str(tmp_path), make_model())


def test_an_unreadable_image_is_named(tmp_path: Path, make_model: Make, save_photo: Save) -> None:
    photo = save_photo(tmp_path / "a.png", 0)
    photo.write_bytes(photo.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a\.png.*not a readable image"):
        data.load(str(tmp_path), make_model())


def test_a_limit_takes_evenly_spaced_samples(tmp_path: Path, make_model: Make) -> None:
    loaded = data.load(save(tmp_path / "d.npz", arrays(n=9)), make_model(), limit=3)
    assert loaded.names == ("#0", "#3", "#6")


def test_a_callable_of_the_user_is_called(
    tmp_path: Path, make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_tiny_data.py").write_text(
        "import numpy as np\n"
        "def good(): return {'image': np.ones((2, 3, 8, 8), np.float32)}\n"
        "def bad(): raise RuntimeError('no disk')\n"
        "def odd(): return 3\n"
        "def ends(): raise SystemExit(3)\n"
        "def ragged(): return {'image': [[1], [2, 3]]}\n"
        "def lacks(): return {'image': None}\n"
    )
    (tmp_path / "my_broken_data.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(data.load("my_tiny_data:good", make_model())) == 2
    for name, words in (
        ("bad", "no disk"),
        ("odd", "returned int"),
        ("none", "cannot be imported"),
        ("ends", "failed: SystemExit: 3"),
        ("ragged", "image: is no array"),
        ("lacks", "image: holds NoneType"),
    ):
        with pytest.raises(DataError, match=words):
            data.load(f"my_tiny_data:{name}", make_model())
    with pytest.raises(DataError, match="cannot be imported") as raised:
        data.load("my_broken_data:f", make_model())
    assert "SyntaxError" in raised.value.cause


def test_random_and_missing_data_are_refused(make_model: Make, tmp_path: Path) -> None:
    for spec, words in (("random", "refused"), (str(tmp_path / "no"), "there is no such data")):
        with pytest.raises(DataError, match=words):
            data.load(spec, make_model())


def test_overlap_is_found_by_content(tmp_path: Path, make_model: Make) -> None:
    content = arrays()
    calibration = data.load(save(tmp_path / "cal.npz", content), make_model())
    fresh = arrays(image=np.ones((6, 3, 8, 8), np.float32))
    evaluation = data.load(save(tmp_path / "eval.npz", fresh), make_model())
    data.refuse_overlap(calibration, evaluation, "evaluation")
    fresh["image"][4] = content["image"][1]  # type: ignore[index]
    overlapping = data.load(save(tmp_path / "eval.npz", fresh), make_model())
    with pytest.raises(DataError, match="1 of 6 samples of the evaluation data") as caught:
        data.refuse_overlap(calibration, overlapping, "evaluation")
    assert "#4" in caught.value.cause
