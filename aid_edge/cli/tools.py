"""``aid-edge tools list|install|remove``."""

from __future__ import annotations

import click

from aid_edge import toolenv
from aid_edge.cli.output import Output, emit, json_option, table


@click.group()
def command() -> None:
    """List, install and remove tools that have environments of their own.

    They are made by themselves when a conversion needs them; here they can be made ahead of time,
    such as before going offline.
    """


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the tools, and whether their environments are there."""
    tools = list(toolenv.TOOLS.values())
    found = {tool.name: toolenv.find(tool.name) for tool in tools}
    rows = [
        (
            tool.name, tool.version, "yes" if found[tool.name] else "no",
            f"{tool.megabytes} MB", tool.purpose,
        )
        for tool in tools
    ]  # fmt: skip
    result = {
        "tools": [
            {
                "name": tool.name,
                "version": tool.version,
                "installed": found[tool.name] is not None,
                "python": str(found[tool.name] or ""),
                "megabytes": tool.megabytes,
                "purpose": tool.purpose,
            }
            for tool in tools
        ]
    }
    headings = ("NAME", "VERSION", "INSTALLED", "SIZE", "WHAT FOR")
    emit("aid-edge/tools/v1", result, table(headings, rows), as_json=as_json)


@command.command()
@click.argument("name", type=click.Choice(list(toolenv.TOOLS)))
@json_option
@click.pass_obj
def install(output: Output, name: str, as_json: bool) -> None:
    """Make the environment of the tool NAME, from its pinned list."""
    told = [""]

    def note(_: float, text: str) -> None:
        if text != told[0]:
            told[0] = text
            output.note(text)

    python = toolenv.ensure(name, note, insist=True)
    result = {"name": name, "version": toolenv.version(name), "python": str(python)}
    text = f"{name} {toolenv.version(name)} is installed."
    emit("aid-edge/tool/v1", result, text, as_json=as_json)


@command.command()
@click.argument("name", type=click.Choice(list(toolenv.TOOLS)))
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove the environment of the tool NAME, also those of older versions."""
    count = toolenv.remove(name)
    text = f"{name} is removed." if count else f"{name} was not installed."
    emit("aid-edge/tool-removal/v1", {"name": name, "removed": count}, text, as_json=as_json)
