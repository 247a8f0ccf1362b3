"""Time per stage of a run, and the memory of this process."""

import ctypes
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import psutil

_M_MMAP_THRESHOLD = -3  # option of glibc's mallopt
_LEAST_MAPPED = 1 << 22  # bytes: larger allocations are mapped, and returned to the system when freed
_INTERVAL = 0.02  # seconds between two samples of the resident memory


class StageTimes:
    """Seconds spent in each named stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the context to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds measured elsewhere."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def anonymous_memory() -> int:
    """Return the resident bytes of this process, on Linux without the pages of memory-mapped files."""
    info = psutil.Process().memory_info()
    return int(info.rss) - int(getattr(info, "shared", 0))


@contextmanager
def limited_memory(memory: int | None) -> Iterator[None]:
    """Have the system refuse this process more memory than `memory` bytes, on Linux; None for no limit.

    Raises:
        MemoryError: The system has refused an allocation.
    """
    try:
        with nullcontext() if memory is None or sys.platform != "linux" else _data_limit(memory):
            yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch has no exception type
            raise
        if memory is None:
            raise MemoryError("no memory left; pass --memory SIZE, or shorten the calibration windows") from error
        raise MemoryError(
            f"--memory: {memory >> 20} MiB are not enough for this run after all; raise it, or shorten the calibration "
            "windows"
        ) from error


@contextmanager
def _data_limit(memory: int) -> Iterator[None]:
    if option := getattr(ctypes.CDLL(None), "mallopt", None):
        option(_M_MMAP_THRESHOLD, _LEAST_MAPPED)  # freed memory is returned at once and leaves no holes
    info = psutil.Process().memory_info()
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    # The system limits reserved memory, of which not all is in use: only what the run adds counts.
    resource.setrlimit(resource.RLIMIT_DATA, (info.data + memory - anonymous_memory(), hard_limit))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft_limit, hard_limit))


def trim_memory() -> None:
    """Return freed memory to the system: glibc keeps pieces of up to 32 MB, so a run would grow with its blocks."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class MemoryMonitor:
    """Measures the peak of `anonymous_memory` while the context is open, 50 times a second.

    Attributes:
        baseline: Bytes at the start.
        peak: Most bytes since.
    """

    def __init__(self) -> None:
        self.baseline = self.peak = 0

    def __enter__(self) -> "MemoryMonitor":
        self.baseline = self.peak = anonymous_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self.sample()

    def sample(self) -> None:
        """Take a sample now."""
        self.peak = max(self.peak, anonymous_memory())
