"""The machine of a benchmark: its hardware, and how busy it is."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from eggs_ptp.errors import BackendError

_CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHE = 64 << 20  # bytes, where the system does not list caches; rather too many than too few


def hardware() -> dict[str, Any]:
    """Return processor, caches, the kernels' instruction set, memory and versions, as records store them."""
    import psutil

    from eggs_ptp.core.pattern import Pattern
    from eggs_ptp.sparse import cpu

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    reason = cpu.unsupported_reason(torch.device("cpu"), torch.float32, Pattern(2, 4), 64, 64, 1)
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "caches": [f"L{level} {size >> 10}K" for level, size in _caches()],
        "memory_bytes": psutil.virtual_memory().total,
        "tier": cpu.tier() if reason is None else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def load_averages() -> list[float]:
    """Return the load averages over 1, 5 and 15 minutes; empty if the system has none."""
    return [round(average, 2) for average in os.getloadavg()] if hasattr(os, "getloadavg") else []


def check_memory(needed: float) -> None:
    """Refuse a benchmark that would not fit into memory.

    Args:
        needed: Bytes that its candidates take.

    Raises:
        BackendError: Fewer bytes are free.
    """
    import psutil

    free = psutil.virtual_memory().available
    if needed > free:
        raise BackendError(
            f"the candidates take about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; bench smaller shapes, "
            "or fewer types and patterns at a time"
        )


def largest_cache() -> int:
    """Return the bytes of the largest cache that a processor core has or shares."""
    return max((size for _, size in _caches()), default=_DEFAULT_CACHE)


def _caches() -> list[tuple[str, int]]:
    """Return level and bytes of each cache of the first core."""
    caches = []
    for folder in sorted(_CACHE_FOLDER.glob("index*")):
        try:
            level, size = ((folder / name).read_text(encoding="utf-8").strip() for name in ("level", "size"))
        except OSError:  # virtual machines may list none
            continue
        caches.append((level, int(size.removesuffix("K")) << 10))
    return caches
