"""``aid-edge``: finds the verb, imports only its module, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from aid_edge.cli.output import Output, report_error
from device_agent.contract.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, AidError

VERBS: dict[str, str] = {
    "init": "Make a home: keys, catalogue, hub state.",
    "doctor": "Say what is installed, what is missing and what to do.",
    "profiles": "List, show and validate hardware profiles.",
    "inspect": "Say what a model is and which runtimes can take it.",
    "convert": "Compress and export a model for hardware profiles.",
    "report": "Show the report of a conversion.",
    "publish": "Sign a release and put it into the catalogue.",
    "releases": "List and show published releases.",
    "hub": "Run the hub: broker, ingest, API and web view.",
    "flash": "Make a device: an offline bundle with agent, runtime and identity.",
    "deploy": "Make devices run a release.",
    "rollback": "Make devices run the release they ran before.",
    "devices": "List and show the devices of the fleet.",
    "feedback": "List what people said of predictions.",
}
"""Verb to its one line of help, kept here so that ``--help`` imports no verb."""


class _LazyGroup(click.Group):
    """A group whose commands live in ``aid_edge.cli.<verb>``, attribute ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"aid_edge.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
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
    except AidError as e:
        if verbose:
            traceback.print_exc()
        report_error(e, as_json=as_json)
        return e.exit_code
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())
