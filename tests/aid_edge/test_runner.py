"""The runner trusts no converter: it looks at what came out, in a fresh process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from aid_edge import runner
from aid_edge.errors import (
    ConversionError,
    DataError,
    StepCrashedError,
    UnsupportedModelError,
)
from aid_edge.isolate import LOG_TAIL_BYTES, Limits
from aid_edge.model import SourceModel
from aid_edge.recipe import Float32, Recipe, StaticInt8
from aid_edge.runner import ConversionRequest
from aid_edge.sources.opening import open_source
from device_agent.contract.profile import HardwareProfile, read_profile

PROFILE = Path(__file__).resolve().parents[2] / "hardware-profiles" / "generic-x86_64.toml"


@pytest.fixture(scope="module")
def profile() -> HardwareProfile:
    return read_profile(PROFILE)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    matrix = np.arange(8, dtype=np.float32).reshape(4, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(matrix, "w")],
    )
    path = tmp_path_factory.mktemp("source") / "m.onnx"
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return open_source(str(path))


@pytest.fixture
def samples() -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)}


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a converter of ``tests.support.bad_converters``, for worker processes as well."""

    def install(name: str) -> str:
        info = _install(tmp_path, name)
        # Ahead of the real converter of that name.
        monkeypatch.syspath_prepend(str(info.parent))
        return "onnx_runtime"

    return install


def _install(folder: Path, name: str) -> Path:
    info = folder / "path" / "bad-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[aid_edge.converters]\nonnx_runtime = tests.support.bad_converters:{name}\n"
    )
    return info


def _request(
    model: SourceModel, profile: HardwareProfile, samples: Any, out: Path, **more: Any
) -> ConversionRequest:
    return ConversionRequest(
        model, Recipe(Float32()), "onnx_runtime", profile, samples, out, **more
    )


