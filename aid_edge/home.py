"""The home folder: where an organisation's keys, catalogue and hub state lie.

::

    home/
      aid-edge.toml            fleet name, schema
      keys/                    private keys, mode 0600 in a 0700 folder
      catalogue/               OCI image layout; metadata/ inside it is the TUF repository
      hub/                     hub state: database, broker files, certificates, API token
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from aid_edge.errors import HomeError
from device_agent.contract.errors import MalformedMessageError
from device_agent.contract.names import check_identifier

ENVIRONMENT = "AID_EDGE_HOME"
SCHEMA = 1


@dataclass(frozen=True)
class Home:
    """Paths inside one home folder."""

    path: Path
    fleet: str

    @property
    def keys(self) -> Path:
        """Folder of private keys."""
        return self.path / "keys"

    @property
    def catalogue(self) -> Path:
        """OCI image layout of all releases."""
        return self.path / "catalogue"

    @property
    def metadata(self) -> Path:
        """TUF metadata files: ``timestamp.json``; ``N.*.json`` of root, targets and snapshot."""
        return self.catalogue / "metadata"

    @property
    def hub(self) -> Path:
        """State of the hub."""
        return self.path / "hub"

    @property
    def config_file(self) -> Path:
        """The marker that makes a folder a home."""
        return self.path / "aid-edge.toml"


def default_path() -> Path:
    """Return the home folder that is used when none is named."""
    return Path(os.environ.get(ENVIRONMENT) or Path.home() / ".aid-edge")


def open_home(path: Path | None = None) -> Home:
    """Return the home at ``path`` or the default one.

    Raises:
        HomeError: There is none, or its configuration is not valid.
    """
    where = (path or default_path()).expanduser().resolve()
    config = where / "aid-edge.toml"
    try:
        table = tomllib.loads(config.read_text())
    except FileNotFoundError as e:
        raise HomeError(f"{where} is not an AID Edge home (no {config.name})") from e
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise HomeError(f"{config}: cannot be read: {e}") from e
    if table.get("schema") != SCHEMA:
        raise HomeError(f"{config}: schema: is {table.get('schema')!r}; allowed: {SCHEMA}")
    try:
        return Home(where, check_identifier("fleet", str(table.get("fleet", ""))))
    except MalformedMessageError as e:
        raise HomeError(f"{config}: {e}", hint=e.hint) from e
