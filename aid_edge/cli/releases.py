"""``aid-edge releases``: what is in the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from aid_edge.catalogue.store import Catalogue, Release
from aid_edge.cli.output import emit, home_option, json_option, table
from aid_edge.errors import UsageError
from aid_edge.home import open_home
from device_agent.contract.manifest import Measurement


@click.group()
def command() -> None:
    """List and show published releases."""


@command.command("list")
@click.option("--name", default=None, help="Only releases of this name.")
@click.option("--profile", default=None, metavar="ID", help="Only releases for this profile.")
@home_option
@json_option
def list_(name: str | None, profile: str | None, home: Path | None, as_json: bool) -> None:
    """List releases, oldest first within a name and profile."""
    found = [
        r
        for r in Catalogue(open_home(home)).releases()
        if name in (None, r.name) and profile in (None, r.profile)
    ]
    rows = [
        (
            f"{r.name}@{r.version}",
            r.profile,
            r.manifest.runtime.name,
            r.counter,
            f"{r.size / 2**20:.2f} MiB",
            r.digest,
        )
        for r in found
    ]
    headings = ("RELEASE", "PROFILE", "RUNTIME", "COUNTER", "SIZE", "DIGEST")
    emit(
        "aid-edge/releases/v1",
        {"releases": [_summary(r) for r in found]},
        table(headings, rows) if rows else "No releases.",
        as_json=as_json,
    )


@command.command("show")
@click.argument("release", metavar="NAME[@VERSION]")
@click.option("--profile", default=None, metavar="ID", help="Only the release for this profile.")
@home_option
@json_option
def show(release: str, profile: str | None, home: Path | None, as_json: bool) -> None:
    """Show a release for each profile that it was published for; the newest without a version."""
    catalogue = Catalogue(open_home(home))
    found = select(catalogue.releases(), release, profile)
    result = {
        "releases": [{**_summary(r), "manifest": msgspec.to_builtins(r.manifest)} for r in found]
    }
    emit("aid-edge/release/v1", result, "\n\n".join(map(_text, found)), as_json=as_json)


def select(releases: tuple[Release, ...], reference: str, profile: str | None) -> list[Release]:
    """Return the releases that ``NAME[@VERSION]`` means, one for each profile.

    Raises:
        UsageError: There is none; the hint says what there is.
    """
    name, _, version = reference.partition("@")
    named = [r for r in releases if r.name == name]
    if not named:
        known = sorted({r.name for r in releases})
        raise UsageError(
            f"there is no release of {name!r}", hint=f"There are: {', '.join(known) or 'none'}."
        )
    wanted = [r for r in named if version in ("", r.version) and profile in (None, r.profile)]
    if not wanted:
        known = [f"{r.name}@{r.version} for {r.profile}" for r in named]
        of = f" for profile {profile!r}" if profile else ""
        raise UsageError(
            f"there is no release {reference!r}{of}", hint=f"There are: {', '.join(known)}."
        )
    newest: dict[str, Release] = {}
    for r in wanted:
        newest[r.profile] = r
    return list(newest.values())


def _summary(release: Release) -> dict[str, Any]:
    return {
        "name": release.name,
        "version": release.version,
        "profile": release.profile,
        "runtime": release.manifest.runtime.name,
        "counter": release.counter,
        "size": release.size,
        "digest": release.digest,
    }


def _interval(of: Measurement) -> str:
    return "" if of.low is None or of.high is None else f" [{of.low:g}, {of.high:g}]"


def _text(release: Release) -> str:
    of = release.manifest
    lines = [
        f"{of.name}@{of.version} for {of.profile.id}, release {of.counter}",
        f"digest:   {release.digest}",
        f"runtime:  {of.runtime.name} {of.runtime.version}",
        f"recipe:   {of.recipe or '-'}",
        f"licence:  {of.licence or '-'}",
        *(f"input:    {t.name} {t.datatype}{list(t.shape)}" for t in of.inputs),
        *(f"output:   {t.name} {t.datatype}{list(t.shape)}" for t in of.outputs),
        (
            f"limits:   {of.limits.memory_bytes / 2**20:.0f} MiB, {of.limits.threads} threads, "
            f"deadline {of.limits.deadline_s:g} s"
        ),
        (
            f"golden:   {of.golden.vectors} vectors, cosine >= {of.golden.min_cosine:g}, "
            f"agreement >= {of.golden.min_agreement:g}"
        ),
        "blobs:",
        *(f"  {b.role:<12} {b.size:>12} B  {b.digest}" for b in of.blobs),
    ]
    if of.measurements:
        lines.append("measured:")
        lines += [
            f"  {m.what}: {m.value:g} {m.unit}{_interval(m)} ({m.where}, {m.how}, n={m.n})"
            for m in of.measurements
        ]
    return "\n".join(lines)
