"""``aid-edge completion``: a static completion script, so that Tab starts no Python."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from aid_edge.cli.main import VERBS
from aid_edge.errors import MissingDependencyError
from aid_edge.profiles import find_profiles

SHELLS = ("bash", "zsh", "fish")
_PROFILE_OPTION = "--profile"

_BASH = """\
# Completion of aid-edge for bash, made by `aid-edge completion bash`.
_aid_edge() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" at="" word words=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$at/$word" in
      {paths}) at="$at/$word" ;;
    esac
  done
  case "$at:$prev" in
{choices}
    *) case "$at" in
{words}
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o bashdefault -o default -F _aid_edge aid-edge
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


class Node(NamedTuple):
    """One command of the tree.

    Attributes:
        path: Such as ``/profiles/show``; empty for the program itself.
        help: Its one line.
        words: Subcommands and options to offer.
        choices: Option to the values it takes, where those are known.
    """

    path: str
    help: str
    words: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  aid-edge completion bash > ~/.local/share/bash-completion/completions/aid-edge
    zsh:   aid-edge completion zsh > ~/.aid-edge.zsh, and `source` that in ~/.zshrc
    fish:  aid-edge completion fish > ~/.config/fish/completions/aid-edge.fish

    The script is static: make it again after an update.
    """  # noqa: D301  \b is Click's mark for "leave these lines as they are"
    nodes = list(_nodes(tuple(find_profiles())))
    click.echo(_fish(nodes) if shell == "fish" else (_ZSH if shell == "zsh" else "") + _bash(nodes))


def _nodes(profiles: tuple[str, ...]) -> Iterator[Node]:
    """Yield the program and all its commands, from Click's own description of them."""
    from aid_edge.cli.main import cli  # noqa: PLC0415  this module is one of its verbs

    top = click.Context(cli, info_name="aid-edge")
    options, choices = _options(cli.get_params(top), profiles)
    yield Node("", "", (*VERBS, *options), choices)
    for verb, line in VERBS.items():
        try:
            found: click.Command = importlib.import_module(f"aid_edge.cli.{verb}").command
        except ModuleNotFoundError:
            # The verb's extra is not installed; its name is completed all the same.
            yield Node(f"/{verb}", line, ("--help",), {})
            continue
        yield from _walk(found, f"/{verb}", line, top, profiles)


def _walk(
    found: click.Command, path: str, line: str, above: click.Context, profiles: tuple[str, ...]
) -> Iterator[Node]:
    context = click.Context(found, parent=above, info_name=path.rsplit("/", 1)[-1])
    options, choices = _options(found.get_params(context), profiles)
    names = found.list_commands(context) if isinstance(found, click.Group) else []
    yield Node(path, line, (*names, *options), choices)
    for name in names:
        try:
            sub = found.get_command(context, name) if isinstance(found, click.Group) else None
        except MissingDependencyError:
            sub = None
        if sub is None:
            # As with verbs: its extra is not installed.
            yield Node(f"{path}/{name}", "", ("--help",), {})
            continue
        yield from _walk(sub, f"{path}/{name}", sub.get_short_help_str(), context, profiles)


def _options(
    params: list[click.Parameter], profiles: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    words: list[str] = []
    choices: dict[str, tuple[str, ...]] = {}
    for param in params:
        described: dict[str, Any] = param.to_info_dict()
        if isinstance(param, click.Argument):
            words += profiles if param.name == "profile" else described["type"].get("choices", ())
            continue
        names = [*param.opts, *param.secondary_opts]
        words += [name for name in names if name.startswith("--")]
        values = tuple(map(str, described["type"].get("choices", ())))
        for name in names:
            if values or name == _PROFILE_OPTION:
                choices[name] = values or profiles
    return tuple(words), choices


def _bash(nodes: list[Node]) -> str:
    paths = "|".join(shlex.quote(node.path) for node in nodes if node.path)
    choices = [
        f"    {shlex.quote(f'{node.path}:{option}')}) words={shlex.quote(' '.join(values))} ;;"
        for node in nodes
        for option, values in node.choices.items()
    ]
    words = [
        f"      {shlex.quote(node.path)}) words={shlex.quote(' '.join(node.words))} ;;"
        for node in nodes
    ]
    return _BASH.format(paths=paths, choices="\n".join(choices), words="\n".join(words))


def _fish(nodes: list[Node]) -> str:
    lines = ["# Completion of aid-edge for fish, made by `aid-edge completion fish`."]
    for node in nodes:
        names = node.path.strip("/").split("/") if node.path else []
        inner = [w for w in node.words if not w.startswith("-")]
        seen = [f"__fish_seen_subcommand_from {name}" for name in names]
        unseen = [f"not __fish_seen_subcommand_from {' '.join(inner)}"] if inner else []
        start = f"complete -c aid-edge -n {shlex.quote('; and '.join([*seen, *unseen]) or 'true')}"
        about = {n.path: n.help for n in nodes}
        for word in node.words:
            if word.startswith("--"):
                values = node.choices.get(word, ())
                given = f" -x -a {shlex.quote(' '.join(values))}" if values else ""
                lines.append(f"{start} -l {word.removeprefix('--')}{given}")
            else:
                line = about.get(f"{node.path}/{word}", "")
                lines.append(f"{start} -a {shlex.quote(word)} -d {shlex.quote(line)}")
    return "\n".join(lines)
