"""What this installation of AID Edge says of itself: version, requirements, commands.

An editable install's metadata is as old as the last ``pip install``; the source tree that it
points to is what runs. So there the tree's ``pyproject.toml`` is read.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement

from aid_edge.errors import FlashError

DISTRIBUTION = "aid-edge"


@dataclass(frozen=True)
class Facts:
    """Facts of the distribution.

    Attributes:
        requirements: Of the base: what every device needs.
        extras: Extra to what it adds.
        scripts: Command to what it calls, such as ``device_agent.cli:main``.
    """

    version: str
    license: str
    requires_python: str
    requirements: tuple[Requirement, ...]
    extras: dict[str, tuple[Requirement, ...]]
    scripts: dict[str, str]


def installed_facts() -> Facts:
    """Return the facts of the distribution that runs.

    Raises:
        FlashError: It is not installed, or its source tree cannot be read.
    """
    try:
        found = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as e:
        raise FlashError(
            f"the distribution {DISTRIBUTION} is not installed here, so its agent has no version",
            hint="pip install -e '.[flash]' in the source tree, or pip install 'aid-edge[flash]'.",
        ) from e
    tree = _source_tree(found)
    return _of_metadata(found) if tree is None else _of_project(tree / "pyproject.toml")


def _source_tree(found: metadata.Distribution) -> Path | None:
    """Return the folder that an editable install points to; None for another install."""
    # Recorded by the installer: PyPA "Recording the Direct URL Origin".
    record = json.loads(found.read_text("direct_url.json") or "{}")
    if not record.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(record["url"]).path))


def _of_project(path: Path) -> Facts:
    try:
        project: dict[str, Any] = tomllib.loads(path.read_text())["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as e:
        raise FlashError(
            f"{path} of the editable install cannot be read: {e}",
            hint="Install AID Edge again where its source tree is now.",
        ) from e
    return Facts(
        version=project["version"],
        license=project["license"],
        requires_python=project["requires-python"],
        requirements=_sorted(Requirement(text) for text in project["dependencies"]),
        extras={
            name: _sorted(Requirement(text) for text in texts)
            for name, texts in project["optional-dependencies"].items()
        },
        scripts=dict(project["scripts"]),
    )


def _of_metadata(found: metadata.Distribution) -> Facts:
    requirements = [Requirement(text) for text in found.requires or ()]
    extras = found.metadata.get_all("Provides-Extra") or []
    return Facts(
        version=found.version,
        license=_field(found, "License-Expression"),
        requires_python=_field(found, "Requires-Python"),
        requirements=_sorted(r for r in requirements if "extra ==" not in str(r.marker)),
        extras={
            name: _sorted(_plain(r) for r in requirements if f'extra == "{name}"' in str(r.marker))
            for name in extras
        },
        scripts={e.name: e.value for e in found.entry_points if e.group == "console_scripts"},
    )


def _field(found: metadata.Distribution, name: str) -> str:
    values = found.metadata.get_all(name)
    return values[0] if values else ""


def _plain(requirement: Requirement) -> Requirement:
    """Return the requirement without its ``extra == "..."``, which the build back end put last."""
    text, _, marker = str(requirement).partition("; ")
    rest = marker.rpartition(" and ")[0] if " and " in marker else ""
    return Requirement(f"{text}; {rest}" if rest else text)


def _sorted(requirements: Any) -> tuple[Requirement, ...]:
    return tuple(sorted(requirements, key=str))
