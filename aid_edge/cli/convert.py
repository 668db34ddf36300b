"""``aid-edge convert``: compress and export a model for hardware profiles."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aid_edge.cli.output import Output, emit, json_option, table
from aid_edge.errors import GateMissedError, MissingDependencyError

if TYPE_CHECKING:
    from aid_edge.pipeline.request import ConvertResult, Progress

SCHEMA = "aid-edge/convert/v1"
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("source")
@click.option(
    "--profile", "profiles", multiple=True, required=True, help="Hardware profile; repeatable."
)
@click.option("--out", type=_FOLDER, required=True, help="Folder for report and releases.")
@click.option("--weights", type=_FILE, help="State dict of a PyTorch model.")
@click.option("--model-card", type=_FILE, help="Model card. [default: model.toml beside the model]")
@click.option(
    "--calibration", metavar="DATA", help="Inputs to calibrate int8 on; no labels needed."
)
@click.option("--evaluate", metavar="DATA", help="Labelled data to measure accuracy on.")
@click.option(
    "--fidelity", metavar="DATA", help="Inputs to compare outputs on. [default: --evaluate's]"
)
@click.option("--train", metavar="DATA", help="Labelled data to fine-tune on.")
@click.option(
    "--recovery-minutes", type=click.FloatRange(min=0), default=0.0, show_default=True,
    help="Training per pruned model, by --train or else distillation; 0 prunes nothing.",
)  # fmt: skip
@click.option(
    "--metric", help="What decides: f1, rmse, top-5, ... or module:function. [default: top-1]"
)
@click.option("--runtime", "runtimes", multiple=True, help="Only this runtime; repeatable.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=SHAPE",
    help="Size of an input, such as image=1x3x224x224; repeatable.",
)  # fmt: skip
@click.option("--preprocess", type=_FILE, help="Preprocessing steps. [default: the card's]")
@click.option("--name", help="Name of the releases. [default: the card's]")
@click.option("--version", help="Version of the releases. [default: the card's]")
@click.option("--cache", type=_FOLDER, help="Step cache. [default: $XDG_CACHE_HOME/aid-edge/steps]")
@click.option(
    "--jobs", type=click.IntRange(min=1),
    help="Conversions at once; timing always runs alone. [default: 2, or 1 on one core]",
)  # fmt: skip
@click.option(
    "--search", type=click.Choice(["quick", "full"]), default="quick", show_default=True,
    help="quick: what pays nearly always; full: all that the converters can do.",
)  # fmt: skip
@click.option("--time-budget", metavar="TIME", help="End the search after it, such as 10m.")
@click.option(
    "--executor", metavar="ADDRESS", help="Cluster: dask://HOST:PORT or ray://HOST:PORT, or local."
)
@click.option(
    "--allow-overlap", is_flag=True, help="Judge also on data that were calibrated on, and say so."
)
@click.option(
    "--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True,
    help="Of all random numbers.",
)  # fmt: skip
@json_option
@click.pass_obj
def command(output: Output, /, as_json: bool, **options: Any) -> None:
    """Compress and export SOURCE for hardware profiles, and say honestly what was lost.

    SOURCE is an ONNX (.onnx), Keras (.keras, .h5, SavedModel), PyTorch (.pt2, TorchScript) or
    .tflite file, or path/to/file.py:factory or module:factory of a PyTorch model. DATA is an .npz
    with one array per input (and labels), a folder of images or .wav files (with one folder per
    class when labelled), a .csv, or module:callable; for --calibration also random, which marks
    the release.

    \b
    Writes  OUT/report.html, OUT/report.json
            OUT/<profile>/release/   ready for `aid-edge publish`
    """  # noqa: D301 -- \b is Click's mark for lines that are not to be wrapped
    result = _convert(output, options)
    emit(SCHEMA, _as_json(result), _as_text(result), as_json=as_json)
    if not result.report.is_complete:
        missed = [p for p in result.report.profiles if p.chosen is None]
        raise GateMissedError(
            f"no candidate passes for {', '.join(p.id for p in missed)}",
            cause="; ".join(p.verdict for p in missed),
            hint=f"The report says why: {result.html}",
        )


def _convert(output: Output, options: dict[str, Any]) -> ConvertResult:
    try:
        # Imported here: these need the convert extra, and --help must not.
        from aid_edge.pipeline.convert import run  # noqa: PLC0415
        from aid_edge.pipeline.request import ConvertRequest  # noqa: PLC0415
        from aid_edge.pipeline.search.budget import parse_duration  # noqa: PLC0415
        from aid_edge.profiles import load_profile  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise MissingDependencyError("converting", e.name or "?", "convert") from e

    budget = options["time_budget"]
    request = ConvertRequest(
        source=options["source"],
        targets=tuple(load_profile(name) for name in options["profiles"]),
        out=options["out"],
        weights=options["weights"],
        card=options["model_card"],
        calibration=options["calibration"],
        evaluation=options["evaluate"],
        fidelity=options["fidelity"],
        runtimes=options["runtimes"],
        name=options["name"],
        version=options["version"],
        cache=options["cache"],
        seed=options["seed"],
        jobs=options["jobs"],
        inputs=options["inputs"],
        preprocess=options["preprocess"],
        train=options["train"],
        recovery_minutes=options["recovery_minutes"],
        metric=options["metric"],
        search=options["search"],
        time_budget_s=None if budget is None else parse_duration(budget),
        executor=options["executor"],
        allow_overlap=options["allow_overlap"],
        command=shlex.join(["aid-edge", *sys.argv[1:]]),
    )
    with _ended_like_interrupted(), _progress(output) as on_progress:
        return run(request, on_progress=on_progress)


@contextlib.contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does: worker processes too, and nothing half written."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers in the main thread only
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress(output: Output) -> Iterator[Progress]:
    """Give what draws one bar per task on a terminal, else says each task once, on stderr."""
    if not output.progress:
        told: dict[str, str] = {}

        def say(task: str, _share: float, what: str) -> None:
            if task not in told:
                output.note(f"{task}: {what}")
            elif told[task] != what:
                output.detail(f"{task}: {what}")
            told[task] = what

        yield say
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TextColumn("{task.fields[what]}", style="dim"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        ids: dict[str, Any] = {}

        def draw(task: str, share: float, what: str) -> None:
            if task not in ids:
                ids[task] = bars.add_task(task, total=1.0, what=what)
            bars.update(ids[task], completed=share, what=what if share < 1 else "")

        yield draw


def _as_text(result: ConvertResult) -> str:
    from aid_edge.pipeline.request import HEADINGS, rows  # noqa: PLC0415

    lines = [table(HEADINGS, rows(result.report)), ""]
    if any(p.latency != "host" for p in result.report.profiles):
        lines.append("* chosen; ~ estimate, not measured on this kind of device")
    else:
        lines.append("* chosen")
    for profile in result.report.profiles:
        lines += ["", f"{profile.id}: {profile.verdict}"]
        lines += [f"  - {profile.why_not_cheaper}"] if profile.why_not_cheaper else []
        lines += [f"  - {n}" for n in profile.notes]
        if profile.search is not None and profile.search.stopped != "done":
            lines.append("  - The search ended with its time budget: more may be found.")
    lines += ["", f"report:  {result.html}"]
    lines += [f"release: {path}" for path in result.releases.values()]
    return "\n".join(lines)


def _as_json(result: ConvertResult) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415

    return {
        "report": str(result.html),
        "releases": {name: str(path) for name, path in result.releases.items()},
        "profiles": msgspec.to_builtins(result.report.profiles),
    }
