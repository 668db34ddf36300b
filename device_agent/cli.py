"""``aid-agent``: runs the agent, says how it is, verifies what it holds. Prints and exits."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from device_agent.agent.core import Agent, agent_version
from device_agent.agent.home import AgentHome, open_home
from device_agent.agent.inspection import AlteredError, status_of, verify_home
from device_agent.contract.errors import EXIT_FAILED, EXIT_INTERRUPTED, AidError
from device_agent.mqtt import MqttTransport

ENVIRONMENT = "AID_AGENT_HOME"
DEFAULT_HOME = "/opt/aid-agent/home"
ERROR_SCHEMA = "aid-edge/error/v1"
_EPILOG = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 4 something is not what was signed, 130 interrupted."
)

_log = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aid-agent", description="The AID Edge agent of this device.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"aid-agent {agent_version()}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in (
        ("run", "Serve models, fetch releases, report; until SIGTERM."),
        ("status", "Say how the agent is and what it runs."),
        ("verify", "Hold every byte of every release against what was signed."),
    ):
        verb = verbs.add_parser(name, help=text, description=text, epilog=_EPILOG)
        verb.add_argument(
            "--home",
            type=Path,
            default=Path(os.environ.get(ENVIRONMENT) or DEFAULT_HOME),
            help=f"The agent's home folder. [default: ${ENVIRONMENT} or {DEFAULT_HOME}]",
        )
        verb.add_argument("--json", action="store_true", help="Result and errors as JSON.")
        if name == "run":
            verb.add_argument("-v", "--verbose", action="store_true", help="Log details too.")
    return parser


def _run(home: AgentHome, options: argparse.Namespace) -> int:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(threadName)s: %(message)s",
    )
    with home.held():
        agent = Agent(home, MqttTransport(home.mqtt()))
        failed = threading.Event()

        def end(_number: int, _frame: Any) -> None:
            agent.stop()

        def give_up(args: threading.ExceptHookArgs) -> None:
            # A thread that ends in a bug leaves half an agent: better none, and a new one soon.
            trace = (args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
            _log.critical("a thread ended in a bug; the agent stops", exc_info=trace)
            failed.set()
            agent.stop()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        threading.excepthook = give_up
        agent.run()
    return EXIT_FAILED if failed.is_set() else 0


def _status(home: AgentHome, options: argparse.Namespace) -> int:
    found = status_of(home)
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    lines = [f"{found['fleet']}/{found['device']} ({found['profile']}), agent {found['version']}"]
    if found["running"]:
        reported = found["reported"]
        broker = "connected to" if found["connected"] else "not connected to"
        lines.append(f"runs as process {found['pid']}, {broker} {found['broker']}")
        accepted = "" if reported["accepted"] else f", refused: {reported['reason']}"
        lines.append(f"desired revision {reported['revision']}{accepted}")
        for slot in reported["slots"]:
            release = slot.get("release")
            name = f"{release['name']}@{release['version']}" if release else "nothing"
            reason = f" ({slot['reason']})" if slot.get("reason") else ""
            lines.append(f"slot {slot['slot']}: {slot['state']}, serves {name}{reason}")
        lines.append(f"spool: {found['spool']['records']} records wait")
    else:
        lines.append("does not run")
        lines.append(f"state {found['state']}, active {found['active'] or 'nothing'}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _verify(home: AgentHome, options: argparse.Namespace) -> int:
    try:
        found = verify_home(home)
    except AlteredError as e:
        if options.json:
            sys.stdout.write(json.dumps(e.result, indent=2) + "\n")
        raise
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    for release in found["releases"]:
        marks = [m for m in ("active", "previous") if found[m] == release["digest"]]
        sys.stdout.write(f"intact  {release['name']}  {' '.join(marks)}".rstrip() + "\n")
    if not found["releases"]:
        sys.stdout.write("no release is installed\n")
    return 0


_VERBS = {"run": _run, "status": _status, "verify": _verify}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors go to stderr."""
    options = _parser().parse_args(arguments)
    try:
        return _VERBS[options.verb](open_home(options.home), options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except AidError as e:
        _report(e, as_json=options.json)
        return e.exit_code


def _report(error: AidError, *, as_json: bool) -> None:
    if as_json:
        body = {
            "code": error.code, "message": str(error), "cause": error.cause, "hint": error.hint
        }  # fmt: skip
        sys.stderr.write(json.dumps({"schema": ERROR_SCHEMA, "error": body}, indent=2) + "\n")
        return
    sys.stderr.write(f"error [{error.code}]: {error}\n")
    if error.cause:
        sys.stderr.write(f"cause: {error.cause}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
