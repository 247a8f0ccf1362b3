"""The CPU backend: kernels that numba compiles for this processor at first use, run by torch's own threads.

The kernels read the packed tensors themselves, so a module holds nothing else in memory. Up to a measured number of
inputs (`MAX_DIRECT_BATCH`) they multiply the kept values in place; for more inputs, rows are unpacked a tile at a time
and multiplied by torch.
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

from eggs_ptp.core.pack import Packed
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.quantisation import GRIDS
from eggs_ptp.sparse.backends import Backend
from eggs_ptp.sparse.cpu_job import MAX_INPUTS, ROW_GROUP, Job, make_job, run

TIER = "EGGS_CPU_TIER"
# The most inputs for which kept values are multiplied in place; for more, unpacking rows was measured to be faster.
MAX_DIRECT_BATCH = 64
MAX_DIRECT_BATCH_BFLOAT16 = 32  # where the processor has dense products of bfloat16
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_TIERS = {
    "avx512bf16": ("avx512f", "avx512bw", "avx512vl", "avx512vbmi2", "avx512bf16", "fma"),
    "avx512vbmi2": ("avx512f", "avx512bw", "avx512vl", "avx512vbmi2", "fma"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "fma"),
    "avx2": ("avx2", "fma", "f16c"),
}
_TILE = 1 << 20  # weights unpacked at a time
_PANEL = 16 << 10  # bytes of x that one tile of sums reads before the next tile does


@functools.cache
def tiers() -> tuple[str, ...]:
    """Return the instruction sets that this processor has and kernels exist for, the best one first."""
    from llvmlite import binding

    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this kind of processor
        return ()
    return tuple(name for name, needed in _TIERS.items() if all(features.get(feature) for feature in needed))


@functools.cache
def tier() -> str:
    """Return the instruction set that kernels use: the best one, or the one that EGGS_CPU_TIER names."""
    return os.environ.get(TIER) or tiers()[0]


@functools.cache
def missing_requirement() -> str | None:
    """Return what this machine lacks for the kernels, or None."""
    try:
        from numba import config
    except ModuleNotFoundError:
        return "numba is not installed; pip install numba"
    except ImportError as error:
        return f"numba cannot be imported: {error}"
    if config.CPU_NAME or config.CPU_FEATURES or not config.ENABLE_AVX:
        return "numba is set to compile for another processor (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES, NUMBA_ENABLE_AVX)"
    if not tiers():
        return "this processor has neither AVX2 nor AVX-512"
    if tier() not in tiers():
        return f"{TIER} is {tier()}; this processor has {', '.join(tiers())}"
    return None


def unsupported_reason(
    device: torch.device, dtype: torch.dtype, pattern: Pattern, _rows: int, _columns: int, _batch: int
) -> str | None:
    """Return why this backend does not compute a product, or None."""
    if device.type != "cpu":
        return f"device {device.type}: supports the CPU only"
    if dtype not in _DTYPE_NAMES:
        return f"type {dtype}: supports {', '.join(_DTYPE_NAMES.values())}"
    if 2 * pattern.keep != pattern.group or 8 % pattern.group:
        return f"pattern {pattern}: supports 1:2, 2:4 and 4:8"
    return missing_requirement()


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        compiled: Numba's object, which keeps the code in memory.
        layout: How the kernel reads values and inputs, a `cpu_block.BlockLayout`.
        inputs: How many inputs it multiplies at once.
        address: Address of the code.
        call: The code as a function of the address of a job.
    """

    compiled: Any
    layout: Any
    inputs: int
    address: int
    call: Callable[[int], None]


@functools.cache
def kernel(task: str, dtype: torch.dtype, inputs: int, value_kind: str = "float") -> Kernel:
    """Return a kernel; it is compiled at first use.

    Args:
        task: "product" or "unpack".
        dtype: Type of inputs and outputs.
        inputs: How many inputs it multiplies at once: 1, 4 or 8.
        value_kind: Kind of the packed values, "float" (of that type) or "int8".
    """
    from eggs_ptp.sparse import cpu_block, cpu_kernel

    dtype_name = _DTYPE_NAMES[dtype]
    compiled = cpu_kernel.compiled(task, tier(), dtype_name, inputs, value_kind)
    layout = cpu_block.block_layout(tier(), dtype_name, inputs, value_kind)
    call = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t)(compiled.address)
    return Kernel(compiled, layout, inputs, compiled.address, call)


@dataclass(frozen=True)
class State:
    """A packed matrix and the descriptions of it that kernels read.

    Attributes:
        packed: The matrix.
        jobs: A job for each width of block that kernels use.
        scales: (rows,), float32: the factors of the integers of int8 values; None for float values.
    """

    packed: Packed
    jobs: Mapping[int, Job]
    scales: Tensor | None

    @property
    def multiplications(self) -> int:
        """Multiplications for one input, counting the zeros."""
        return self.packed.rows * self.packed.columns


def prepare(packed: Packed) -> State:
    """Describe a matrix for the kernels: they read the packed tensors, and for int8 one more float32 per row."""
    from eggs_ptp.sparse.cpu_block import block_layout

    if packed.scales is None:
        scales = None
        dtype_name = _DTYPE_NAMES[packed.dtype]
    else:
        scales = (packed.scales.float() / GRIDS[packed.kind].max_level).view(-1)
        dtype_name = "float32"
    widths = {block_layout(tier(), dtype_name, inputs, packed.kind).columns for inputs in (1, 4)}
    return State(packed, {width: make_job(packed, width, scales) for width in widths}, scales)


