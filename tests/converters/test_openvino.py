"""OpenVINO: refusals before work, equal and clean bytes, what stays float, and its fault."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from aid_edge import executed, isolate, runner
from aid_edge.converter import Artifact
from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.model import OperatorUse, SourceModel
from aid_edge.profiles import load_profile
from aid_edge.recipe import Float16, Float32, Recipe, StaticInt8, WeightOnly
from aid_edge.runner import ConversionRequest, ConversionResult
from aid_edge.runtimes import open_artifact
from aid_edge.sources.opening import open_source
from converters.openvino import OpenVinoConverter
from device_agent.contract.packed import OPENVINO_MEMBERS, pack, unpack
from device_agent.contract.profile import HardwareProfile, Shapes
from device_agent.contract.tensors import TensorInfo
from tests.support import openvino_steps

pytest.importorskip("openvino", reason="the extra openvino is not installed")

INT8 = StaticInt8(method="nncf", activations="int8", reduce_range=True)
"""With weights that no processor's kernels saturate on, so that figures are the same anywhere."""


@pytest.fixture(scope="module")
def nuc() -> HardwareProfile:
    return load_profile("intel-nuc-11")[0]


@pytest.fixture(scope="module")
def batched(nuc: HardwareProfile) -> HardwareProfile:
    return msgspec.structs.replace(nuc, shapes=Shapes(static=False, max_batch=128))


def _convert(
    model: SourceModel, how: Any, profile: HardwareProfile, images: Any, out: Path
) -> ConversionResult:
    return runner.convert(
        ConversionRequest(model, Recipe(how), "openvino", profile, images, out, calibration=images)
    )


def test_refusals_name_what_and_why(tiny: SourceModel, x86: HardwareProfile) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        OpenVinoConverter().check(tiny, x86)
    assert caught.value.reasons == ["generic-x86_64 has no runtime openvino"]
    uses = (OperatorUse("Loop", 1, 0, "decode"),)
    looped = dataclasses.replace(tiny, uses=uses)
    with pytest.raises(UnsupportedModelError, match="cannot be converted") as caught:
        OpenVinoConverter().check(looped, load_profile("intel-nuc-11")[0])
    assert "operator Loop (1x, first at decode)" in caught.value.reasons[0]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(pack(dict.fromkeys(OPENVINO_MEMBERS, b"garbage")))
    with pytest.raises(ConversionError, match=r"m: OpenVINO [0-9.]+ refuses it"):
        open_artifact(path, "openvino")


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes_and_no_trace_of_the_machine(
    tiny: SourceModel, images: dict[str, NDArray[Any]], nuc: HardwareProfile, tmp_path: Path
) -> None:
    first = _convert(tiny, INT8, nuc, images, tmp_path / "a")
    second = _convert(tiny, INT8, nuc, images, tmp_path / "elsewhere" / "b")
    assert first.digest == second.digest
    assert (first.placement.integer, first.placement.floating) == (3, 0)
    content = first.artifact.read_bytes()
    for trace in (b".onnx", b".py", b"/home", b"site-packages", b"/tmp", str(Path.cwd()).encode()):
        assert trace not in content


@pytest.mark.slow
def test_operators_named_in_the_float_artifact_stay_float(
    tiny: SourceModel, images: dict[str, NDArray[Any]], nuc: HardwareProfile, tmp_path: Path
) -> None:
    floating = _convert(tiny, Float32(), nuc, images, tmp_path / "f")
    xml = unpack(floating.artifact)["model.xml"].decode()
    (linear,) = re.findall(r'name="([^"]+)" type="MatMul"', xml)
    kept = StaticInt8(
        method="percentile", activations="int8", reduce_range=True, keep_float=(linear,)
    )
    mixed = _convert(tiny, kept, nuc, images, tmp_path / "m")
    assert (mixed.placement.integer, mixed.placement.floating) == (2, 1)
    assert mixed.closeness is not None
    assert mixed.closeness.cosine > 0.99
    with pytest.raises(ConversionError, match="no-such-node"):
        _convert(tiny, StaticInt8(keep_float=("no-such-node",)), nuc, images, tmp_path / "n")


@pytest.mark.slow
def test_weights_are_stored_in_fewer_bits(
    tiny: SourceModel, images: dict[str, NDArray[Any]], nuc: HardwareProfile, tmp_path: Path
) -> None:
    for how, stored in ((Float16(), "f16"), (WeightOnly(8), "i8")):
        result = _convert(tiny, how, nuc, images, tmp_path / stored)
        assert f'element_type="{stored}"' in unpack(result.artifact)["model.xml"].decode()
        assert result.closeness is not None
        assert result.closeness.cosine > 0.999


@pytest.mark.slow
def test_smoothed_transformers_that_answer_otherwise_in_batches_are_refused(
    batched: HardwareProfile, tmp_path: Path
) -> None:
    """NNCF's default makes OpenVINO 2026.4 compute garbage; ours does not, and it would be seen."""
    model = open_source(
        "tests.support.tiny_nets:attends", inputs=[TensorInfo("image", "FP32", (-1, 3, 16, 16))]
    )
    draws = np.random.default_rng(0).standard_normal((130, 3, 16, 16))
    images = {"image": draws.astype(np.float32)}
    few = {"image": images["image"][:12]}
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        isolate.run(openvino_steps.smoothed, model, batched, few["image"], Path(folder))
        path = Path(folder, "model.openvino")
        single, many = isolate.run(
            openvino_steps.single_and_many, path, images["image"], executed.LARGE_BATCH
        ).value
        is_wrong = bool(np.abs(single - many).max() > 0.1 * np.abs(single).max())
        try:
            isolate.run(executed.check_in_worker, Artifact(path), "openvino", few, saturates=True)
        except ConversionError as e:
            assert is_wrong
            assert "is another one in batches of" in str(e)  # noqa: PT017 -- only where it is wrong
        else:
            assert not is_wrong, "the fault was there and nobody saw it"
    ours = _convert(model, INT8, batched, few, tmp_path / "ours")
    assert ours.closeness is not None
    assert ours.closeness.batches == (1, 2, 3, executed.LARGE_BATCH)
    assert ours.closeness.cosine > 0.98
    assert ours.placement.integer >= 6
