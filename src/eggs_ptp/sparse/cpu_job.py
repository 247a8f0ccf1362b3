"""Jobs of the CPU kernels: the description of a product that a kernel reads, and the threads that run it."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eggs_ptp.core.pack import Packed

ROW_GROUP = 16  # rows that a thread works on at a time; threads take rows in multiples of it
MAX_INPUTS = 16  # inputs in one run
# The fields of a job, as int64. Addresses and strides are in bytes.
#   next: first row that no thread has taken yet; grab: rows that a thread takes at once; rows: all rows
#   values, bits, x, y: addresses of the tensors; scales: address of one float32 per row, for int8 values
#   values_stride, bits_stride: from row to row; y_stride: from one row of y to the next
#   blocks: whole blocks of columns in a row; tail_values, tail_bits, tail_y: bytes of a row beyond these
#   panel: blocks in a panel of columns; panels: how many; chunks: groups of inputs; chunk_stride: from chunk to chunk
FIELDS = (
    *("next", "grab", "rows", "values", "bits", "x", "y", "values_stride", "bits_stride", "y_stride", "scales"),
    *("blocks", "tail_values", "tail_bits", "tail_y", "panel", "panels", "chunks", "chunk_stride"),
)
_FIELD_INDEX = {name: index for index, name in enumerate(FIELDS)}
_WORK_PER_THREAD = 1 << 18  # multiplications that are worth a thread: some ten microseconds
_TAKES_PER_THREAD = 8  # times that a thread takes rows, so that one slowed down by other work takes fewer
Job = np.ndarray[Any, np.dtype[np.int64]]


def make_job(packed: Packed, block_columns: int, scales: Tensor | None = None) -> Job:
    """Return the fields that are the same for all products with a matrix.

    Args:
        packed: The matrix.
        block_columns: Width of the blocks in which the kernel reads it.
        scales: (rows,), float32: the factors of the integers of int8 values; such rows are unpacked as float32.
    """
    value_bytes = packed.values.element_size()
    tail_columns = packed.columns % block_columns
    job = np.zeros(len(FIELDS), dtype=np.int64)
    _set_fields(
        job,
        rows=packed.rows,
        values=packed.values.data_ptr(),
        bits=packed.bits.data_ptr(),
        values_stride=packed.values.stride(0) * value_bytes,
        bits_stride=packed.bits.stride(0),
        blocks=packed.columns // block_columns,
        tail_values=tail_columns // 2 * value_bytes,
        tail_bits=-(-tail_columns // 8),
        tail_y=tail_columns * (value_bytes if scales is None else scales.element_size()),
        scales=0 if scales is None else scales.data_ptr(),
    )
    return job


def _set_fields(job: Job, **fields: int) -> None:
    """Set some fields of a job."""
    for name, value in fields.items():
        job[_FIELD_INDEX[name]] = value


def run(kernel: Callable[[int], None], address: int, template: Job, rows: int, work: int, **fields: int) -> None:
    """Run a kernel over the rows of a matrix, in as many of torch's threads as the work is worth.

    Args:
        kernel: The kernel as a function of the address of a job.
        address: Address of its code.
        template: Job of the matrix, as of `make_job`; it is copied.
        rows: Rows of the matrix.
        work: Multiplications in all.
        **fields: The other fields of the job.
    """
    threads = max(1, min(torch.get_num_threads(), work // _WORK_PER_THREAD))
    share = rows if threads == 1 else -(-rows // (threads * _TAKES_PER_THREAD))
    job = template.copy()  # one for every call: several Python threads may multiply by one matrix at once
    _set_fields(job, grab=-(-share // ROW_GROUP) * ROW_GROUP, **fields)
    if threads > 1 and (parallel := _openmp_parallel()):
        parallel(address, job.ctypes.data, threads, 0)
    else:
        kernel(job.ctypes.data)


@functools.cache
def _openmp_parallel() -> Callable[[int, int, int, int], None] | None:
    """Return GOMP_parallel of the OpenMP that torch uses: a second pool of threads would compete with torch's.

    None if torch was built without it; kernels then run in the calling thread alone.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function
