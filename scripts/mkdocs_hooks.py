"""Brings documents that stand beside the code into the documentation, and their links with them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "contract.md": "device_agent/contract/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "profile-files.md": "hardware-profiles/README.md",
}
"""Page to the file that it shows, from the root of the project."""

_LINK = re.compile(r"\]\(([^)#\s]+)((?:#[^)]*)?)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents from outside the documentation's folder."""
    for page, path in OUTSIDE.items():
        files.append(
            File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8"))
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that were right in the project into links that are right in the documentation."""
    del config
    here = page.file.src_uri
    origin = OUTSIDE.get(here, f"docs/{here}")
    shown = {path: name for name, path in OUTSIDE.items()}

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2]
        if "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        name = shown.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(name) is None:
            name = posixpath.join(name, "README.md")
        return f"]({posixpath.relpath(name, posixpath.dirname(here) or '.')}{anchor})"

    return _LINK.sub(link, markdown)
