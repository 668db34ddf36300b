"""Tables, recordings, iterators, models without a batch axis; and memory that stays flat."""

from __future__ import annotations

import dataclasses
import gc
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aid_edge import isolate
from aid_edge.errors import DataError
from aid_edge.evaluate.data import DataSet, load
from aid_edge.evaluate.data.noise import read_noise
from aid_edge.model import SourceModel
from aid_edge.samples import Samples
from device_agent.contract.tensors import TensorInfo
from tests.support.load_steps import load_in_worker

Make = Callable[..., SourceModel]


def model_of(
    make_model: Make,
    inputs: list[tuple[str, str, tuple[int, ...]]],
    output: tuple[int, ...] = (-1, 3),
    *,
    task: str = "other",
    **changes: object,
) -> SourceModel:
    plain = make_model()
    return dataclasses.replace(
        plain,
        inputs=tuple(TensorInfo(*i) for i in inputs),
        outputs=(TensorInfo("y", "FP32", output),),
        card=dataclasses.replace(plain.card, task=task),
        **changes,
    )


def table(tmp_path: Path, text: str, model: SourceModel, **how: object) -> DataSet:
    path = tmp_path / "d.csv"
    path.write_text(text)
    return load(str(path), model, **how)


# --- tables ------------------------------------------------------------------------------------


def test_features_in_order_with_named_classes(tmp_path: Path, make_model: Make) -> None:
    model = model_of(make_model, [("x", "FP32", (-1, 2))], task="classification")
    text = "\ufeffwidth;label;height;group\n1,5;cat;2;a\n".replace("1,5", "1.5")
    data = table(tmp_path, text + "\n3;fox;4e1;b\n", model, labelled=True)
    np.testing.assert_array_equal(data.inputs["x"], np.array([[1.5, 2], [3, 40]], np.float32))
    assert data.labels.tolist() == [0, 2]
    assert (data.groups, data.names) == (("a", "b"), ("line 2", "line 4"))


def test_inputs_by_name_and_ids_in_one_cell(tmp_path: Path, make_model: Make) -> None:
    model = model_of(
        make_model, [("ids", "INT64", (-1, 3)), ("w", "FP32", (-1, 2)), ("on", "BOOL", (-1, 1))]
    )
    data = table(tmp_path, "ids,on,w.1,w.0,target\n7 8 9,1,.2,.1,4 5 6\n1 2 3,0,4,3,7\n", model)
    assert data.inputs["ids"].tolist() == [[7, 8, 9], [1, 2, 3]]
    assert data.inputs["w"][0].tolist() == pytest.approx([0.1, 0.2])
    assert data.inputs["on"].ravel().tolist() == [True, False]
    assert (data.kind, data.labels) == ("sequences", None)
    assert [t.tolist() for t in data.targets] == [[4, 5, 6], [7]]


