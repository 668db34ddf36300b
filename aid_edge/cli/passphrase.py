"""Where verbs that sign get the passphrase of a key from."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from aid_edge.catalogue.keys import KeyRole, PassphraseError, is_encrypted
from aid_edge.errors import UsageError

MAX_PASSPHRASE_BYTES = 1023
"""What OpenSSL takes."""

passphrase_file_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="File whose first line is the passphrase of root's and publisher's key.",
)


def read_passphrase_file(path: Path | None) -> bytes | None:
    """Return the first line of the file, or None when no file is named.

    Raises:
        UsageError: It cannot be read, is empty, or is too long.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            line = file.readline(MAX_PASSPHRASE_BYTES + 3).rstrip(b"\r\n")
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror}") from e
    if not 0 < len(line) <= MAX_PASSPHRASE_BYTES:
        raise UsageError(f"{path}: the first line must have 1 to {MAX_PASSPHRASE_BYTES} bytes")
    return line


def publisher_passphrase(keys: Path, path: Path | None) -> bytes | None:
    """Return the passphrase of the publisher's key; None when it has none.

    Asks for it on a terminal when no file is named.

    Raises:
        UsageError: The file cannot be read.
        PassphraseError: There is no file and no terminal to ask on.
        HomeError: The key is missing.
    """
    given = read_passphrase_file(path)
    if given is not None or not is_encrypted(keys, KeyRole.PUBLISHER):
        return given
    if not sys.stdin.isatty():
        raise PassphraseError("the publisher's key is under a passphrase, and none was given")
    answer: str = click.prompt("Passphrase of the publisher's key", hide_input=True, err=True)
    return answer.encode()
