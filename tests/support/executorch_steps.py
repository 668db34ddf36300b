"""What tests of ExecuTorch do in worker processes: torch.export runs there only."""

from __future__ import annotations

from pathlib import Path

from aid_edge.model import SourceModel


def undelegated(model: SourceModel, to: Path) -> None:
    """Write ``model`` as a program that no backend takes a part of: right, and very slow."""
    from converters import executorch_program

    executorch_program.lower(executorch_program.export(model), model, to, partitioners=[])
