"""The command `eggs`. Little is imported before `main` runs, so that Ctrl-C prints one line from the start."""

import os
import signal
import sys
import threading
from collections.abc import Sequence

INTERRUPTED = 130
TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    A termination (SIGTERM, as schedulers send it) ends a run in the same way as Ctrl-C.

    Args:
        arguments: The command line without `eggs`; None takes that of this process.

    Returns:
        The exit code: 0, 1 (`verify` has found faults), 2 (an error), 130 (interrupted) or 143 (terminated).
    """
    terminated = False

    def interrupt(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    # torch reads this at its first tensor: allocations of 2 MB and more use large pages, which are cheaper to clear.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    previous_handler = None
    try:
        if threading.current_thread() is threading.main_thread():
            previous_handler = signal.signal(signal.SIGTERM, interrupt)
        from eggs_ptp.cli.program import run

        code = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        if previous_handler is not None:
            signal.signal(signal.SIGTERM, previous_handler)
    if code == INTERRUPTED:
        print("eggs: interrupted", file=sys.stderr)  # noqa: T201
        return TERMINATED if terminated else INTERRUPTED
    return code
