"""``aid-edge inspect``: what a model is, and which runtimes can take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from aid_edge.cli.output import Output, emit, json_option, table
from aid_edge.errors import MissingDependencyError, UnknownRuntimeError, UnsupportedModelError
from aid_edge.model import SourceModel
from aid_edge.profiles import load_profile
from device_agent.contract.profile import HardwareProfile
from device_agent.contract.tensors import TensorInfo

SCHEMA = "aid-edge/inspect/v1"
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_SHOWN_OPERATORS = 20


@click.command()
@click.argument("model")
@click.option("--weights", type=_FILE, help="State dict of a PyTorch model.")
@click.option("--model-card", type=_FILE, help="Model card. [default: model.toml beside the model]")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SHAPE",
    help="Sizes of an input, such as image=1x3x224x224 or ids=?x128:INT64; repeatable.",
)
@click.option(
    "--profile", "profiles", multiple=True, help="Say what its runtimes can take; repeatable."
)
@json_option
@click.pass_obj
def command(output: Output, /, as_json: bool, model: str, **options: Any) -> None:
    """Say what MODEL is: framework, inputs, outputs, operators, parameters.

    MODEL is an ONNX (.onnx), Keras (.keras, .h5), torch.export (.pt2), TorchScript or TFLite file,
    a SavedModel folder, or path/to/file.py:factory or module:factory of a PyTorch model. Code runs
    only where it is named like that.
    """
    targets = [load_profile(name)[0] for name in options["profiles"]]
    try:
        from aid_edge.sources.inputs import parse_input  # noqa: PLC0415 -- needs an extra
        from aid_edge.sources.opening import open_source  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise MissingDependencyError("inspecting models", e.name or "?", "convert") from e

    inputs = [parse_input(text) for text in options["inputs"]]
    output.note(f"inspecting {model}")
    found = open_source(
        model, weights=options["weights"], inputs=inputs, card=options["model_card"]
    )
    answers = [_answer(found, profile) for profile in targets]
    emit(SCHEMA, _as_json(found, answers), _as_text(found, answers), as_json=as_json)


def _answer(model: SourceModel, profile: HardwareProfile) -> dict[str, Any]:
    """Return what each runtime of ``profile`` says about ``model``."""
    from aid_edge import registry  # noqa: PLC0415 -- needs an extra

    answers = []
    for runtime in profile.runtimes:
        reasons: list[str] = []
        hint = ""
        try:
            registry.load(runtime.name).check(model, profile)
        except UnsupportedModelError as e:
            reasons, hint = e.reasons, e.hint
        except (UnknownRuntimeError, MissingDependencyError) as e:
            reasons, hint = [str(e)], e.hint
        answers.append(
            {"runtime": runtime.name, "accepted": not reasons, "reasons": reasons, "hint": hint}
        )
    return {"profile": profile.id, "runtimes": answers}


def _as_json(model: SourceModel, answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": {
            "spec": model.spec,
            "name": model.name,
            "version": model.version,
            "framework": model.framework,
            "opset": model.opset or None,
            "inputs": msgspec.to_builtins(model.inputs),
            "outputs": msgspec.to_builtins(model.outputs),
            "parameters": model.parameters,
            "operators": [
                {"type": u.type, "count": u.count, "max_rank": u.max_rank, "first": u.first_node}
                for u in model.uses
            ],
            "batched": model.batched,
            "quantized": model.quantized,
            "notes": list(model.notes),
            "digest": model.digest,
            "card": str(model.card.path) if model.card is not None else None,
        },
        "profiles": answers,
    }


def _as_text(model: SourceModel, answers: list[dict[str, Any]]) -> str:
    framework = f"onnx, opset {model.opset}" if model.framework == "onnx" else model.framework
    card = f"{model.card.path} ({model.card.task})" if model.card is not None else "none"
    lines = [
        f"model       {model.name} {model.version}",
        f"framework   {framework}",
        *(f"input       {_tensor(t)}" for t in model.inputs),
        *(f"output      {_tensor(t)}" for t in model.outputs),
        f"parameters  {model.parameters:,}",
        *([] if model.batched else ["batch       none: a sample is a whole feed"]),
        *(f"note        {note}" for note in model.notes),
        f"card        {card}",
        f"digest      {model.digest}",
        "",
        table(
            ("OPERATOR", "COUNT", "MAX RANK"),
            [(u.type, u.count, u.max_rank or "?") for u in model.uses[:_SHOWN_OPERATORS]],
        ),
    ]
    if len(model.uses) > _SHOWN_OPERATORS:
        lines.append(f"and {len(model.uses) - _SHOWN_OPERATORS} more (--json lists all)")
    for answer in answers:
        lines += ["", answer["profile"]]
        for runtime in answer["runtimes"]:
            lines.append(f"  {runtime['runtime']:14s}{'yes' if runtime['accepted'] else 'no'}")
            lines += [f"    - {reason}" for reason in runtime["reasons"]]
            if runtime["hint"]:
                lines.append(f"    hint: {runtime['hint']}")
    return "\n".join(lines)


def _tensor(info: TensorInfo) -> str:
    sizes = ["any" if size == -1 else str(size) for size in info.shape]
    shape = " x ".join(sizes) or "a single value"
    return f"{info.name}  {info.datatype}  {shape}"