def test_a_good_outcome_is_described(
    plug_in: Any, model: SourceModel, profile: HardwareProfile, samples: Any, tmp_path: Path
) -> None:
    plug_in("GoodConverter")
    told: list[tuple[float, str]] = []
    request = _request(model, profile, samples, tmp_path / "out")
    result = runner.convert(request, on_progress=lambda *news: told.append(news))
    assert result.artifact == tmp_path / "out" / "model.onnx"
    assert result.size_bytes == result.artifact.stat().st_size
    assert result.closeness.max_abs < 1e-5
    assert (result.closeness.n, result.closeness.agreement) == (5, 1.0)
    assert result.placement.floating == 1
    assert result.peak_rss_bytes > 2**20
    assert told[-1] == (1.0, "done")
    found = runner.predict(result.artifact, "onnx_runtime", samples)
    np.testing.assert_allclose(found["y"], runner.source_outputs(model, samples)["y"], atol=1e-5)
    times = runner.benchmark(result.artifact, "onnx_runtime", samples, warmup=2, runs=7)
    assert len(times.latencies_s) == 7
    assert min(times.latencies_s) > 0
    assert times.peak_rss_bytes >= times.idle_rss_bytes > 0
    assert times.load_s > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OutsideConverter", "outside the folder"),
        ("RenamingConverter", "the artifact's outputs are z; the source model's are y"),
        ("NotANumberConverter", "10 of 10 values that are not finite"),
        ("WrongConverter", "does not compute what the source does: smallest cosine -1.0"),
        ("EmptyConverter", "there is no such file"),
        ("GarbageConverter", "ONNX Runtime .* refuses it"),
        ("UntidyConverter", "elsewhere.cc, outside the folder"),
        ("BatchDependentConverter", "output y is another one in batches of 65 than alone"),
        ("CrashingConverter", "was ended by SIGABRT"),
    ],
)
def test_bad_outcomes_are_refused(
    name: str, message: str, plug_in: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    plug_in(name)
    parts = (request.getfixturevalue(n) for n in ("model", "profile", "samples"))
    with pytest.raises(ConversionError, match=message):
        runner.convert(_request(*parts, tmp_path / "out"))


def test_a_source_model_that_computes_nan_is_named(
    model: SourceModel, profile: HardwareProfile, samples: Any, tmp_path: Path
) -> None:
    reference = {"y": np.full((5, 2), np.nan, np.float32)}
    request = _request(model, profile, samples, tmp_path / "out", reference=reference)
    with pytest.raises(ConversionError, match="output y of the source model has 10 of 10 values"):
        runner.convert(request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((5, 3), np.float32)}, r"x has shape \[5, 3\]; wanted \[n, 4\]"),
        ({"x": np.zeros((5, 4))}, "x is float64; wanted float32"),
        ({"z": np.zeros((5, 4), np.float32)}, "has z; wanted x"),
        ({"x": np.zeros((0, 4), np.float32)}, "is empty"),
        ({"x": np.full((2, 4), np.nan, np.float32)}, "not finite"),
        ({"x": np.zeros(4, np.float32)}, r"x has shape \[4\]"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    change: Any, message: str, model: SourceModel, profile: HardwareProfile, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        runner.convert(_request(model, profile, change, tmp_path / "out"))
    with pytest.raises(DataError, match=message):
        runner.source_outputs(model, change)
    assert not (tmp_path / "out").exists()


def test_calibration_data_are_checked_as_well(
    model: SourceModel, profile: HardwareProfile, samples: Any, tmp_path: Path
) -> None:
    request = ConversionRequest(
        model, Recipe(StaticInt8()), "onnx_runtime", profile, samples, tmp_path / "out",
        calibration={"x": np.zeros((5, 9), np.float32)},
    )  # fmt: skip
    with pytest.raises(DataError, match="calibration data: x has shape"):
        runner.convert(request)


def test_frameworks_and_recipes_that_a_converter_lacks(
    plug_in: Any, model: SourceModel, profile: HardwareProfile, samples: Any, tmp_path: Path
) -> None:
    plug_in("GoodConverter")
    request = ConversionRequest(
        model, Recipe(StaticInt8()), "onnx_runtime", profile, samples, tmp_path / "out"
    )
    with pytest.raises(UnsupportedModelError) as caught:
        runner.convert(request)
    assert caught.value.reasons == ["onnx_runtime has no static-int8; it has float32"]


def test_a_folder_in_use_is_left_alone(
    model: SourceModel, profile: HardwareProfile, samples: Any, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ConversionError, match="is not empty"):
        runner.convert(_request(model, profile, samples, tmp_path))
    assert (tmp_path / "precious").read_text() == "x"


def test_converters_that_hang_or_take_all_memory_are_ended_and_others_go_on(
    plug_in: Any, model: SourceModel, profile: HardwareProfile, samples: Any, tmp_path: Path
) -> None:
    plug_in("HangingConverter")
    reference = runner.source_outputs(model, samples)
    request = _request(
        model, profile, samples, tmp_path / "a", reference=reference, limits=Limits(time_s=8)
    )
    with pytest.raises(StepCrashedError, match=r"did not finish in its 8 s and was ended"):
        runner.convert(request)
    _install(tmp_path, "GreedyConverter")
    limits = Limits(memory_bytes=600 * 2**20)
    greedy = replace(request, out=tmp_path / "b", limits=limits)
    with pytest.raises(StepCrashedError, match="needed more than its 600 MiB of memory"):
        runner.convert(greedy)
    _install(tmp_path, "GoodConverter")
    assert runner.convert(replace(request, out=tmp_path / "c", limits=Limits())).size_bytes > 0


def test_what_tools_print_is_bounded(
    plug_in: Any, model: SourceModel, profile: HardwareProfile, samples: Any, tmp_path: Path
) -> None:
    plug_in("ChattyConverter")
    result = runner.convert(_request(model, profile, samples, tmp_path / "out"))
    assert "on and on" in result.log
    assert len(result.log) <= LOG_TAIL_BYTES
