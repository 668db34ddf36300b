"""Every method of the LiteRT quantizer on one exported file, and the traps on the way."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from numpy.typing import NDArray

from aid_edge import isolate, samples
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import (
    DynamicInt8,
    Float16,
    Float32,
    Palettized,
    Quantize,
    Recipe,
    StaticInt8,
    WeightOnly,
)
from aid_edge.runtimes.litert import LiteRtSession, place
from aid_edge.sources.opening import open_source
from converters import litert_calibrate, litert_export, litert_flatbuffer, litert_quantize
from converters.litert_plan import check_recipe
from device_agent.contract.profile import HardwareProfile, read_profile
from device_agent.contract.tensors import TensorInfo
from tests.support import litert_steps

pytestmark = [
    pytest.mark.slow,
    # Calibration looks at inner tensors; in worker processes nobody hears this.
    pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`"),
]

INT8 = StaticInt8(activations="int8")
SIZE = 24
PROFILE = Path(__file__).parents[2] / "hardware-profiles" / "generic-x86_64.toml"


@pytest.fixture(scope="module")
def model() -> SourceModel:
    inputs = [TensorInfo("image", "FP32", (-1, 3, SIZE, SIZE))]
    return open_source("tests.support.tiny_nets:tiny", inputs=inputs)


@pytest.fixture(scope="module")
def floating(
    model: SourceModel, x86: HardwareProfile, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The float file, with channels where PyTorch has them."""
    path = tmp_path_factory.mktemp("float") / "float.tflite"
    isolate.run(litert_export.export, model, None, x86, path)
    return path


@pytest.fixture(scope="module")
def data() -> dict[str, NDArray[Any]]:
    """Images of which one is ten times as bright as the others."""
    images = np.random.default_rng(5).random((60, 3, SIZE, SIZE), np.float32)
    images[30] *= 10
    return {"image": images}


def _run(path: Path, images: NDArray[Any]) -> NDArray[Any]:
    session = LiteRtSession(path, 1, exact=True)
    return np.concatenate([session.run({"image": x[None]})["output"] for x in images])


def _quantized(
    case: tuple[SourceModel, Path, Mapping[str, NDArray[Any]]],
    how: Quantize,
    profile: HardwareProfile,
    to: Path,
) -> Path:
    model, floating, data = case
    litert_quantize.quantize(floating, how, (model, data, {}), profile, to)
    litert_flatbuffer.finish_quantized(to, model)
    return to


@pytest.fixture(scope="module")
def case(
    model: SourceModel, floating: Path, data: dict[str, NDArray[Any]]
) -> tuple[SourceModel, Path, dict[str, NDArray[Any]]]:
    return model, floating, data


@pytest.mark.parametrize(
    ("how", "integer", "cosine"),
    [
        (Float16(), 0, 0.99999),
        (DynamicInt8(), 3, 0.999),
        (DynamicInt8(per_channel=False), 3, 0.999),
        (WeightOnly(8), 0, 0.999),
        (WeightOnly(4), 0, 0.99),
        (INT8, 3, 0.99),
        (StaticInt8(activations="int8", per_channel=False), 3, 0.99),
        (StaticInt8(activations="int16"), 3, 0.999),
        (StaticInt8(activations="int8", method="percentile"), 3, 0.99),
        (StaticInt8(activations="int8", method="mse"), 3, 0.99),
    ],
    ids=lambda value: getattr(value, "title", ""),
)
def test_methods_give_what_they_say(
    how: Quantize,
    integer: int,
    cosine: float,
    case: tuple[SourceModel, Path, dict[str, NDArray[Any]]],
    tmp_path: Path,
) -> None:
    _, floating, data = case
    x86 = read_profile(PROFILE)[0]
    path = _quantized(case, how, x86, tmp_path / "q.tflite")
    assert path.stat().st_size < floating.stat().st_size
    placement = place(path, tmp_path)
    assert (placement.integer, placement.floating) == (integer, 3 - integer)
    want, got = _run(floating, data["image"]), _run(path, data["image"])
    assert np.array_equal(got, _run(path, data["image"]))
    norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
    assert ((want * got).sum(axis=1) / norms).min() > cosine
    session = LiteRtSession(path, 1, exact=True)
    assert [i.name for i in session.inputs] == ["image"]
    assert [o.name for o in session.outputs] == ["output"]


