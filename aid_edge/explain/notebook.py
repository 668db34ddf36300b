"""Explaining one answer from Python: any artifact, source model or function alike.

from aid_edge.explain import explain
explain("out/raspberry-pi-4/release", sample, against="model.onnx", labels=names)
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge import runner
from aid_edge.catalogue.draft import FILE_NAME, read_draft
from aid_edge.errors import DataError, UsageError
from aid_edge.evaluate.modality import detect
from aid_edge.evaluate.robustness import Predict
from aid_edge.explain.evidence import Evidence, Question, ask, in_words, log_scores
from aid_edge.explain.pictures import heat, picture
from aid_edge.model import SourceModel
from aid_edge.sources.opening import open_source
from device_agent.contract.tensors import TensorInfo

RUNTIME_OF_SUFFIX = {
    ".onnx": "onnx_runtime", ".tflite": "litert", ".pte": "executorch", ".xml": "openvino",
}  # fmt: skip
BATCH = 16
SHOWN_PARTS = 8

Array = npt.NDArray[Any]
Model = str | Path | SourceModel | Callable[[dict[str, Array]], Sequence[Array]]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a sample got its answer; in a notebook it shows itself.

    Attributes:
        evidence: Per part and model; see :mod:`aid_edge.explain.evidence`.
        answers: Names of the answer and of the one that it is weighed against; empty where
            outputs are no classes.
    """

    evidence: Evidence
    answers: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.evidence.parts)

    @property
    def summary(self) -> str:
        """What it says, in a sentence or two."""
        found = self.evidence
        flipped = len(self.models) > 1 and self.answers and found.margins[self.models[1]] <= 0
        if flipped:
            first, other = self.models[:2]
            return in_words(found, first, other, (self.answers[0], self.answers[1]))
        name = self.models[0]
        strongest = found.strongest(name)
        where = "no part" if strongest is None else found.hidden.names[strongest]
        if not self.answers:
            return f"The output of {name} rests most on: {where}."
        return f"For {self.answers[0]} rather than {self.answers[1]} speaks most: {where}."

    def _repr_html_(self) -> str:
        """Show pictures and the strongest parts; no script, no style from outside."""
        found = self.evidence
        largest = max((float(np.abs(p).max()) for p in found.parts.values() if len(p)), default=0.0)
        base = picture(found.question.inputs[found.modality.input][0], found.modality, gray=True)
        blocks = []
        for name in self.models if base else ():
            shade = heat(found.parts[name], found.hidden.grid, largest)
            stack = "position:absolute;inset:0;width:100%;height:100%"
            blocks.append(
                '<figure style="margin:0 1em 0 0;display:inline-block">'
                '<div style="position:relative;width:12em;height:12em">'
                f'<img alt="the input" src="{base}" style="{stack};image-rendering:pixelated">'
                f'<img alt="evidence in {html.escape(name)}" src="{shade}" style="{stack}"></div>'
                f"<figcaption>{html.escape(name)}</figcaption></figure>"
            )
        return (
            # An image's map says where; its many cells of one name would say nothing more.
            f"<div><p>{html.escape(self.summary)}</p>{''.join(blocks)}"
            f"{'' if found.modality.kind == 'image' else self._table()}"
            f"<p><small>{html.escape(found.hidden.method)}; {found.evaluations} runs of each "
            "model. Blue and positive: for the first answer; orange and negative: for the other."
            "</small></p></div>"
        )

    def _table(self) -> str:
        found = self.evidence
        strength = np.max([np.abs(p) for p in found.parts.values()], axis=0)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.models)
        rows = "".join(
            f"<tr><th>{html.escape(found.hidden.names[i])}</th>"
            + "".join(f"<td>{found.parts[name][i]:+.3f}</td>" for name in self.models)
            + "</tr>"
            for i in np.argsort(-strength, kind="stable")[:SHOWN_PARTS]
        )
        return f"<table><thead><tr><th>part</th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def explain(
    model: Model,
    sample: Array | Mapping[str, Array],
    *,
    against: Model | None = None,
    background: Mapping[str, Array] | None = None,
    labels: Sequence[str] = (),
    masks: int = 0,
    seed: int = 0,
) -> Explanation:
    """Return why ``model`` answers ``sample`` as it does, by hiding parts of the sample.

    Works on whatever can be run: no gradients are needed, so that an int8 artifact is explained
    by the same means as its source. With ``against``, both see the same inputs, and the answer of
    ``against`` is weighed against that of ``model``: why did it flip?

    Args:
        model: A release folder, an artifact, a source model (path or opened), or a function from
            inputs [n, ...] by name to a sequence of outputs [n, ...].
        sample: One input, with or without the batch axis; a mapping where there are several.
        against: The model that it was made from.
        background: Real samples [n, ...] by input name, to know the range of values and their
            mean, which stands for what is hidden. The sample itself when None.
        labels: Class names.
        masks: Random masks for images (RISE), such as 500; 0 hides squares in turn.
        seed: Of random masks.

    Raises:
        DataError: The sample does not fit, or is no image, series, sentence or row of a table.
        UsageError: ``model`` is none of the above.
        HostError: A model cannot be opened or run.
    """
    opened = {"model": _opened(model)}
    if against is not None:
        # The source comes first: the first answer is its own.
        opened = {"source": _opened(against), "candidate": _opened(model)}
    inputs = _one(sample, background)
    modality = detect(inputs if background is None else dict(background))
    if modality is None:
        raise DataError(
            "nothing is known about hiding parts of such an input",
            hint="Images, series, tokens and rows of a table can be explained.",
        )
    answers = {name: [np.asarray(o) for o in predict(inputs)] for name, predict in opened.items()}
    answer, other = _answers(answers)
    (found,) = ask(
        [Question("sample", inputs, answer, other)], modality, opened, masks=masks, seed=seed
    )
    return Explanation(found, _names((answer, other), labels))


