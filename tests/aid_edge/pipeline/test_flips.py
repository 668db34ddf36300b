from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from aid_edge.evaluate.data import DataSet
from aid_edge.pipeline.flips import MAX_FLIPS, THUMBNAIL_PIXELS, find_flips, thumbnail


def data(labels: list[int] | None, images: tuple[Path, ...] | None = None, n: int = 5) -> DataSet:
    truth = None if labels is None else np.array(labels, np.int64)
    names = tuple(f"#{i}" for i in range(n))
    return DataSet("d", {}, truth, None, names, images, "sha256:0", names)


def scores(answers: list[int]) -> np.ndarray:
    return np.eye(3)[answers]


def test_losses_come_first_and_gains_are_told_as_well() -> None:
    before, after = scores([0, 1, 2, 0, 1]), scores([0, 2, 1, 1, 0])
    found = find_flips(before, after, data([0, 2, 2, 2, 1]), ("ant", "bee"))
    assert [(f.sample, f.kind) for f in found] == [
        ("#2", "loss"), ("#4", "loss"), ("#1", "gain"), ("#3", "neither"),
    ]  # fmt: skip
    assert (found[0].source_answer, found[0].candidate_answer) == ("class 2", "bee")
    assert (found[0].label, found[0].thumbnail) == ("class 2", "")


def test_without_labels_nobody_knows() -> None:
    (flip,) = find_flips(scores([0, 1, 2, 0, 1]), scores([0, 1, 2, 0, 2]), data(None), ())
    assert (flip.kind, flip.label) == ("unlabelled", "")


def test_the_list_is_short() -> None:
    n = 3 * MAX_FLIPS
    assert len(find_flips(scores([0] * n), scores([1] * n), data(None, n=n), ())) == MAX_FLIPS


def test_pictures_are_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    uri = thumbnail(tmp_path / "a.png")
    assert len(uri) < 6000
    decoded = base64.b64decode(uri.partition(",")[2])
    with Image.open(io.BytesIO(decoded)) as image:
        assert image.size == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    assert thumbnail(tmp_path / "missing.png") == ""