def test_the_default_calibration_clips_and_ours_does_not(
    case: tuple[SourceModel, Path, dict[str, NDArray[Any]]], x86: HardwareProfile, tmp_path: Path
) -> None:
    _, floating, data = case
    want = _run(floating, data["image"])
    work = quantizer.Quantizer(str(floating), recipe.static_wi8_ai8())
    feeds = [{"image": x[None]} for x in data["image"]]
    found = work.calibrate({litert_flatbuffer.SIGNATURE: feeds}, num_threads=1)
    work.quantize(found).export_model(str(tmp_path / "theirs.tflite"))
    theirs = _run(tmp_path / "theirs.tflite", data["image"])
    ours = _run(_quantized(case, INT8, x86, tmp_path / "ours.tflite"), data["image"])
    # The trap: the answer to the bright image is cut off.
    assert np.abs(theirs[30]).max() < 0.6 * np.abs(want[30]).max()
    assert np.abs(ours[30] - want[30]).max() < 0.05 * np.abs(want[30]).max()


def _ranges(path: Path) -> dict[str, float]:
    graph = litert_flatbuffer.read(path)[0].subgraphs[0]
    return {
        t.name.decode(): float(t.quantization.scale[0])
        for t in graph.tensors
        if t.quantization is not None and t.quantization.scale is not None
        and len(t.quantization.scale) == 1
    }  # fmt: skip


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_rare_values_are_left_out_inside_but_not_at_the_edges(
    method: Any,
    case: tuple[SourceModel, Path, dict[str, NDArray[Any]]],
    x86: HardwareProfile,
    tmp_path: Path,
) -> None:
    wide = _ranges(_quantized(case, INT8, x86, tmp_path / "wide.tflite"))
    how = StaticInt8(activations="int8", method=method)
    narrow = _ranges(_quantized(case, how, x86, tmp_path / "narrow.tflite"))
    shared = set(wide) & set(narrow)
    if method == "percentile":
        assert any(narrow[name] < 0.9 * wide[name] for name in shared)
    assert all(narrow[name] <= 1.001 * wide[name] for name in shared)
    edges = [name for name in shared if name.startswith(("image", "output"))]
    assert len(edges) == 2
    assert all(narrow[name] == wide[name] for name in edges)


def test_least_error_clips_what_is_rare_and_far() -> None:
    centers = np.linspace(-40, 40, litert_calibrate.BINS)
    common = (1e9 * np.exp(-(centers**2) / 2)).astype(np.int64)
    common[[0, -1]] = 1
    low, high = litert_calibrate.least_error(common, -40.0, 40.0)
    assert -20 < low < -4
    assert 4 < high < 20
    even = np.ones(litert_calibrate.BINS, np.int64)
    assert litert_calibrate.least_error(even, 0.0, 1.0) == (0.0, 1.0)


def test_named_operators_stay_float(
    case: tuple[SourceModel, Path, dict[str, NDArray[Any]]], x86: HardwareProfile, tmp_path: Path
) -> None:
    _, floating, _ = case
    names = {op: name for op, _, name in litert_flatbuffer.operators(
        litert_flatbuffer.read(floating)[0])}  # fmt: skip
    kept = (names["DEPTHWISE_CONV_2D"], names["FULLY_CONNECTED"])
    how = StaticInt8(activations="int8", keep_float=kept)
    path = _quantized(case, how, x86, tmp_path / "q.tflite")
    assert (place(path, tmp_path).integer, place(path, tmp_path).floating) == (1, 2)
    # Inner tensors are called as in the float file.
    assert kept[0] in {name for _, _, name in litert_flatbuffer.operators(
        litert_flatbuffer.read(path)[0])}  # fmt: skip
    unknown = StaticInt8(activations="int8", keep_float=("t1", "nothing"))
    with pytest.raises(ConversionError, match="'nothing' is no output") as caught:
        _quantized(case, unknown, x86, tmp_path / "u.tflite")
    assert "float32" in caught.value.hint


