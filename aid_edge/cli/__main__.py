"""``python -m aid_edge.cli``, and the console script's way in where Click is not installed."""

from __future__ import annotations

import sys

from device_agent.contract.errors import EXIT_TOOLCHAIN_MISSING


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from aid_edge.cli.main import main as run  # noqa: PLC0415  Click may be missing
    except ModuleNotFoundError as e:
        if e.name not in {"click", "rich"}:
            raise
        sys.stderr.write(
            "error: the aid-edge command needs the host's packages\n"
            "hint: pip install 'aid-edge[all]' (or [convert], [hub], [flash])\n"
        )
        sys.exit(EXIT_TOOLCHAIN_MISSING)
    run()


if __name__ == "__main__":
    main()
