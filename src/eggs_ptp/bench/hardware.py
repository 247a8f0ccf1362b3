"""What a measurement ran on, and how busy that was."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from eggs_ptp.errors import BackendError

_CPU = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CACHE = 64 << 20  # bytes; a guess on the large side for systems that do not tell


def hardware() -> dict[str, Any]:
    """Processor, its caches and instructions as kernels use them, memory and versions."""
    import psutil

    from eggs_ptp.core.pattern import Pattern
    from eggs_ptp.sparse import cpu

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    reason = cpu.why_not(torch.device("cpu"), torch.float32, Pattern(2, 4), 64, 64, 1)
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "caches": [f"L{level} {size >> 10}K" for level, size in _caches()],
        "memory_bytes": psutil.virtual_memory().total,
        "tier": cpu.tier() if reason is None else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; empty where the system has none."""
    return [round(each, 2) for each in os.getloadavg()] if hasattr(os, "getloadavg") else []


def check_memory(needed: float) -> None:
    """Refuse what would not fit.

    Raises:
        BackendError: fewer bytes are free.
    """
    import psutil

    free = psutil.virtual_memory().available
    if needed > free:
        raise BackendError(
            f"the contestants take about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; bench smaller shapes, "
            "or fewer types and patterns at a time"
        )


def largest_cache() -> int:
    """Bytes of the largest cache of a processor core, or those that it shares."""
    return max((size for _, size in _caches()), default=_UNKNOWN_CACHE)


def _caches() -> list[tuple[str, int]]:
    found = []
    for index in sorted(_CPU.glob("index*")):
        try:
            level, size = ((index / name).read_text(encoding="utf-8").strip() for name in ("level", "size"))
        except OSError:  # virtual machines may not tell
            continue
        found.append((level, int(size.removesuffix("K")) << 10))
    return found
