"""``aid-edge convert``: compress and export a model for hardware profiles."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aid_edge.cli.output import Output, emit, home_option, json_option, table
from aid_edge.cli.passphrase import passphrase_file_option
from aid_edge.cli.progress import Progress, progress_bars
from aid_edge.errors import GateMissedError, MissingDependencyError, UsageError
from aid_edge.home import open_home

if TYPE_CHECKING:
    from aid_edge.pipeline.on_device import MeasureOnDevice
    from aid_edge.pipeline.request import ConvertRequest, ConvertResult

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
@click.option(
    "--measure-on", metavar="DEVICE", help="Measure finalists on a device of the fleet as well."
)
@click.option("--hub", metavar="URL", help="For --measure-on: the hub.  [default: this home's]")
@passphrase_file_option
@home_option
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
    with contextlib.ExitStack() as stack:
        device = _device(stack, output, options, request)
        stack.enter_context(_ended_like_interrupted())
        on_progress = stack.enter_context(progress_bars(output))
        return run(request, on_progress=on_progress, measure_on=device(on_progress))


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


def _device(
    stack: contextlib.ExitStack, output: Output, options: dict[str, Any], request: ConvertRequest
) -> Callable[[Progress], MeasureOnDevice | None]:
    """Return what makes the measuring of finalists on the device that was named, if one was.

    The device and the publisher's key are asked for before any work.
    """
    name = options["measure_on"]
    if name is None:
        if options["hub"] is not None:
            raise UsageError(
                "--hub is given, but no device to measure on", hint="Name one with --measure-on."
            )
        return lambda _progress: None
    try:
        # Imported here: these need the hub extra, and converting must not.
        from aid_edge.hub.client import HubClient  # noqa: PLC0415
        from aid_edge.hub.on_device import Bench, measure_finalists  # noqa: PLC0415
    except ModuleNotFoundError as e:
        raise MissingDependencyError("--measure-on", e.name or "?", "hub") from e
    from aid_edge.catalogue.repository import load_signers  # noqa: PLC0415
    from aid_edge.cli.passphrase import publisher_passphrase  # noqa: PLC0415

    home = open_home(options["home"])
    passphrase = publisher_passphrase(home.keys, options["passphrase_file"])
    signers = load_signers(home.keys, passphrase)
    client = stack.enter_context(HubClient.open(options["home"], options["hub"]))
    profile = client.device(name).summary.profile
    digests = {p.id: digest for p, digest in request.targets}
    if profile not in digests:
        raise UsageError(
            f"device {name} is a {profile}; nothing is converted for that",
            hint=f"Add --profile {profile}, or name another device.",
        )
    bench = Bench(home, client, signers, name)

    def make(progress: Progress) -> MeasureOnDevice:
        return lambda finalists: measure_finalists(
            bench, digests, finalists,
            on_progress=lambda share, what: progress(name, share, what),
            failed=lambda which, why: output.note(f"{name} could not measure {which}: {why}"),
        )  # fmt: skip

    return make


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
