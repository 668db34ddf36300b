"""The model card: every error names file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from aid_edge.errors import SourceError
from aid_edge.model import find_card, read_card, read_preprocess
from device_agent.contract.manifest import (
    CenterCrop,
    Channels,
    Normalize,
    Rescale,
    Resize,
    Softmax,
)

GOOD = """\
schema = 1
name = "net"
version = "2.0"
task = "classification"
labels = "labels.txt"
licence = "MIT"
[[inputs]]
name = "image"
shape = [-1, 3, 4, 4]
[[preprocess]]
type = "resize"
size = 8
[[preprocess]]
type = "center-crop"
height = 4
width = 4
[[preprocess]]
type = "normalize"
mean = [1.0, 2.0, 3.0]
std = [1.0, 1.0, 1.0]
[[postprocess]]
type = "softmax"
"""


def _card(folder: Path, text: str, labels: str = "cat\ndog\n") -> Path:
    (folder / "labels.txt").write_text(labels)
    path = folder / "model.toml"
    path.write_text(text)
    return path


def test_a_whole_card(tmp_path: Path) -> None:
    card = read_card(_card(tmp_path, GOOD))
    assert (card.name, card.version, card.title, card.task) == (
        "net",
        "2.0",
        "net",
        "classification",
    )
    assert card.labels == ("cat", "dog")
    assert card.preprocess == (
        Resize(8), CenterCrop(4, 4), Normalize((1.0, 2.0, 3.0), (1.0, 1.0, 1.0)),
    )  # fmt: skip
    assert card.postprocess == (Softmax(),)
    assert card.inputs[0].datatype is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", r"model\.toml: schema: is 2; allowed: 1"),
        ('name = "net"', 'name = "Not A Name"', r"model\.toml: name: .*pattern|regex"),
        ('version = "2.0"', "", r"missing required field `version`"),
        ("size = 8", 'size = "8"', r"preprocess\[\.*0*\.*\]\.size: Expected `int`"),
        ('type = "softmax"', 'type = "sofmax"', r"postprocess.*Invalid value 'sofmax'"),
        ('licence = "MIT"', 'license = "MIT"', r"unknown field `license`"),
        ('task = "classification"', 'task = "magic"', r"task: Invalid enum value 'magic'"),
        ("schema = 1", "schema = = 1", r"model\.toml: is not TOML"),
        ('"labels.txt"', '"nowhere.txt"', r"model\.toml: labels: .*nowhere\.txt: cannot be read"),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_card(_card(tmp_path, GOOD.replace(old, new, 1)))


def test_labels_are_one_per_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="empty line"):
        read_card(_card(tmp_path, GOOD, labels="cat\n\ndog\n"))


def test_cards_are_found_beside_the_weights_first(tmp_path: Path) -> None:
    for folder in ("weights", "code"):
        (tmp_path / folder).mkdir()
    code = tmp_path / "code" / "net.py"
    weights = tmp_path / "weights" / "w.pth"
    assert find_card(weights, code) is None
    (tmp_path / "code" / "model.toml").write_text(GOOD)
    assert find_card(weights, code) == tmp_path / "code" / "model.toml"
    (tmp_path / "weights" / "model.toml").write_text(GOOD)
    assert find_card(weights, code) == tmp_path / "weights" / "model.toml"


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "link.txt"])
def test_labels_stay_in_the_cards_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_text("key\n")
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(SourceError, match=r"labels: .* lies outside the folder of the card"):
        read_card(_card(folder, GOOD.replace("labels.txt", name)))


def test_preprocessing_without_a_card(tmp_path: Path) -> None:
    path = tmp_path / "steps.toml"
    path.write_text(
        '[[preprocess]]\ntype = "channels"\norder = "BGR"\n'
        '[[preprocess]]\ntype = "rescale"\nscale = 0.5\n'
    )
    assert read_preprocess(path) == (Channels("BGR"), Rescale(0.5, 0.0))
    assert len(read_preprocess(_card(tmp_path, GOOD))) == 3
    for text, message in (
        ("", "has no .*preprocess.* table"),
        ("[[preprocess]]\ntype = 'twist'\n", "preprocess.*Invalid value 'twist'"),
        ("[[preproces]]\ntype = 'resize'\n", "unknown field `preproces`"),
        ("schema = ", "is not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(SourceError, match=message):
            read_preprocess(path)
