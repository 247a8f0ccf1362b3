"""Time by stage, and the memory of this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

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


class MemoryWatch:
    """Peak resident memory of this process while the context is open, sampled 50 times a second.

    `baseline` and `peak` are in bytes. Pages of memory-mapped weight files count while they are resident.
    """

    def __enter__(self) -> "MemoryWatch":
        self._process = psutil.Process()
        self.baseline = self.peak = int(self._process.memory_info().rss)
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
        self.peak = max(self.peak, int(self._process.memory_info().rss))
