"""TFLite Micro: C sources, arena, refusals, and that what runs there is what LiteRT computes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from aid_edge import runner, runtimes, toolenv
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.recipe import Recipe, StaticInt8
from aid_edge.runner import ConversionRequest, ConversionResult
from aid_edge.runtimes.litert import LiteRtSession
from aid_edge.sources.opening import open_source
from aid_edge.toolenv import ToolMissingError, environments
from converters import litert_flatbuffer, tflite_micro_code, tflite_micro_memory
from device_agent.contract.profile import HardwareProfile, Size, read_profile
from device_agent.contract.tensors import TensorInfo
from tests.support import litert_steps

pytestmark = pytest.mark.slow

PROFILES = Path(__file__).resolve().parents[2] / "hardware-profiles"
INT8 = Recipe(StaticInt8(activations="int8"))


@pytest.fixture(scope="module")
def ethos() -> HardwareProfile:
    return read_profile(PROFILES / "cortex-m55-ethos-u55.toml")[0]


@pytest.fixture(scope="module")
def tools() -> None:
    """The environments of the interpreter and the compiler, or a visible skip."""
    try:
        toolenv.ensure("tflite-micro", insist=True)
        toolenv.ensure("vela", insist=True)
    except ToolMissingError as e:
        pytest.skip(f"{e}. {e.hint}")


@pytest.fixture(scope="module")
def made(
    tiny: SourceModel,
    images: dict[str, NDArray[Any]],
    ethos: HardwareProfile,
    tools: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> ConversionResult:
    out = tmp_path_factory.mktemp("micro")
    return runner.convert(
        ConversionRequest(tiny, INT8, "tflite_micro", ethos, images, out, calibration=images)
    )


def _run(path: Path, runtime: str, images: NDArray[Any]) -> NDArray[Any]:
    session = runtimes.open_artifact(path, runtime)
    return np.concatenate([session.run({"image": x[None]})["output"] for x in images])


def _moved(made: ConversionResult, images: dict[str, NDArray[Any]]) -> NDArray[Any]:
    return made.to_artifact(images)["image"]


def test_arena_and_estimates_say_where_they_come_from(made: ConversionResult) -> None:
    figures = {f.what: f for f in made.figures}
    arena = figures["arena_bytes"]
    assert arena.where == "host"
    assert toolenv.version("tflite-micro") in arena.how
    assert 1024 < arena.value < 64 * 2**10
    for what in ("ethos_u_cycles", "ethos_u_npu_cycles", "ethos_u_sram", "ethos_u_inference"):
        assert figures[what].where == "estimate"
        assert "ethos-u-vela 5.2.0" in figures[what].how
        assert figures[what].value > 0
    assert figures["ethos_u_inference"].value == figures["ethos_u_cycles"].value / 500e6
    assert made.runtime_version == toolenv.version("tflite-micro")
    assert made.tools["vela"] == "5.2.0"
    assert made.closeness is not None
    assert made.closeness.cosine > 0.99


def test_the_arena_is_the_smallest(made: ConversionResult) -> None:
    found = int({f.what: f for f in made.figures}["arena_bytes"].value)
    serve = [toolenv.script("micro"), "arena", str(made.artifact)]
    enough = toolenv.run("tflite-micro", [*serve, str(found)])
    assert f'"arena_bytes": {found}' in enough.log
    less = toolenv.run("tflite-micro", [*serve, str(found - 16)])
    assert '"error"' in less.log


def test_sources_hold_the_model_and_its_operators(made: ConversionResult, tmp_path: Path) -> None:
    assert set(made.extras) == {"model.h", "model.cc", "model_ops.h", "model_vela.tflite"}
    text = made.extras["model.cc"].read_text()
    data = bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2}),", text))
    assert data == made.artifact.read_bytes()
    header = made.extras["model.h"].read_text()
    assert f"kModelBytes = {len(data)};" in header
    ops = made.extras["model_ops.h"].read_text()
    found, _ = litert_flatbuffer.read(made.artifact)
    used = {op for op, _, _ in litert_flatbuffer.operators(found)}
    assert used == {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MEAN", "TRANSPOSE"}
    assert f"kModelOps = {len(used)};" in ops
    assert "resolver.AddDepthwiseConv2D()" in ops
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("no C++ compiler here")
    micro = tmp_path / "tensorflow" / "lite" / "micro"
    micro.mkdir(parents=True)
    methods = "".join(f"int {need.method}() {{ return 0; }}\n"
                      for need in tflite_micro_code.needs(found))  # fmt: skip
    (micro / "micro_mutable_op_resolver.h").write_text(
        "#pragma once\nusing TfLiteStatus = int;\nconstexpr int kTfLiteOk = 0;\n"
        "#define TF_LITE_ENSURE_STATUS(x) do { if ((x) != kTfLiteOk) return 1; } while (0)\n"
        "namespace tflite {\ntemplate <unsigned N> struct MicroMutableOpResolver {\n"
        f"{methods} }};\n}}\n"
    )
    (tmp_path / "main.cc").write_text(
        '#include "model.h"\n#include "model_ops.h"\nint main() {\n'
        "  tflite::MicroMutableOpResolver<aid_edge::kModelOps> resolver;\n"
        "  return aid_edge::AddModelOps(resolver) + (aid_edge::kModel[4] != 'T');\n}\n"
    )
    program = tmp_path / "program"
    sources = [str(tmp_path / "main.cc"), str(made.extras["model.cc"])]
    folders = ["-I", str(made.artifact.parent), "-I", str(tmp_path)]
    flags = ["-std=c++17", "-Wall", "-Werror", *folders, "-o", str(program)]
    subprocess.run([compiler, *flags, *sources], check=True)
    assert subprocess.run([str(program)], check=False).returncode == 0


def test_external_weights_are_garbage_there_and_ours_are_inside(
    made: ConversionResult, images: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    inputs = _moved(made, images)
    want = _run(made.artifact, "litert", inputs)
    outside = tmp_path / "outside.tflite"
    shutil.copyfile(made.artifact, outside)
    litert_steps.externalize(outside)
    # LiteRT reads them, so nobody notices.
    assert np.array_equal(_run(outside, "litert", inputs), want)
    try:
        garbage = _run(outside, "tflite_micro", inputs)
    except ConversionError:
        garbage = np.zeros_like(want)
    assert np.abs(garbage - want).max() > 0.1 * np.abs(want).max()
    ours = _run(made.artifact, "tflite_micro", inputs)
    assert np.mean(ours.argmax(1) == want.argmax(1)) == 1.0
    cosine = (ours * want).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > 0.999


def test_too_big_for_the_memory_names_the_tensor(
    made: ConversionResult, ethos: HardwareProfile
) -> None:
    found, _ = litert_flatbuffer.read(made.artifact)
    arena = int({f.what: f for f in made.figures}["arena_bytes"].value)
    tflite_micro_memory.check_fits(made.artifact, found, arena, ethos)
    memory = msgspec.structs.replace(ethos.memory, models=Size(2048), flash=Size(1024))
    small = msgspec.structs.replace(ethos, memory=memory)
    with pytest.raises(UnsupportedModelError, match="too big") as caught:
        tflite_micro_memory.check_fits(made.artifact, found, arena, small)
    assert re.search(r"tensor t\d+ \[1, 8, 8, 16\] of 1024 bytes", caught.value.reasons[0])
    assert "output of" in caught.value.reasons[0]
    assert re.search(r"weights t\d+ \[\d+.*\] of \d+ bytes", caught.value.reasons[1])


def test_the_peak_is_what_is_alive_at_once(made: ConversionResult) -> None:
    found, _ = litert_flatbuffer.read(made.artifact)
    # Two maps of 8 x 8 x 16 bytes beside each other.
    assert tflite_micro_memory.peak(found).size_bytes == 2048


def test_without_the_environment_figures_are_estimates(
    made: ConversionResult,
    images: dict[str, NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    inputs = _moved(made, images)[:3]
    there = _run(made.artifact, "tflite_micro", inputs)
    found, _ = litert_flatbuffer.read(made.artifact)
    monkeypatch.setenv(environments.FOLDER, str(tmp_path))
    for name in ("tflite-micro", "vela"):
        # As after an attempt without a network.
        (tmp_path / f"{name}.failed").write_text("no network")
    figure, note = tflite_micro_memory.arena(made.artifact, found)
    assert (figure.where, figure.value) == ("estimate", 2048)
    assert "no network" in note
    assert runtimes.version("tflite_micro").endswith("+litert.reference")
    stood_in = _run(made.artifact, "tflite_micro", inputs)
    assert np.abs(stood_in - there).max() < 0.02
    accelerator = read_profile(PROFILES / "cortex-m55-ethos-u55.toml")[0].accelerator
    assert accelerator is not None
    figures, compiled, note = tflite_micro_memory.compile_for(accelerator, made.artifact)
    assert (figures, compiled) == ((), None)
    assert "no network" in note


def test_an_operator_that_is_not_there_is_named(
    ethos: HardwareProfile, images: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    inputs = [TensorInfo("image", "FP32", (-1, 3, 8, 8))]
    model = open_source("tests.support.tiny_nets:with_gelu", inputs=inputs)
    with pytest.raises(UnsupportedModelError, match="cannot run in TFLite Micro") as caught:
        runner.convert(
            ConversionRequest(
                model, INT8, "tflite_micro", ethos, images, tmp_path / "a", calibration=images
            )
        )
    assert caught.value.reasons == [
        "operator GELU (1x, first writes output) is not in TFLite Micro; litert has it"
    ]


def test_a_broken_model_fails_with_what_the_interpreter_said(
    made: ConversionResult, tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aid_edge.runtimes.tflite_micro.ARENA_BYTES", 1024)
    with pytest.raises(ConversionError, match=r"TFLite Micro .* fails"):
        runtimes.open_artifact(made.artifact, "tflite_micro")


def test_old_devices_answer_the_same(
    made: ConversionResult, images: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    try:
        toolenv.ensure("tflite-runtime", insist=True)
    except ToolMissingError as e:
        pytest.skip(f"{e}. {e.hint}")
    session = LiteRtSession(made.artifact, 1, exact=True)
    detail = session.details[0]["image"]
    from aid_edge.runtimes.litert import dequantized, quantized

    inputs = _moved(made, images)
    np.savez(tmp_path / "in.npz", **{"0": quantized(inputs, detail)})
    script = toolenv.script("old_litert")
    files = [str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    toolenv.run("tflite-runtime", [script, str(made.artifact), *files])
    found = dequantized(np.load(tmp_path / "out.npz")["0"], session.details[1]["output"])
    want = _run(made.artifact, "litert", inputs)
    step = session.details[1]["output"]["quantization"][0]
    assert np.mean(found.argmax(1) == want.argmax(1)) >= 0.9
    assert np.abs(found - want).max() <= 2.01 * step
