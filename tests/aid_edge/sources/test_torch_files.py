"""``.pt2`` and TorchScript files: opened without running what is foreign in them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aid_edge.errors import ConversionError, SourceError
from aid_edge.sources import torch_archive, torch_source, torchscript_source
from aid_edge.sources.inputs import parse_input
from aid_edge.sources.inspection import SourceRequest
from aid_edge.sources.opening import open_source
from aid_edge.sources.recognition import recognize
from aid_edge.sources.torch_source import Flat
from device_agent.contract.tensors import TensorInfo
from tests.support import tiny_nets
from tests.support.source_files import tiny_pt2, tiny_torchscript

IMAGE = TensorInfo("image", "FP32", (-1, 3, 8, 8))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pt2(tmp_path_factory.mktemp("pt2") / "tiny.pt2")


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).random((n, 3, 8, 8), np.float32)


def answers(n: int) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = tiny_nets.tiny().eval()(torch.from_numpy(images(n))).numpy()
    return found


# --- .pt2 ------------------------------------------------------------------------------------


def test_an_exported_program_says_what_it_takes(archive: Path) -> None:
    model = open_source(str(archive))
    assert model.framework == "torch"
    assert model.inputs == (IMAGE,)
    assert model.outputs == (TensorInfo("output", "FP32", (-1, 5)),)
    assert model.operators["depthwise_conv2d"] == 1
    assert model.parameters == sum(p.numel() for p in tiny_nets.tiny().parameters())
    assert model.has_dynamic_batch


def test_an_exported_program_runs_and_is_exported_again(archive: Path, tmp_path: Path) -> None:
    request = SourceRequest(str(archive), None, (parse_input("picture=?x3x8x8"),))
    parts = list(torch_source.run(request, {"picture": images(3)}, [slice(0, 2), slice(2, 3)]))
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), answers(3), atol=1e-6)
    module = Flat(torch_source.load(request)).eval()
    torch_archive.save(module, [IMAGE], tmp_path / "again.pt2")
    again = torch_archive.load(tmp_path / "again.pt2")
    (found,) = again(torch.from_numpy(images(3)))
    np.testing.assert_allclose(found.numpy(), answers(3), atol=1e-6)


def test_what_is_saved_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    torch_archive.save(tiny_nets.tiny().eval(), [IMAGE], tmp_path / "m.pt2")
    data = (tmp_path / "m.pt2").read_bytes()
    assert str(Path(tiny_nets.__file__).parent).encode() not in data
    assert b"tiny_nets.py" not in data


def test_a_program_that_torch_cannot_follow_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="cannot follow"):
        torch_archive.save(tiny_nets.depends_on_values(), [IMAGE], tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_sizes_that_a_program_does_not_take(archive: Path) -> None:
    request = SourceRequest(str(archive), None, (parse_input("image=1x3x9x8"),))
    with pytest.raises(SourceError, match="fixed size 8 in axis 2, declared 9"):
        torch_source.inspect(request)


class _Counts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x + self.calls


def test_a_factory_that_gives_other_weights_each_time() -> None:
    inputs = (parse_input("image=?x3x8x8"),)
    factory = "tests.support.tiny_nets:unseeded"
    with pytest.raises(SourceError, match="gives other weights each time") as caught:
        torch_source.inspect(SourceRequest(factory, None, inputs, ()))
    assert "--weights" in caught.value.hint


def test_a_program_with_a_state_inside(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(_Counts(), (torch.zeros(2, 3),)), tmp_path / "m.pt2")
    with pytest.raises(SourceError, match="changes its own weights or buffers when it runs"):
        torch_source.inspect(SourceRequest(str(tmp_path / "m.pt2")))


def rewritten(source: Path, to: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Copy an archive with its entries changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return to


def in_json(edit: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if "/models/" not in name and not name.startswith("models/"):
            return data
        table = json.loads(data)
        edit(table)
        return json.dumps(table).encode()

    return change


def first_node(table: Any, target: str) -> None:
    table["graph_module"]["graph"]["nodes"][0]["target"] = target


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system", "torch.hub.load", "torch.ops.aten.from_file.default",
        "_operator.attrgetter", "_operator.call", "#mine:op", "torch.ops.mine.op.default",
    ],
)  # fmt: skip
def test_programs_that_call_what_is_no_operator(archive: Path, tmp_path: Path, target: str) -> None:
    evil = rewritten(archive, tmp_path / "m.pt2", in_json(lambda t: first_node(t, target)))
    with pytest.raises(SourceError, match="is no operator of PyTorch") as caught:
        torch_archive.load(evil)
    assert target in str(caught.value)


def test_expressions_are_not_evaluated(archive: Path, tmp_path: Path) -> None:
    trace = tmp_path / "code-ran"
    code = f"__import__('os').mkdir('{trace}')"

    def change(name: str, data: bytes) -> bytes:
        text = data.decode() if "/models/" in name else ""
        assert "expr_str" in text or not text
        return json.dumps(_replaced(json.loads(text), code)).encode() if text else data

    with pytest.raises(SourceError, match="not one of sizes"):
        torch_archive.load(rewritten(archive, tmp_path / "m.pt2", change))
    assert not trace.exists()


def _replaced(value: Any, code: str) -> Any:
    if isinstance(value, dict):
        return {k: code if k == "expr_str" else _replaced(v, code) for k, v in value.items()}
    return [_replaced(v, code) for v in value] if isinstance(value, list) else value


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_pickles_in_a_program_are_not_opened(archive: Path, tmp_path: Path) -> None:
    trace = tmp_path / "code-ran"

    def as_sample(name: str, data: bytes) -> bytes:
        return pickle.dumps(Evil(trace)) if "sample_inputs" in name else data

    def as_weight(name: str, data: bytes) -> bytes:
        return data.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
            b'"use_pickle":false', b'"use_pickle":true'
        )

    for change, what in ((as_sample, "example inputs"), (as_weight, "tensors")):
        with pytest.raises(SourceError, match=f"holds pickled {what}") as caught:
            torch_archive.load(rewritten(archive, tmp_path / "m.pt2", change))
        assert "could run code" in str(caught.value)
    assert not trace.exists()


def test_compiled_code_and_damage_in_a_program(archive: Path, tmp_path: Path) -> None:
    compiled = tmp_path / "compiled.pt2"
    compiled.write_bytes(archive.read_bytes())
    with zipfile.ZipFile(compiled, "a") as file:
        file.writestr("tiny/data/aotinductor/model/m.so", b"\x7fELF")
    with pytest.raises(SourceError, match="compiled code"):
        torch_archive.load(compiled)
    for data, message in (
        (archive.read_bytes()[:4000], "not a torch.export archive, or is cut short"),
        (b"no archive at all", "not a torch.export archive"),
        (b"", "is empty"),
    ):
        (tmp_path / "broken.pt2").write_bytes(data)
        with pytest.raises(SourceError, match=message):
            torch_archive.load(tmp_path / "broken.pt2")
    with pytest.raises(SourceError, match="is damaged"):
        torch_archive.load(
            rewritten(archive, tmp_path / "m.pt2", lambda n, d: b"{" if n.endswith("l.json") else d)
        )


@pytest.mark.parametrize("kind", ["pt2", "torchscript", "weights"])
def test_weights_that_do_not_match_their_checksum_are_refused(tmp_path: Path, kind: str) -> None:
    # torch reads them without a look at it: the model would be another one.
    inputs = (parse_input("image=?x3x8x8"),)
    if kind == "pt2":
        path, part = tiny_pt2(tmp_path / "m.pt2"), "data/weights/weight_0"
    elif kind == "torchscript":
        path, part = tiny_torchscript(tmp_path / "m.pt"), "data/0"
    else:
        path, part = tmp_path / "w.pth", "data/0"
        torch.save(tiny_nets.tiny().state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        entry = next(i for i in archive.infolist() if i.filename.endswith(part))
        value = archive.read(entry)
    whole = path.read_bytes()
    at = whole.index(value) + 3
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
    source = torchscript_source if kind == "torchscript" else torch_source
    request = SourceRequest(str(path), None, inputs, ())
    if kind == "weights":
        request = SourceRequest("tests.support.tiny_nets:tiny", path, inputs, ())
    with pytest.raises(SourceError, match=rf"is damaged: .*{part} does not match its checksum"):
        source.inspect(request)


def test_any_damage_of_a_weights_file_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(tiny_nets.tiny().state_dict(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    request = SourceRequest(
        "tests.support.tiny_nets:tiny", path, (parse_input("image=?x3x8x8"),), ()
    )
    for at in range(0, 1200, 40):
        path.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
        with contextlib.suppress(SourceError):  # and no other
            torch_source.load(request)


# --- TorchScript -----------------------------------------------------------------------------


def test_torchscript_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("m.pt", "m.jit", "m.pts", "m.pth"):
        assert recognize(str(tiny_torchscript(tmp_path / name))) == "torchscript"
    torch.save(tiny_nets.tiny().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(SourceError, match="holds weights"):
        recognize(str(tmp_path / "weights.pt"))
    with pytest.raises(SourceError, match=r"is a torch\.export archive") as caught:
        recognize(str(tiny_pt2(tmp_path / "program.pt")))
    assert "program.pt2" in caught.value.hint


def test_torchscript_is_inspected_and_run(tmp_path: Path) -> None:
    path = tiny_torchscript(tmp_path / "m.pt")
    request = SourceRequest(str(path), None, (parse_input("image=?x3x8x8"),), ("scores",))
    found = torchscript_source.inspect(request)
    assert found.inputs == (IMAGE,)
    assert found.outputs == (TensorInfo("scores", "FP32", (-1, 5)),)
    uses = {use.type: use.count for use in found.uses}
    assert uses["conv2d"] == 1
    assert uses["depthwise_conv2d"] == 1
    parts = list(torchscript_source.run(request, {"image": images(3)}, [slice(0, 3)]))
    np.testing.assert_allclose(parts[0][0], answers(3), atol=1e-6)


class _TakesInt(torch.nn.Module):
    def forward(self, x: torch.Tensor, rate: int) -> torch.Tensor:
        return x * rate


class _Random(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(3)


class _ReadsFile(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/hostname", size=3)


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (tiny_nets.TinyNet, [], "does not say the sizes"),
        (tiny_nets.TinyNet, ["a=?x3x8x8", "b=?x3"], "takes 1 inputs .*2 are declared"),
        (tiny_nets.TinyNet, ["image=?x4x8x8"], "the model fails on inputs"),
        (_TakesInt, ["x=?x3"], "rate: int, which is no tensor"),
        (_Random, ["x=?x3"], "another answer the second time"),
        (_ReadsFile, ["x=?x3"], "aten::from_file, which reaches outside"),
    ],
)
def test_torchscript_that_does_not_do(
    tmp_path: Path, module: type[torch.nn.Module], inputs: list[str], message: str
) -> None:
    path = tiny_torchscript(tmp_path / "m.pt", module())
    request = SourceRequest(str(path), None, tuple(map(parse_input, inputs)))
    with pytest.raises(SourceError, match=message):
        torchscript_source.inspect(request)


def test_torchscript_that_is_cut_short(tmp_path: Path) -> None:
    path = tiny_torchscript(tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SourceError, match="not a TorchScript archive, or is cut short"):
        torchscript_source.load(SourceRequest(str(path)))
