"""Time by stage, and the memory of this process."""

import ctypes
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import psutil

_MMAP_THRESHOLD, _RETURNED = -3, 1 << 22  # glibc's M_MMAP_THRESHOLD; bytes
_INTERVAL = 0.02  # seconds between two looks at the resident memory


class Stages:
    """Seconds spent in each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds measured elsewhere."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def anonymous_memory() -> int:
    """Bytes of memory that this process cannot do without: on Linux without the pages of mapped files."""
    info = psutil.Process().memory_info()
    return int(info.rss) - int(getattr(info, "shared", 0))


@contextmanager
def limited(memory: int | None) -> Iterator[None]:
    """Have the system refuse this process more than so many bytes, where it can (on Linux; None: what it has).

    Raises:
        MemoryError: it has refused.
    """
    try:
        with nullcontext() if memory is None or sys.platform != "linux" else _bounded(memory):
            yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch has no other kind
            raise
        if memory is None:
            raise MemoryError("no memory left; pass --memory SIZE, or shorten the calibration windows") from error
        raise MemoryError(
            f"--memory: {memory >> 20} MiB are not enough for this run after all; raise it, or shorten the calibration "
            "windows"
        ) from error


@contextmanager
def _bounded(memory: int) -> Iterator[None]:
    if option := getattr(ctypes.CDLL(None), "mallopt", None):
        option(_MMAP_THRESHOLD, _RETURNED)  # what is freed goes back at once, and leaves no holes behind
    info, (before, hard) = psutil.Process().memory_info(), resource.getrlimit(resource.RLIMIT_DATA)
    # The limit is on what is reserved, of which not all is in use: only what is added counts.
    resource.setrlimit(resource.RLIMIT_DATA, (info.data + memory - anonymous_memory(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def give_back() -> None:
    """Return to the system what is freed: glibc keeps pieces of up to 32 MB, and a run grows with its blocks."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class MemoryWatch:
    """Peak memory of this process while the context is open, as `anonymous_memory` has it, looked at 50 times a second.

    `baseline` and `peak` are in bytes.
    """

    def __enter__(self) -> "MemoryWatch":
        self.baseline = self.peak = anonymous_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self.look()

    def look(self) -> None:
        """Take a sample now."""
        self.peak = max(self.peak, anonymous_memory())
