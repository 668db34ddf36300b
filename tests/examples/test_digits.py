"""The digits example: learns, keeps its data apart, and is deterministic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aid_edge.model import read_card
from examples import digits


@pytest.mark.slow
def test_the_network_learns_and_data_stay_apart(tmp_path: Path) -> None:
    accuracy = digits.write(tmp_path)
    assert accuracy > 0.97
    with np.load(tmp_path / "calibration.npz") as calibration:
        assert calibration.files == ["image"]
        seen = {image.tobytes() for image in calibration["image"]}
    with np.load(tmp_path / "evaluation.npz") as evaluation:
        assert evaluation["image"].shape == (897, 1, 8, 8)
        assert evaluation["image"].dtype == np.float32
        assert 0 <= evaluation["image"].min() < evaluation["image"].max() <= 1
        assert not seen & {image.tobytes() for image in evaluation["image"]}
    assert len(read_card(tmp_path / "model.toml").labels) == 10


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 1)
    images, labels = digits.load_digits()
    first, second = (digits.train(images[:100], labels[:100]).state_dict() for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)
