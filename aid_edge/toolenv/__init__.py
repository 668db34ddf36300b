"""Isolated environments for tools that cannot share ours, made on demand from pinned lists."""

from aid_edge.toolenv.environments import (
    TOOLS,
    Tool,
    ToolMissingError,
    ensure,
    find,
    is_installed,
    remove,
    version,
)
from aid_edge.toolenv.processes import ToolRun, end, run, script, start

__all__ = [
    "TOOLS",
    "Tool",
    "ToolMissingError",
    "ToolRun",
    "end",
    "ensure",
    "find",
    "is_installed",
    "remove",
    "run",
    "script",
    "start",
    "version",
]
