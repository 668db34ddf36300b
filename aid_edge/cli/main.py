"""``aid-edge``: finds the verb, imports only its module, and turns errors into exit codes."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from aid_edge.cli.output import Output, color_choice, report_error
from aid_edge.errors import HostError, MissingDependencyError
from device_agent.contract.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, AidError

VERBS: dict[str, str] = {
    "init": "Make a home: keys, catalogue, hub state.",
    "doctor": "Say what is installed, what is missing and what to do.",
    "profiles": "List, show and validate hardware profiles.",
    "inspect": "Say what a model is and which runtimes can take it.",
    "convert": "Compress and export a model for hardware profiles.",
    "report": "Show the report of a conversion.",
    "tools": "List, install and remove tools that have environments of their own.",
    "publish": "Sign a release and put it into the catalogue.",
    "releases": "List and show published releases.",
    "hub": "Run the hub: broker, ingest, API and web view.",
    "flash": "Make a device: an offline bundle with agent, runtime and identity.",
    "deploy": "Make devices run a release.",
    "rollback": "Make devices run the release they ran before.",
    "devices": "List and show the devices of the fleet.",
    "feedback": "List what people said of predictions.",
    "completion": "Print a completion script for bash, zsh or fish.",
}
"""Verb to its one line of help, kept here so that ``--help`` imports no verb."""


EXTRAS: dict[str, str] = {
    **dict.fromkeys(("inspect", "convert", "report", "tools"), "convert"),
    **dict.fromkeys(("hub", "deploy", "rollback", "devices", "feedback"), "hub"),
    "flash": "flash",
}
"""Verb to the extra that has its packages; the others need none."""


class _LazyGroup(click.Group):
    """A group whose commands live in ``aid_edge.cli.<verb>``, attribute ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  Click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            close = difflib.get_close_matches(cmd_name, VERBS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such verb {cmd_name!r}.{hint}")
        module = importlib.import_module(f"aid_edge.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  Click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 gate missed, 4 trust, 5 some devices failed, "
    "6 toolchain missing, 130 interrupted.",
)
@click.version_option(package_name="aid-edge", prog_name="aid-edge")
@click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Details, and tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Take a trained model to a fleet of edge devices, and back."""
    ctx.color = color_choice()
    ctx.obj = Output(quiet=quiet, verbose=verbose)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors go to stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in words or "--verbose" in words
    as_json = "--json" in words
    try:
        result: Any = cli.main(args=words, prog_name="aid-edge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.ctx.get_help())
        return EXIT_USAGE
    except click.ClickException as e:
        if as_json:
            report_error(AidError(e.format_message()), as_json=True, code="usage")
        else:
            e.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout went away; nothing is wrong with the work.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (AidError, OSError, ModuleNotFoundError) as e:
        if verbose:
            traceback.print_exc()
        error = _as_aid_error(e, words)
        report_error(error, as_json=as_json)
        return error.exit_code
    return result if isinstance(result, int) else 0


def _as_aid_error(error: Exception, words: list[str]) -> AidError:
    """Return what a person can act on: the error itself, a missing extra, or what the system said.

    Raises:
        ModuleNotFoundError: One of our own modules is missing, which is a bug.
    """
    if isinstance(error, AidError):
        return error
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        verb = next((word for word in words if word in VERBS), "")
        if missing in {"aid_edge", "device_agent", "converters", ""}:
            raise error
        return MissingDependencyError(f"aid-edge {verb}", missing, EXTRAS.get(verb, "all"))
    return HostError(
        f"the system refused: {error}",
        hint="Check that the path is right, may be written, and that the disk is not full.",
    )


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())
