"""The command `eggs`. Little is imported before `main` runs, so that Ctrl-C is one line from the start."""

import os
import signal
import sys
import threading
from collections.abc import Sequence

INTERRUPTED, TERMINATED = 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 (`verify` found faults), 2 (an error), 130 or 143 (interrupted).

    A termination (SIGTERM, as schedulers send it) ends a run as Ctrl-C does.
    """
    terminated = False

    def terminate(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    # Read by torch at its first tensor: memory of 2 MB and more in large pages, of which a run has less to clear.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    before = None
    try:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, terminate)
        from eggs_ptp.cli.program import run

        code = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    if code == INTERRUPTED:
        print("eggs: interrupted", file=sys.stderr)  # noqa: T201
        return TERMINATED if terminated else INTERRUPTED
    return code
