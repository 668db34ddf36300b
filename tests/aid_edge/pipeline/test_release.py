from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aid_edge.pipeline import release
from aid_edge.pipeline.release import OutputError


def test_asking_whether_out_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    release.check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_a_copy_could_not_write_is_named_not_its_source(tmp_path: Path) -> None:
    failed = OSError(errno.ENOSPC, "No space left on device", "cache/model", None, "out/model")
    with (
        pytest.raises(OutputError, match=r"^out/model: cannot be written: No space left"),
        release.output_errors(tmp_path),
    ):
        raise failed
