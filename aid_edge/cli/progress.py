"""Progress of long work: bars on a terminal, one line per task elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from aid_edge.cli.output import Output

Progress = Callable[[str, float, str], None]
"""Called with the task, the share of it that is done, 0 to 1, and what is being done."""


@contextlib.contextmanager
def progress_bars(output: Output) -> Iterator[Progress]:
    """Give what draws one bar per task on a terminal, else says each task once, on stderr."""
    if not output.progress:
        told: dict[str, str] = {}

        def say(task: str, _share: float, what: str) -> None:
            if task not in told:
                output.note(f"{task}: {what}")
            elif told[task] != what:
                output.detail(f"{task}: {what}")
            told[task] = what

        yield say
        return
    from rich import progress as rich  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TextColumn("{task.percentage:>3.0f} %"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.fields[what]}", style="dim"),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        ids: dict[str, Any] = {}

        def draw(task: str, share: float, what: str) -> None:
            if task not in ids:
                ids[task] = bars.add_task(task, total=1.0, what=what)
            bars.update(ids[task], completed=share, what=what if share < 1 else "")

        yield draw
