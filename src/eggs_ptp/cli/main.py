"""The command `eggs`. Little is imported before `main` runs, so that Ctrl-C is one line from the start."""

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 (`verify` found faults), 2 (an error) or 130 (interrupted)."""
    try:
        from eggs_ptp.cli.program import run

        code = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("eggs: interrupted", file=sys.stderr)  # noqa: T201
    return code