def test_external_weights_are_brought_inside(
    case: tuple[SourceModel, Path, dict[str, NDArray[Any]]], x86: HardwareProfile, tmp_path: Path
) -> None:
    model, floating, data = case
    raw = tmp_path / "raw.tflite"
    litert_quantize.quantize(floating, INT8, (model, data, {}), x86, raw)
    found = schema.ModelT.InitFromPackedBuf(raw.read_bytes(), 0)
    litert_steps.externalize(raw)
    outside = schema.ModelT.InitFromPackedBuf(raw.read_bytes(), 0)
    assert any(buffer.offset > 1 for buffer in outside.buffers)
    before = _run(raw, data["image"][:4])
    litert_flatbuffer.finish_quantized(raw, model)
    after = schema.ModelT.InitFromPackedBuf(raw.read_bytes(), 0)
    assert all(buffer.offset <= 1 for buffer in after.buffers)
    assert len(after.buffers) == len(found.buffers)
    assert np.array_equal(before, _run(raw, data["image"][:4]))


def test_calibration_memory_is_flat_in_the_number_of_samples(
    model: SourceModel, floating: Path, x86: HardwareProfile, tmp_path: Path
) -> None:
    draws = np.random.default_rng(1)

    def batches(count: int) -> Any:
        return ({"image": draws.random((64, 3, SIZE, SIZE), np.float32)} for _ in range(count))

    # 64 samples are half a megabyte; 4096 are 28.
    few = samples.write(tmp_path / "few", batches(1))
    many = samples.write(tmp_path / "many", batches(64))
    peaks = []
    for given in (few, many):
        how = StaticInt8(activations="int8", samples=given.count)
        done = isolate.run(
            litert_steps.quantize, floating, how, (model, given), tmp_path / "q.tflite", x86
        )
        assert done.value == given.count
        peaks.append(done.peak_rss_bytes)
    assert peaks[1] - peaks[0] < 12 * 2**20


def test_what_litert_cannot_do_is_refused(model: SourceModel) -> None:
    with pytest.raises(ConversionError, match="signed activations"):
        check_recipe(model, Recipe(StaticInt8(activations="uint8")))
    with pytest.raises(ConversionError, match="no groups of 48"):
        check_recipe(model, Recipe(WeightOnly(4, 48)))
    facts = {f: getattr(model, f) for f in model.__dataclass_fields__} | {"quantized": True}
    check_recipe(SourceModel(**facts), Recipe(Float32()))
    with pytest.raises(UnsupportedModelError, match="cannot be quantized"):
        check_recipe(SourceModel(**facts), Recipe(INT8))


def test_groups_need_whole_groups_and_palettes_are_not_known(
    case: tuple[SourceModel, Path, dict[str, NDArray[Any]]], x86: HardwareProfile, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="whole groups of 32"):
        _quantized(case, WeightOnly(4, 32), x86, tmp_path / "g.tflite")
    with pytest.raises(ConversionError, match="LiteRT has no palettized"):
        _quantized(case, Palettized(4), x86, tmp_path / "p.tflite")


def test_equal_bytes(
    case: tuple[SourceModel, Path, dict[str, NDArray[Any]]], x86: HardwareProfile, tmp_path: Path
) -> None:
    how = StaticInt8(activations="int8", method="mse")
    files = [_quantized(case, how, x86, tmp_path / f"{n}.tflite") for n in range(2)]
    for one, other in itertools.pairwise(files):
        assert one.read_bytes() == other.read_bytes()
