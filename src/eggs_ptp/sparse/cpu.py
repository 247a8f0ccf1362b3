"""The CPU backend: kernels compiled for this processor at first use, run by torch's own threads. No compiler needed.

The kernels read the packed tensors themselves, so a module has nothing else in memory. Up to a number of inputs that
was measured (`DIRECT`), kept values are multiplied where they are; beyond it, rows are made dense a tile at a time and
multiplied by torch.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.grid import GRIDS
from eggs_ptp.core.pack import Packed
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse.backends import Backend
from eggs_ptp.sparse.cpu_job import AT_ONCE, GROUP, Job, job, run

TIER = "EGGS_CPU_TIER"
# The most inputs for which kept values are multiplied where they are; beyond, making rows dense was measured faster.
DIRECT, DIRECT_BFLOAT16 = 64, 32  # the latter where dense products of bfloat16 are the processor's own
_KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_TIERS = {
    "avx512bf16": ("avx512f", "avx512bw", "avx512vl", "avx512vbmi2", "avx512bf16", "fma"),
    "avx512vbmi2": ("avx512f", "avx512bw", "avx512vl", "avx512vbmi2", "fma"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "fma"),
    "avx2": ("avx2", "fma", "f16c"),
}
_TILE = 1 << 20  # weights made dense at a time
_PANEL = 16 << 10  # bytes of x that one tile of sums goes through before the next one does


@functools.cache
def tiers() -> tuple[str, ...]:
    """The sets of instructions that this processor has and kernels exist for, the best one first."""
    from llvmlite import binding

    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this kind of processor
        return ()
    return tuple(name for name, needed in _TIERS.items() if all(features.get(each) for each in needed))


@functools.cache
def tier() -> str:
    """The instructions that kernels use: the best ones, or those that EGGS_CPU_TIER names."""
    return os.environ.get(TIER) or tiers()[0]


@functools.cache
def _lacking() -> str | None:
    try:
        from numba import config
    except ModuleNotFoundError:
        return "numba is not installed; pip install eggs-ptp[cpu]"
    except ImportError as error:
        return f"numba cannot be imported: {error}"
    if config.CPU_NAME or config.CPU_FEATURES or not config.ENABLE_AVX:
        return "numba is told to compile for another processor (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES, NUMBA_ENABLE_AVX)"
    if not tiers():
        return "this processor has neither AVX2 nor AVX-512"
    if tier() not in tiers():
        return f"{TIER} is {tier()}; this processor has {', '.join(tiers())}"
    return None


def why_not(
    device: torch.device, dtype: torch.dtype, pattern: Pattern, _rows: int, _columns: int, _batch: int
) -> str | None:
    """The reason for which this backend does not compute a product, or None."""
    if device.type != "cpu":
        return f"device {device.type}, for the CPU only"
    if dtype not in _KINDS:
        return f"type {dtype}, for {', '.join(_KINDS.values())}"
    if 2 * pattern.keep != pattern.group or 8 % pattern.group:
        return f"pattern {pattern}, for 1:2, 2:4 and 4:8"
    return _lacking()


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel; `machine` says how it reads values and inputs, `compiled` keeps its code in memory."""

    compiled: Any
    machine: Any
    inputs: int
    address: int
    call: Callable[[int], None]


@functools.cache
def kernel(task: str, dtype: torch.dtype, inputs: int, held: str = "float") -> Kernel:
    """The kernel of a task ("product", "unpack"), a type, its values and 1, 4 or 8 inputs; compiled at first use."""
    from eggs_ptp.sparse import cpu_block, cpu_kernel

    level, kind = tier(), _KINDS[dtype]
    made = cpu_kernel.compiled(task, level, kind, inputs, held)
    call = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t)(made.address)
    return Kernel(made, cpu_block.machine(level, kind, inputs, held), inputs, made.address, call)


@dataclass(frozen=True)
class State:
    """A packed matrix and what kernels are told about it: where its tensors are, for each width of blocks.

    `scales` (rows,), float32, is what whole numbers of int8 are multiplied by.
    """

    packed: Packed
    jobs: Mapping[int, Job]
    scales: Tensor | None

    @property
    def work(self) -> int:
        """Products with one input."""
        return self.packed.rows * self.packed.columns


def prepare(packed: Packed) -> State:
    """No layout of its own: kernels read the packed tensors, and beside them a float32 a row for values of int8."""
    from eggs_ptp.sparse.cpu_block import machine

    scales = None if packed.scales is None else (packed.scales.float() / GRIDS[packed.kind].top).view(-1)
    kind = _KINDS[packed.dtype] if scales is None else "float32"
    widths = {machine(tier(), kind, inputs, packed.kind).columns for inputs in (1, 4)}
    return State(packed, {width: job(packed, width, scales) for width in widths}, scales)


