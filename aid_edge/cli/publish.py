"""``aid-edge publish``: sign releases and put them into the catalogue."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from pathlib import Path

import click

from aid_edge.catalogue.draft import FILE_NAME, read_draft
from aid_edge.catalogue.repository import Repository, load_signers
from aid_edge.cli.output import Output, emit, home_option, json_option, table
from aid_edge.cli.passphrase import passphrase_file_option, publisher_passphrase
from aid_edge.errors import UsageError
from aid_edge.home import open_home


@click.command()
@click.argument(
    "folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path)
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="ID",
    help="Publish only the releases for this profile; repeatable.",
)
@passphrase_file_option
@home_option
@json_option
@click.pass_obj
def command(
    output: Output,
    *,
    folders: tuple[Path, ...],
    profiles: tuple[str, ...],
    passphrase_file: Path | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Sign the releases in FOLDER and put them into the catalogue, all of them or none.

    FOLDER is what `aid-edge convert --out` made, or one release folder in it. Publishing the very
    same release again changes nothing; other bytes under the same name and version are refused.
    """
    where = open_home(home)
    drafts = find_drafts(folders, profiles)
    signers = load_signers(where.keys, publisher_passphrase(where.keys, passphrase_file))
    published = Repository(where).publish(drafts, signers, now=dt.datetime.now(dt.UTC))
    for release in published:
        if not release.fresh:
            output.note(
                f"{release.name}@{release.version} for {release.profile} was published already."
            )
    rows = [
        (f"{r.name}@{r.version}", r.profile, r.counter, f"{r.size / 2**20:.2f} MiB", r.digest)
        for r in published
    ]
    emit(
        "aid-edge/publish/v1",
        {"releases": [asdict(r) for r in published]},
        table(("RELEASE", "PROFILE", "COUNTER", "SIZE", "DIGEST"), rows),
        as_json=as_json,
    )


def find_drafts(folders: tuple[Path, ...], profiles: tuple[str, ...]) -> list[Path]:
    """Return the release folders in ``folders``, each itself one or an output of ``convert``.

    Args:
        folders: As the user named them.
        profiles: Only these; empty means all.

    Raises:
        UsageError: A folder holds no release, or none for one of ``profiles``.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            found[folder] = None
            continue
        inside = sorted(p.parent for p in folder.glob(f"*/release/{FILE_NAME}"))
        if not inside:
            raise UsageError(
                f"{folder} holds no release",
                hint="Name what `aid-edge convert --out` made; a missed gate leaves no release.",
            )
        found.update(dict.fromkeys(inside))
    if not profiles:
        return list(found)
    of = {path: _profile_of(path) for path in found}
    for profile in profiles:
        if profile not in of.values():
            raise UsageError(
                f"no release for profile {profile!r}",
                hint=f"There are: {', '.join(sorted(set(of.values())))}.",
            )
    return [path for path in found if of[path] in profiles]


def _profile_of(folder: Path) -> str:
    return read_draft(folder).profile.id