def test_targets_of_regression_and_several_labels(tmp_path: Path, make_model: Make) -> None:
    regression = model_of(make_model, [("x", "FP32", (-1, 1))], (-1, 1))
    data = table(tmp_path, "x,target\n1,0.5\n2,7\n", regression, labelled=True)
    assert (data.kind, data.targets.tolist(), data.labels) == ("values", [0.5, 7.0], None)
    assert table(tmp_path, "x,target\n1,12\n2,70\n", regression).kind == "values"
    assert table(tmp_path, "x,target\n1,1\n2,0\n", regression).labels.tolist() == [1, 0]
    several = model_of(make_model, [("x", "FP32", (-1, 1))], (-1, 3))
    data = table(tmp_path, "x,label\n1,1 0 1\n2,0 0 0\n", several)
    assert (data.kind, data.targets.tolist()) == ("multi-label", [[1, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("shape", [(-1, 4, 2), (-1, 2, 4)])
def test_windows_are_cut_from_each_series(
    tmp_path: Path, make_model: Make, shape: tuple[int, ...]
) -> None:
    model = model_of(make_model, [("x", "FP32", shape)], task="classification")
    rows = []
    for t in range(9):  # two series lie across each other, and the last row makes no window
        rows += [f"{t},{10 + t},a,{0 if t < 7 else 1}", f"{-t},{-10 - t},b,2"]
    data = table(tmp_path, "\n".join(["ax,ay,series,label", *rows]), model)
    assert data.groups == ("a", "b", "a", "b")
    assert data.labels.tolist() == [0, 2, 0, 2]
    first = data.inputs["x"][2]
    steps = first if shape == (-1, 4, 2) else first.T
    assert steps.tolist() == [[4, 14], [5, 15], [6, 16], [7, 17]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a,b\n", "is empty: has no rows"),
        ("1,2\n3,4\n", "line 1: holds numbers where the names"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ("a,b\n1,2\n1\n", "line 3: has 1 cells; the first line has 2"),
        ("a,b\n1,2\n\n1,oops\n", "line 4: column 2: 'oops' is no float32 for input 'x'"),
        ("a,b\n1,nan\n", "line 2: column 2: 'nan'"),
        ("a,b,c\n1,2,3\n", "3 columns for input 'x', which takes 2 values"),
        ("a,b,label\n1,2,cow\n", "line 2: label 'cow' is neither"),
        ("a,b,label\n1,2,cat\n3,4,cow\n", "line 3: 'cow' is neither"),
        ("a,b,label\n1,2,3\n", "3 is not a class"),
        ("a,b,label,target\n1,2,3,4\n", "label, target mean the same"),
        ("x.0,x.1,c\n1,2,3\n", "unknown: c"),
        ('a,b\n1,"2\n', "is not CSV"),
        ("x\n1 2 3\n", "line 2: 3 values for input 'x', which takes 2"),
    ],
)
def test_damaged_tables_are_named_by_line(
    tmp_path: Path, make_model: Make, text: str, words: str
) -> None:
    model = model_of(make_model, [("x", "FP32", (-1, 2))], task="classification")
    with pytest.raises(DataError, match=words):
        table(tmp_path, text, model)


def test_tables_that_are_no_text_and_ids_that_do_not_fit(tmp_path: Path, make_model: Make) -> None:
    (tmp_path / "b.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    model = model_of(make_model, [("x", "INT8", (-1, 2))])
    with pytest.raises(DataError, match="is not UTF-8"):
        load(str(tmp_path / "b.csv"), model)
    for cell in ("300", "1.5", "1_0"):
        with pytest.raises(DataError, match=f"'{cell}' is no int8"):
            table(tmp_path, f"a,b\n{cell},1\n", model)


# --- recordings --------------------------------------------------------------------------------


def record(path: Path, samples: np.ndarray, *, rate: int = 8000, width: int = 2) -> None:
    """Write floats [n] or [n, channels] of -1 to 1 as PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64).ravel()
        if width == 1:
            file.writeframes((whole + 128).astype(np.uint8).tobytes())
        else:
            file.writeframes(b"".join(struct.pack("<q", v)[:width] for v in whole))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_recordings_of_every_width(tmp_path: Path, make_model: Make, width: int) -> None:
    model = model_of(make_model, [("wave", "FP32", (-1, 1, 100))])
    tone = 0.5 * np.sin(np.arange(250) / 5)
    record(tmp_path / "a.wav", np.stack([tone, tone], axis=1), width=width)
    data = load(str(tmp_path), model)
    # Two whole windows, and half of a third with silence.
    assert data.inputs["wave"].shape == (3, 1, 100)
    joined = data.inputs["wave"].ravel()
    np.testing.assert_allclose(joined[:250], tone, atol=2 / 2 ** (8 * width - 1) + 1e-6)
    assert not joined[250:].any()
    assert (data.groups, data.names[1]) == (("a.wav",) * 3, "a.wav#1")


def test_recordings_by_class_and_of_another_rate(tmp_path: Path, make_model: Make) -> None:
    model = model_of(make_model, [("wave", "FP32", (-1, 400))], task="classification")
    record(tmp_path / "cat" / "a.wav", np.zeros(400))
    record(tmp_path / "dog" / "b.wav", np.zeros(900))
    assert load(str(tmp_path), model, labelled=True).labels.tolist() == [0, 1, 1]
    record(tmp_path / "fox" / "c.wav", np.zeros(900), rate=16000)
    with pytest.raises(DataError, match=r"c\.wav: has 16000 samples a second; a\.wav has 8000"):
        load(str(tmp_path), model)


def test_damaged_recordings_are_named(tmp_path: Path, make_model: Make) -> None:
    model = model_of(make_model, [("wave", "FP32", (-1, 100))])
    record(tmp_path / "whole.wav", 0.1 * np.ones(500))
    whole = (tmp_path / "whole.wav").read_bytes()
    for number, content in enumerate((whole[:300], whole[:20], b"RIFF" + bytes(60), b"")):
        broken = tmp_path / f"broken{number}.wav"
        broken.write_bytes(content)
        with pytest.raises(DataError, match=f"broken{number}.wav.*recording"):
            load(str(tmp_path), model)
        broken.unlink()
    with pytest.raises(DataError, match="recordings feed one float input"):
        load(str(tmp_path), model_of(make_model, [("mel", "FP32", (-1, 1, 64, 64))]))
    with pytest.raises(DataError, match="is one recording"):
        load(str(tmp_path / "whole.wav"), model)


# --- arrays ------------------------------------------------------------------------------------


def test_a_model_without_a_batch_axis_takes_whole_feeds(tmp_path: Path, make_model: Make) -> None:
    model = model_of(
        make_model,
        [("x", "FP32", (1, 8)), ("state", "FP32", (2, 1, 4)), ("rate", "INT64", ())],
        (1, 1), batched=False,
    )  # fmt: skip
    arrays = {
        "x": np.ones((5, 1, 8), np.float32),
        "state": np.zeros((5, 2, 1, 4), np.float32),
        "rate": np.full(5, 16000),
    }
    np.savez(tmp_path / "d.npz", **arrays)
    data = load(str(tmp_path / "d.npz"), model)
    assert data.take([4])["state"].shape == (1, 2, 1, 4)
    assert next(model.feeds(data.inputs))["rate"] == 16000
    noise = load("random", model, allow_random=True, limit=3)
    assert noise.inputs["state"].shape == (3, 2, 1, 4)
    assert len(load("random", model, allow_random=True, limit=300)) == 300
    arrays["x"] = np.ones((5, 8), np.float32)
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=r"expected shape \[n, 1, 8\], found \[5, 8\]"):
        load(str(tmp_path / "d.npz"), model)


def test_noise_of_large_inputs_is_not_made_by_the_gigabyte(make_model: Make) -> None:
    sizes = {}
    for side in (16, 512, 4096):
        model = model_of(make_model, [("x", "FP32", (-1, 3, side, side))])
        sizes[side] = len(read_noise(model, 4096, 0).names)
    assert sizes == {16: 4096, 512: 85, 4096: 32}


def test_columns_first_and_compressed_archives_read_the_same(
    tmp_path: Path, make_model: Make
) -> None:
    model = model_of(make_model, [("x", "FP32", (-1, 30, 40))])
    values = np.random.default_rng(0).normal(size=(3000, 30, 40)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=values)
    np.savez_compressed(tmp_path / "z.npz", x=values)
    np.savez(tmp_path / "f.npz", x=np.asfortranarray(values))
    sets = [load(str(tmp_path / f"{n}.npz"), model, limit=1100) for n in "czf"]
    assert len({d.digest for d in sets}) == 1
    picked = [i * 3000 // 1100 for i in range(1100)]
    np.testing.assert_array_equal(sets[0].inputs["x"], values[picked])


def test_an_iterator_gives_batches(
    tmp_path: Path, make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_streamed_data.py").write_text(
        "import numpy as np\n"
        "def parts():\n"
        "    for i in range(4):\n"
        "        x = np.full((3, 2), i, np.float32)\n"
        "        yield {'x': x, 'labels': np.full(3, i % 3), 'groups': [f'g{i}'] * 3}\n"
        "def breaks():\n"
        "    yield {'x': np.zeros((1, 2), np.float32)}\n"
        "    raise RuntimeError('disk gone')\n"
        "def odd():\n"
        "    yield 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = model_of(make_model, [("x", "FP32", (-1, 2))])
    data = load("my_streamed_data:parts", model, limit=10)
    assert (len(data), data.clusters) == (10, 4)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0]
    for name, words in (("breaks", "failed: RuntimeError: disk gone"), ("odd", "gave int")):
        with pytest.raises(DataError, match=words):
            load(f"my_streamed_data:{name}", model)


def test_samples_go_with_whoever_holds_them(tmp_path: Path, make_model: Make) -> None:
    model = model_of(make_model, [("x", "FP32", (-1, 2))])
    few = load("random", model, allow_random=True).inputs.first(3)
    assert isinstance(few, Samples)
    gc.collect()
    assert few["x"].shape == (3, 2)
    folder = few.folder
    del few
    gc.collect()
    assert not folder.exists()
    kept = load("random", model, allow_random=True, folder=tmp_path / "kept")
    del kept
    gc.collect()
    assert (tmp_path / "kept" / "0.npy").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(tmp_path: Path, make_model: Make) -> None:
    model = make_model((-1, 3, 96, 96))
    grown = {}
    for n in (200, 2000):
        path = tmp_path / f"{n}.npz"
        np.savez(path, image=np.random.default_rng(0).random((n, 3, 96, 96), np.float32))
        found = isolate.run(load_in_worker, str(path), model).value
        assert found[0] == n
        grown[n] = found[1]
    # Nine times 20 MB more data; what may differ is names and digests.
    assert grown[2000] < grown[200] + 20 * 2**20