def linear(x: Tensor, state: State) -> Tensor:
    """Y = x W^T, (batch, rows), summed in float32 and rounded once.

    A pruned weight counts as a zero, so that infinities and NaNs come out as from the dense product. A row is summed
    in the same order whatever the number of threads.
    """
    batch, kind = x.shape[0], x.dtype
    if state.scales is not None:
        x = x.float()  # what whole numbers are multiplied with; a kernel would do it for every row anew
    if batch > (DIRECT_BFLOAT16 if x.dtype == torch.bfloat16 and _is_native(x.dtype) else DIRECT):
        return _by_tiles(x, state).to(kind)
    if batch <= AT_ONCE:
        return _direct(x, state).to(kind)
    return torch.cat([_direct(part, state) for part in x.split(AT_ONCE)]).to(kind)


def _direct(x: Tensor, state: State) -> Tensor:
    batch, columns = x.shape
    inputs = 1 if batch == 1 else 8 if tier() != "avx2" and -batch % 8 < 4 else 4
    made = kernel("product", x.dtype, inputs, state.packed.kind)
    chunks, blocks = -(-batch // inputs), columns // made.machine.columns
    laid = _laid_out(x, made, chunks)
    block = inputs * made.machine.columns * x.element_size()
    panel = max(1, blocks if inputs == 1 else _PANEL // block)
    y = x.new_empty(chunks * inputs, state.packed.rows)
    run(
        made.call,
        made.address,
        state.jobs[made.machine.columns],
        state.packed.rows,
        state.work * chunks,
        x=laid.data_ptr(),
        y=y.data_ptr(),
        y_stride=x.element_size() * state.packed.rows,
        panel=panel,
        panels=max(1, -(-blocks // panel)),
        chunks=chunks,
        chunk_stride=block * -(-columns // made.machine.columns),
    )
    return y if batch == y.shape[0] else y[:batch]


def _laid_out(x: Tensor, made: Kernel, chunks: int) -> Tensor:
    """X as the kernel reads it, (chunks, blocks, inputs, columns): no two inputs a power of two apart in memory."""
    columns = made.machine.columns
    blocks = -(-x.shape[1] // columns)
    rows, width = chunks * made.inputs, blocks * columns
    if (rows, width) != x.shape:
        padded = x.new_zeros(rows, width)
        padded[: x.shape[0], : x.shape[1]] = x
        x = padded
    if made.inputs == 1:
        return x
    return x.view(chunks, made.inputs, blocks, columns).transpose(1, 2).contiguous()


def _by_tiles(x: Tensor, state: State) -> Tensor:
    packed, scales = state.packed, state.scales
    y = x.new_empty(x.shape[0], packed.rows)
    shape = min(packed.rows, max(GROUP, _TILE // packed.columns)), packed.columns
    tile = torch.empty(shape, dtype=x.dtype)
    wide = x if _is_native(x.dtype) else x.float()
    for start in range(0, packed.rows, tile.shape[0]):
        part = packed.rows_from(start, start + tile.shape[0])
        dense = unpack(part, tile[: part.rows]).to(wide.dtype)
        product = _dense_product(wide, dense)
        y[:, start : start + part.rows] = product if scales is None else product * scales[start : start + part.rows]
    return y


def _is_native(dtype: torch.dtype) -> bool:
    """Whether torch multiplies this type as fast as float32 at least; others, several times slower."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and tier() == "avx512bf16")


def _dense_product(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T by oneDNN, where torch would take MKL for float32: half as fast on other makers' processors."""
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return product
    return dense_linear(x, weight)


def unpack(packed: Packed, out: Tensor) -> Tensor:
    """The packed matrix in its packed column order, into `out` (rows, columns).

    Whole numbers of int8 come as float32, not multiplied by their scales.
    """
    kind = packed.dtype if packed.scales is None else torch.float32
    made, state = kernel("unpack", kind, 1, packed.kind), prepare(packed)
    stride = out.stride(0) * out.element_size()
    run(
        made.call,
        made.address,
        state.jobs[made.machine.columns],
        packed.rows,
        state.work,
        y=out.data_ptr(),
        y_stride=stride,
    )
    return out


CPU = Backend(
    "cpu",
    "kernels compiled by numba: AVX2 or AVX-512, 1:2, 2:4 and 4:8, values as they are or int8",
    why_not,
    prepare,
    linear,
    ("float", "int8"),
)