def _answers(outputs: Mapping[str, Sequence[Array]]) -> tuple[int | None, int | None]:
    """Return the classes to weigh: of the first model, and what the last says or comes next."""
    first, last = next(iter(outputs.values()))[0], list(outputs.values())[-1][0]
    if first[0].size < 2 or first.dtype.kind != "f":
        return None, None
    order = np.argsort(-log_scores(first)[0], kind="stable")
    said = int(log_scores(last)[0].argmax())
    return int(order[0]), said if said != order[0] else int(order[1])


def _names(classes: tuple[int | None, int | None], labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(labels[c] if c < len(labels) else f"class {c}" for c in classes if c is not None)


def _one(
    sample: Array | Mapping[str, Array], background: Mapping[str, Array] | None
) -> dict[str, Array]:
    if isinstance(sample, Mapping):
        given = {name: np.asarray(a) for name, a in sample.items()}
    else:
        given = {next(iter(background)) if background else "input": np.asarray(sample)}
    for name, array in given.items():
        known = None if background is None else background.get(name)
        rank = array.ndim if known is None else known.ndim
        if array.ndim == rank - 1:
            given[name] = array[None]
        elif array.ndim != rank or len(array) != 1:
            raise DataError(
                f"sample {name!r} has shape {list(array.shape)}; expected one sample",
                hint="Give [1, ...], or background to tell samples from batches.",
            )
    return given


def _opened(model: Model) -> Predict:
    if callable(model):
        return model
    if isinstance(model, SourceModel):
        return partial(_of_source, model)
    path = Path(model)
    if (path / FILE_NAME).is_file():
        return _of_release(path)
    if path.suffix == ".tflite" or (path.suffix in RUNTIME_OF_SUFFIX and path.is_file()):
        return partial(_of_artifact, path, RUNTIME_OF_SUFFIX[path.suffix])
    if path.is_dir() and not (path / "saved_model.pb").exists():
        raise UsageError(
            f"{path}: is no release folder",
            hint="Name <out>/<profile>/release, an artifact, or a source model.",
        )
    return partial(_of_source, open_source(str(model)))


def _of_release(folder: Path) -> Predict:
    draft = read_draft(folder)
    file = draft.file("model")
    if file is None:
        raise UsageError(f"{folder}: the release has no model")
    run = partial(_of_artifact, folder / file.name, draft.runtime.name)
    return lambda inputs: run(_fit(inputs, draft.inputs))


def _of_artifact(path: Path, runtime: str, inputs: dict[str, Array]) -> list[Array]:
    return list(runner.predict(path, runtime, inputs, batch=BATCH).values())


def _of_source(model: SourceModel, inputs: dict[str, Array]) -> list[Array]:
    fitting = _fit(inputs, model.inputs)
    return list(runner.source_outputs(model, fitting, batch=BATCH).values())


def _fit(inputs: dict[str, Array], tensors: Sequence[TensorInfo]) -> dict[str, Array]:
    """Return inputs under the model's own names, with its images in the model's own layout."""
    if len(inputs) == len(tensors) == 1:
        inputs = {tensors[0].name: next(iter(inputs.values()))}
    fitting = dict(inputs)
    for tensor in tensors:
        array = inputs.get(tensor.name)
        if array is None or array.ndim != len(tensor.shape) or _fits(array, tensor):
            continue
        for axes in _LAYOUTS:
            if array.ndim == len(axes) and _fits(turned := array.transpose(axes), tensor):
                fitting[tensor.name] = np.ascontiguousarray(turned)
    return fitting


_LAYOUTS = ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1))


def _fits(array: Array, tensor: TensorInfo) -> bool:
    return all(
        want in {-1, have} for want, have in zip(tensor.shape[1:], array.shape[1:], strict=True)
    )
