"""``aid-edge profiles list|show|validate|calibrate``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
import msgspec

from aid_edge.cli.output import emit, json_option, table
from aid_edge.errors import MissingDependencyError
from aid_edge.profiles import check_file, find_profiles, load_profile
from device_agent.contract.errors import EXIT_USAGE
from device_agent.contract.profile import Duration, HardwareProfile, Size

CALIBRATE = "calibrate"


class _Group(click.Group):
    """Finds ``calibrate`` in a module of its own: it needs the hub's packages, the others none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), CALIBRATE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == CALIBRATE:
            try:
                module = importlib.import_module("aid_edge.cli.profiles_calibrate")
            except ModuleNotFoundError as e:
                verb = "aid-edge profiles calibrate"
                raise MissingDependencyError(verb, e.name or "a package", "hub") from e
            command: click.Command = module.command
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  Click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        rows = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*rows, (CALIBRATE, "Compare a device with this host by probes.")])


@click.group(cls=_Group)
def command() -> None:
    """List, show, validate and calibrate hardware profiles."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the profiles that come with the program."""
    found = [load_profile(name) for name in find_profiles()]
    rows = [
        (p.id, p.arch, ", ".join(r.name for r in p.runtimes), _size(p.memory.models), p.title)
        for p, _ in found
    ]
    result = {
        "profiles": [
            {
                "id": p.id,
                "title": p.title,
                "class": p.class_,
                "arch": p.arch,
                "runtimes": [r.name for r in p.runtimes],
                "calibrated": p.cost is not None,
                "digest": digest,
            }
            for p, digest in found
        ]
    }
    headings = ("ID", "ARCH", "RUNTIMES", "FOR MODELS", "TITLE")
    emit("aid-edge/profiles/v1", result, table(headings, rows), as_json=as_json)


@command.command()
@click.argument("profile")
@json_option
def show(profile: str, as_json: bool) -> None:
    """Show one PROFILE, by id or path of a .toml file."""
    found, digest = load_profile(profile)
    result = {"digest": digest, "profile": msgspec.to_builtins(found, enc_hook=_plain)}
    emit("aid-edge/profile/v1", result, _describe(found, digest), as_json=as_json)


@command.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def validate(ctx: click.Context, files: tuple[Path, ...], as_json: bool) -> None:
    """Check FILES and say everything that is wrong with each.

    Without FILES, the profiles that come with the program are checked. Exits with 2 when a file
    is not valid.
    """
    checked = {path: check_file(path) for path in files or find_profiles().values()}
    result = {
        "files": [
            {
                "file": str(path),
                "valid": not problems,
                "problems": [{"key": p.key, "problem": p.problem} for p in problems],
            }
            for path, problems in checked.items()
        ]
    }
    lines = [
        line
        for path, problems in checked.items()
        for line in ([str(p) for p in problems] or [f"{path}: valid"])
    ]
    emit("aid-edge/profiles-validation/v1", result, "\n".join(lines), as_json=as_json)
    if any(checked.values()):
        ctx.exit(EXIT_USAGE)


def _plain(value: Any) -> Any:
    if isinstance(value, Size):
        return int(value)
    if isinstance(value, Duration):
        return float(value)
    raise NotImplementedError(type(value))


def _size(size_bytes: int) -> str:
    """Return a size with the largest binary unit that keeps it at least 1."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}"


def _describe(p: HardwareProfile, digest: str) -> str:
    hard = p.constraints.hard
    rows: list[tuple[str, object]] = [
        ("id", p.id),
        ("title", p.title),
        ("digest", digest),
        ("machine", f"{p.soc}, {p.cores} x {p.arch} ({', '.join(p.isa) or 'no features named'})"),
        ("memory", f"{_size(p.memory.ram)}, of it for models {_size(p.memory.models)}"),
        ("storage", f"{_size(p.memory.storage)} for releases"),
        ("platform", " ".join(filter(None, [p.platform.os, p.platform.libc])) or "-"),
        ("python", p.platform.python or "-"),
        *[
            (f"runtime {i}", f"{r.name} {r.version}, {r.threads} thread(s)")
            for i, r in enumerate(p.runtimes, 1)
        ],
        ("number formats", ", ".join(p.numerics.dtypes)),
        ("int8 weights", "per channel" if p.numerics.weights.per_channel else "per tensor"),
        ("int8 activations", p.numerics.activations.dtype),
        ("at most", f"{_size(hard.artifact)} artifact, {_size(hard.peak_ram)} memory"),
        ("p95 at most", f"{hard.latency_p95 * 1e3:g} ms"),
        ("accuracy", f"at least {hard.accuracy_share:.0%} of the source model's"),
        ("fidelity", f"agreement at least {hard.agreement:.0%}, cosine at least {hard.cosine:g}"),
        ("ranked by", ", ".join(p.constraints.rank_by)),
        (
            "latency",
            f"device = {p.cost.latency_factor:g} x host ({p.cost.points} points, {p.cost.date})"
            if p.cost
            else "uncalibrated: never compared with a real device",
        ),
    ]
    return "\n".join(f"{name:<16} {value}" for name, value in rows)
