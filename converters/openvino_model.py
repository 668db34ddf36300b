"""OpenVINO models: read from ONNX, named as declared, written into one file.

Heavy: imported in worker processes only.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import openvino

from aid_edge.errors import ConversionError, UnsupportedModelError
from aid_edge.isolate import progress
from aid_edge.model import SourceModel
from aid_edge.recipe import Float16, Recipe
from device_agent.contract.packed import OPENVINO_MEMBERS, pack

_UNSUPPORTED = re.compile(r"(?:No conversion rule found for operations|unsupported).*?:\s*(.+)")

_MADE_UP = re.compile(r"([A-Z][A-Za-z0-9]*)_\d+(?=$|[/_])")


def read(path: Path, source: SourceModel) -> Any:
    """Return the ONNX file at ``path`` as an OpenVINO model with the names of ``source``.

    Raises:
        UnsupportedModelError: It holds operators that OpenVINO lacks; names them.
        ConversionError: OpenVINO cannot read it.
    """
    progress(0.5, "read in OpenVINO")
    try:
        model = openvino.convert_model(str(path))
    except Exception as e:  # the front end raises whatever its many parts raise
        text = " ".join(line.strip() for line in str(e).splitlines() if line.strip())
        if found := _UNSUPPORTED.search(text):
            raise UnsupportedModelError(
                f"{source.spec} cannot be converted to openvino",
                [f"OpenVINO has no {found[1][:200]}"],
                hint="onnx_runtime has every operator of ONNX; or change the model there.",
            ) from e
        raise ConversionError(f"{source.spec}: OpenVINO cannot read it: {text[:300]}") from e
    for ports, infos in ((model.inputs, source.inputs), (model.outputs, source.outputs)):
        for port, info in zip(ports, infos, strict=True):
            port.get_tensor().set_names({info.name})
    name_operators(model)
    return model


def name_operators(model: Any) -> None:
    """Give operators without a name of their own one that is the same every time, in place.

    OpenVINO makes names up from a counter that its threads share.
    """
    operators = model.get_ordered_ops()
    taken = {operator.get_friendly_name() for operator in operators}
    for number, operator in enumerate(operators):
        name = operator.get_friendly_name()
        if made_up := _MADE_UP.match(name):
            new = f"{made_up[1]}.{number}{name[made_up.end() :]}"
            while new in taken:
                new += "x"
            taken.add(new)
            operator.set_friendly_name(new)


def write(model: Any, recipe: Recipe, to: Path) -> None:
    """Write ``model`` to ``to``, packed, without a trace of the machine it was made on."""
    progress(0.95, "write")
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        xml = Path(scratch, "model.xml")
        half = isinstance(recipe.quantize, Float16)
        name_operators(model)
        openvino.save_model(model, str(xml), compress_to_fp16=half)
        tree = ET.parse(xml)  # noqa: S314 -- OpenVINO has just written it
        root = tree.getroot()
        # How it was made: paths, versions, options. Nothing of it is needed to run.
        for facts in root.findall("rt_info"):
            root.remove(facts)
        root.set("name", "model")
        for element in root.iter():
            element.text = (element.text or "").strip()
            element.tail = None
        text = ET.tostring(root, encoding="utf-8", xml_declaration=True)
        members = (text, xml.with_suffix(".bin").read_bytes())
        to.write_bytes(pack(dict(zip(OPENVINO_MEMBERS, members, strict=True))))