def linear(x: Tensor, state: State) -> Tensor:
    """Compute y = x W^T, (batch, rows), summed in float32 and rounded once.

    A pruned weight counts as a zero, so that infinities and NaNs come out as from the dense product. A row is summed
    in the same order for any number of threads.
    """
    batch = x.shape[0]
    dtype = x.dtype
    if state.scales is not None:
        x = x.float()  # integers are multiplied with float32; a kernel would convert x again for every row
    limit = MAX_DIRECT_BATCH_BFLOAT16 if x.dtype == torch.bfloat16 and _is_native(x.dtype) else MAX_DIRECT_BATCH
    if batch > limit:
        return _multiply_by_tiles(x, state).to(dtype)
    if batch <= MAX_INPUTS:
        return _multiply_directly(x, state).to(dtype)
    return torch.cat([_multiply_directly(inputs, state) for inputs in x.split(MAX_INPUTS)]).to(dtype)


def _multiply_directly(x: Tensor, state: State) -> Tensor:
    """Multiply by the kept values in place, a few inputs at a time."""
    batch, columns = x.shape
    if batch == 1:
        inputs = 1
    elif tier() != "avx2" and -batch % 8 < 4:
        inputs = 8
    else:
        inputs = 4
    product = kernel("product", x.dtype, inputs, state.packed.kind)
    width = product.layout.columns
    chunks = -(-batch // inputs)
    blocks = columns // width
    arranged_x = _arrange_inputs(x, product, chunks)
    block_bytes = inputs * width * x.element_size()
    panel = max(1, blocks if inputs == 1 else _PANEL // block_bytes)
    y = x.new_empty(chunks * inputs, state.packed.rows)
    run(
        product.call,
        product.address,
        state.jobs[width],
        state.packed.rows,
        state.multiplications * chunks,
        x=arranged_x.data_ptr(),
        y=y.data_ptr(),
        y_stride=x.element_size() * state.packed.rows,
        panel=panel,
        panels=max(1, -(-blocks // panel)),
        chunks=chunks,
        chunk_stride=block_bytes * -(-columns // width),
    )
    return y if batch == y.shape[0] else y[:batch]


def _arrange_inputs(x: Tensor, product: Kernel, chunks: int) -> Tensor:
    """Return x as a kernel reads it, (chunks, blocks, inputs, columns of a block), padded with zeros.

    So no two inputs of a chunk are a power of two apart in memory, where they would share lines of the cache.
    """
    columns = product.layout.columns
    blocks = -(-x.shape[1] // columns)
    padded_shape = (chunks * product.inputs, blocks * columns)
    if padded_shape != x.shape:
        padded = x.new_zeros(padded_shape)
        padded[: x.shape[0], : x.shape[1]] = x
        x = padded
    if product.inputs == 1:
        return x
    return x.view(chunks, product.inputs, blocks, columns).transpose(1, 2).contiguous()


def _multiply_by_tiles(x: Tensor, state: State) -> Tensor:
    """Unpack a tile of rows at a time and multiply it as dense."""
    packed = state.packed
    scales = state.scales
    y = x.new_empty(x.shape[0], packed.rows)
    tile_rows = min(packed.rows, max(ROW_GROUP, _TILE // packed.columns))
    buffer = torch.empty((tile_rows, packed.columns), dtype=x.dtype)
    product_x = x if _is_native(x.dtype) else x.float()
    for start in range(0, packed.rows, tile_rows):
        tile = packed.row_slice(start, start + tile_rows)
        dense_tile = unpack(tile, buffer[: tile.rows]).to(product_x.dtype)
        product = _dense_product(product_x, dense_tile)
        rows = slice(start, start + tile.rows)
        y[:, rows] = product if scales is None else product * scales[rows]
    return y


def _is_native(dtype: torch.dtype) -> bool:
    """Return whether torch multiplies this type at least as fast as float32; other types are several times slower."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and tier() == "avx512bf16")


def _dense_product(x: Tensor, weight: Tensor) -> Tensor:
    """Compute x W^T by oneDNN; torch would use MKL for float32, which is half as fast on other makers' processors."""
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return product
    return dense_linear(x, weight)


def unpack(packed: Packed, out: Tensor) -> Tensor:
    """Write the packed matrix, in its packed column order, into `out` (rows, columns), and return `out`.

    Int8 values are written as float32 integers, not multiplied by their scales.
    """
    dtype = packed.dtype if packed.scales is None else torch.float32
    unpacking = kernel("unpack", dtype, 1, packed.kind)
    state = prepare(packed)
    run(
        unpacking.call,
        unpacking.address,
        state.jobs[unpacking.layout.columns],
        packed.rows,
        state.multiplications,
        y=out.data_ptr(),
        y_stride=out.stride(0) * out.element_size(),
    )
    return out


CPU = Backend(
    name="cpu",
    description="kernels compiled by numba, AVX2 or AVX-512: 1:2, 2:4 and 4:8, float and int8 values",
    unsupported_reason=unsupported_reason,
    prepare=prepare,
    linear=linear,
    value_kinds=("float", "int8"),
    priority=300,
)
