from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from aid_edge.evaluate.modality import Modality, detect
from aid_edge.evaluate.robustness import Predict
from aid_edge.explain.evidence import Question, ask, in_words, spearman
from aid_edge.explain.parts import IMAGE_CELLS, hide
from aid_edge.explain.pictures import heat, picture

RANDOM = np.random.default_rng(2)
IMAGES = RANDOM.random((6, 3, 32, 32)).astype(np.float32)
IMAGES[0, :, :8, :8] = 1.0
IMAGES[0, :, -8:, -8:] = 1.0
TOKENS = np.array([[101, 5, 6, 7, 102, 0], [101, 9, 8, 7, 6, 102]])


def modality_of(inputs: dict[str, npt.NDArray[np.generic]]) -> Modality:
    found = detect(inputs)
    assert found is not None
    return found


def corner(weight: float) -> Predict:
    """Class 0 by light in the upper left, class 1 by light in the lower right."""

    def predict(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float64]]:
        x = inputs["x"]
        first = x[:, :, :8, :8].mean(axis=(1, 2, 3)) * weight
        return [np.stack([first, x[:, :, -8:, -8:].mean(axis=(1, 2, 3))], axis=1)]

    return predict


@pytest.mark.parametrize("masks", [0, 400])
def test_evidence_lies_where_the_model_looks(masks: int) -> None:
    inputs = {"x": IMAGES}
    (found,) = ask(
        [Question("a", {"x": IMAGES[:1]}, 0, 1)], modality_of(inputs),
        {"source": corner(2.0), "candidate": corner(0.9)}, masks=masks, seed=1,
    )  # fmt: skip
    parts = found.parts["source"].reshape(found.hidden.grid)
    assert found.hidden.grid == (IMAGE_CELLS, IMAGE_CELLS)
    assert np.unravel_index(parts.argmax(), parts.shape) in [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert parts[:2, :2].mean() > 5 * abs(parts[:2, -3:].mean())
    assert parts[-2:, -2:].mean() < 0, "the lower right speaks for the other answer"
    assert found.hidden.names[int(parts.argmax())] == "upper left"
    assert found.margins["source"] == pytest.approx(1.0, abs=0.01)
    assert found.margins["candidate"] < 0
    said = in_words(found, "source", "candidate", ("cat", "dog"))
    assert "source prefers cat to dog with odds of 2.72 to 1" in said


def test_both_models_see_the_same_and_are_called_once() -> None:
    seen: dict[str, list[npt.NDArray[np.float32]]] = {"a": [], "b": []}

    def spy(name: str) -> Predict:
        def predict(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float64]]:
            seen[name].append(inputs["x"])
            return corner(1.0)(inputs)  # type: ignore[return-value]

        return predict

    questions = [Question(str(i), {"x": IMAGES[i : i + 1]}, 0, 1) for i in range(3)]
    found = ask(questions, modality_of({"x": IMAGES}), {"a": spy("a"), "b": spy("b")})
    assert [len(calls) for calls in seen.values()] == [1, 1]
    assert np.array_equal(seen["a"][0], seen["b"][0])
    assert len(seen["a"][0]) == sum(f.evaluations for f in found) == 3 * 50
    assert all(f.correlation("a", "b") == pytest.approx(1.0) for f in found)


def test_words_are_left_out_with_their_mask() -> None:
    data = {"ids": TOKENS, "mask": (TOKENS != 0).astype(np.int64)}
    hidden = hide({name: a[:1] for name, a in data.items()}, modality_of(data))
    assert hidden.names == ("token 5 at 1", "token 6 at 2", "token 7 at 3")
    assert hidden.inputs["ids"].tolist()[0] == [101, 6, 7, 102, 0, 0]
    assert np.array_equal(hidden.inputs["ids"] != 0, hidden.inputs["mask"] == 1)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((5, 20), (1, 20)), ((5, 3, 64), (3, 16)), ((5, 64, 20), (1, 16)), ((5, 4000), (1, 16)),
     ((5, 200), (1, 96))],
)  # fmt: skip
def test_parts_cover_the_whole_input_once(shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    data = {"x": RANDOM.normal(size=shape).astype(np.float32)}
    hidden = hide({"x": data["x"][:1]}, modality_of(data))
    assert hidden.grid == grid
    assert len(hidden.names) == len(hidden.inputs["x"]) == grid[0] * grid[1]
    changed = hidden.inputs["x"] != data["x"][:1]
    assert np.array_equal(changed.sum(axis=0), np.ones(shape[1:]))


def test_a_table_names_the_value_that_decides() -> None:
    data = {"x": RANDOM.normal(size=(50, 6)).astype(np.float32)}

    def third(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float64]]:
        score = 4 * inputs["x"][:, 3].astype(np.float64)
        shares = 1 / (1 + np.exp(-score))
        return [np.stack([shares, 1 - shares], axis=1)]

    sample = {"x": data["x"][data["x"][:, 3].argmax()][None]}
    (found,) = ask([Question("a", sample, 0, 1)], modality_of(data), {"m": third})
    strongest = found.strongest("m")
    assert strongest == 3
    assert found.hidden.names[strongest] == "value 3"
    # Shares of one are taken for probabilities, so that evidence is in log-odds.
    mean = modality_of(data).mean[3]
    assert found.parts["m"][3] == pytest.approx(4 * (sample["x"][0, 3] - mean), rel=1e-4)


def test_outputs_that_are_no_classes_are_explained_by_how_far_they_move() -> None:
    data = {"x": RANDOM.normal(size=(50, 6)).astype(np.float32)}

    def embed(inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
        return [inputs["x"] * np.array([5, 1, 1, 1, 1, 1], np.float32)]

    (found,) = ask(
        [Question("a", {"x": np.ones((1, 6), np.float32)}, None, None)],
        modality_of(data), {"m": embed},
    )  # fmt: skip
    assert found.strongest("m") == 0
    assert (found.parts["m"] >= 0).all()


def test_spearman_goes_by_ranks_with_ties() -> None:
    one = np.array([1.0, 2.0, 2.0, 10.0])
    assert spearman(one, one**3) == pytest.approx(1.0)
    assert spearman(one, -one) == pytest.approx(-1.0)
    assert spearman(one, np.ones(4)) is None


@pytest.mark.parametrize(
    ("shape", "form"),
    [((5, 8, 8, 1), "png"), ((5, 3, 200, 300), "jpeg"), ((5, 3, 500), "svg"), ((5, 8000), "svg")],
)
def test_pictures_are_small(shape: tuple[int, ...], form: str) -> None:
    data = {"x": RANDOM.random(shape).astype(np.float32)}
    uri = picture(data["x"][0], modality_of(data), gray=True)
    assert uri.startswith(f"data:image/{form}")
    assert len(uri) < 7000


def test_heat_is_blue_for_and_orange_against() -> None:
    uri = heat(np.array([1.0, -1.0, 0.0, 0.5]), (2, 2), 1.0)
    assert len(uri) < 400
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    pixels = np.asarray(image)
    assert pixels[0, 0, 2] > pixels[0, 0, 0], "blue"
    assert pixels[0, 1, 0] > pixels[0, 1, 2], "orange"
    assert pixels[1, 0, 3] == 0
    assert 0 < pixels[1, 1, 3] < pixels[0, 0, 3]
    assert not np.isnan(np.asarray(Image.open(io.BytesIO(base64.b64decode(
        heat(np.zeros(4), (2, 2), 0.0).partition(",")[2]))))).any()  # fmt: skip
