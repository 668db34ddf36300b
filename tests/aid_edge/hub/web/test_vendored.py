from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from aid_edge.hub.web.routes import STATIC

SUPPORT = Path(__file__).parents[3] / "support"
ROW = re.compile(r"^\| (\S+) \| [^|]+ \| [^|]+ \| ([0-9a-f]{64}) \|$", re.MULTILINE)


@pytest.mark.parametrize("folder", [STATIC, SUPPORT], ids=["static", "support"])
def test_vendored_files_are_those_that_are_listed(folder: Path) -> None:
    listed = ROW.findall((folder / "VENDORED.md").read_text())
    assert listed
    for name, digest in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    minified = {path.name for path in folder.glob("*.min.*")}
    assert minified <= {name for name, _ in listed}
