"""What a CPU kernel is told, and the threads that run it: torch's own."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eggs_ptp.core.pack import Packed

GROUP = 16  # rows that a thread works on at a time; rows are handed out in multiples of it
AT_ONCE = 16  # inputs in one run
# All of a job, as int64; strides are in bytes. `next` is the first row that no thread has taken yet, `grab` how many
# are taken at once; `tail_*` are the bytes of a row beyond its last whole block; `y_stride` lies between rows of y;
# `scales` is where what whole numbers are multiplied by stands, one float32 a row.
FIELDS = (
    *("next", "grab", "rows", "values", "bits", "x", "y", "values_stride", "bits_stride", "y_stride", "scales"),
    *("blocks", "tail_values", "tail_bits", "tail_y", "panel", "panels", "chunks", "chunk_stride"),
)
_PLACES = {name: place for place, name in enumerate(FIELDS)}
_GRAIN = 1 << 18  # products of a weight that are worth a thread: some ten microseconds
_BITES = 8  # times that a thread comes back for more rows, so that one held up by other work gets fewer
Job = np.ndarray[Any, np.dtype[np.int64]]


def job(packed: Packed, columns: int, scales: Tensor | None = None) -> Job:
    """What stays the same for all products with a matrix, read in blocks of so many columns.

    `scales` (rows,), float32: what whole numbers of int8 are multiplied by; such rows are made dense in float32.
    """
    size, rest = packed.values.element_size(), packed.columns % columns
    told = np.zeros(len(FIELDS), dtype=np.int64)
    _tell(
        told,
        rows=packed.rows,
        values=packed.values.data_ptr(),
        bits=packed.bits.data_ptr(),
        values_stride=packed.values.stride(0) * size,
        bits_stride=packed.bits.stride(0),
        blocks=packed.columns // columns,
        tail_values=rest // 2 * size,
        tail_bits=-(-rest // 8),
        tail_y=rest * (size if scales is None else scales.element_size()),
        scales=0 if scales is None else scales.data_ptr(),
    )
    return told


def _tell(told: Job, **fields: int) -> None:
    for name, value in fields.items():
        told[_PLACES[name]] = value


def run(kernel: Callable[[int], None], address: int, template: Job, rows: int, work: int, **fields: int) -> None:
    """Run a kernel over `rows` rows that cost `work` products in all, as many of torch's threads as are worth it."""
    team = max(1, min(torch.get_num_threads(), work // _GRAIN))
    share = rows if team == 1 else -(-rows // (team * _BITES))
    told = template.copy()  # every call has its own: Python's threads may multiply by one matrix at once
    _tell(told, grab=-(-share // GROUP) * GROUP, **fields)
    if team > 1 and (parallel := _parallel()):
        parallel(address, told.ctypes.data, team, 0)
    else:
        kernel(told.ctypes.data)


@functools.cache
def _parallel() -> Callable[[int, int, int, int], None] | None:
    """GOMP_parallel of the OpenMP that torch computes with: a pool of our own would compete with torch's threads.

    None where torch was built without it; kernels then run in the calling thread alone.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return function
