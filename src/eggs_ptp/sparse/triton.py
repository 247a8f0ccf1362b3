"""The Triton backend: products with packed matrices on NVIDIA GPUs, any N:M, from the packed tensors themselves.

Up to `MAX_DIRECT_BATCH` inputs the kept values are multiplied in place. Up to `MAX_TILED_BATCH`, tiles are unpacked in
registers and multiplied by tensor cores. For more inputs, rows are unpacked into memory for the dense product. Nothing
waits for the GPU, so products can be captured in CUDA graphs. The order of sums depends on the shapes and the kind of
GPU alone.
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.pack import FLOAT_DTYPES, Packed
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse.backends import Backend

# Both from counts of bytes and instructions, not measured: `python benchmarks/gpu.py --thresholds` times either side.
MAX_DIRECT_BATCH = 1
MAX_TILED_BATCH = 128
MIN_CAPABILITY = (8, 0)  # the compute capability from which on tensor cores multiply bfloat16
MIN_TRITON = (3, 3)  # the first version of triton that compiles these kernels
_SCRATCH = 1 << 26  # weights unpacked into memory at a time
_ADD_BLOCK = 1 << 10  # outputs that one program of `add_splits` computes


@dataclass(frozen=True)
class Tile:
    """How much one program computes at a time.

    Attributes:
        height: Rows.
        width: Bytes of bits; a byte is eight columns.
        parts: Parts of the columns that are summed in parallel.
        warps: Warps of the program.
    """

    height: int
    width: int
    parts: int
    warps: int


# With GATHER a warp reads 64 neighbouring inputs for four rows, at the columns of their kept weights. With SELECT, for
# 2:4, it reads 256 neighbouring inputs, each thread eight of them for all four rows.
GATHER = Tile(4, 8, 8, 8)
SELECT = Tile(4, 32, 4, 4)
BY_TILES = Tile(64, 8, 1, 4)
UNPACK = Tile(16, 32, 1, 4)


def unsupported_reason(
    device: torch.device, dtype: torch.dtype, _pattern: Pattern, _rows: int, _columns: int, _batch: int
) -> str | None:
    """Return why this backend does not compute a product, or None."""
    if device.type != "cuda":
        return f"device {device.type}: supports NVIDIA GPUs only"
    if dtype not in FLOAT_DTYPES:
        return f"type {dtype}: supports float32, bfloat16 and float16"
    return missing_requirement(device)


@functools.cache
def missing_requirement(device: torch.device) -> str | None:
    """Return what this machine lacks for the kernels, or None."""
    if torch.version.hip is not None:
        return "this torch was built for AMD GPUs, and the kernels are written for NVIDIA's"
    try:
        if tuple(map(int, version("triton").split(".")[:2])) < MIN_TRITON:
            return f"triton {version('triton')}: needs {'.'.join(map(str, MIN_TRITON))} or later"
    except PackageNotFoundError:
        return "triton is not installed; pip install triton"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}: needs {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
    return None


@dataclass(frozen=True)
class State:
    """A packed matrix and what its products need.

    Attributes:
        packed: The matrix.
        positions: The columns of each byte's set bits, see `bit_positions`.
        processors: Multiprocessors of its device.
    """

    packed: Packed
    positions: Tensor
    processors: int

    def of(self, packed: Packed) -> "State":
        """Return the state of some rows of the matrix."""
        return State(packed, self.positions, self.processors)


def prepare(packed: Packed) -> State:
    """Return the state of a matrix; kernels read its packed tensors."""
    device = packed.values.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return State(packed, bit_positions(device), processors)


@functools.cache
def bit_positions(device: torch.device) -> Tensor:
    """Return, for each byte, the positions of its set bits, the lowest first, four bits each: (256,), int32."""
    words = []
    for byte in range(256):
        positions = [bit for bit in range(8) if byte >> bit & 1]
        words.append(sum(position << 4 * index for index, position in enumerate(positions)))
    return torch.tensor(words, dtype=torch.int32, device=device)


def linear(x: Tensor, state: State) -> Tensor:
    """Compute y = x W^T, (batch, rows), summed in float32 and rounded once.

    A pruned weight counts as a zero, so that infinities and NaNs come out as from the dense product.
    """
    # float32 takes more registers per tile, and has no tensor cores.
    max_tiled_batch = MAX_TILED_BATCH if x.itemsize == 2 else MAX_TILED_BATCH // 4
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        if x.shape[0] <= MAX_DIRECT_BATCH:
            return multiply_directly(x, state)
        if x.shape[0] <= max_tiled_batch:
            return multiply_by_tiles(x, state)
        return multiply_unpacked(x, state)


def multiply_directly(x: Tensor, state: State, tile: Tile | None = None) -> Tensor:
    """Compute `linear` for any batch by the kept values in place, one input after the other."""
    from eggs_ptp.sparse import triton_kernel

    packed = state.packed
    pattern = packed.pattern
    is_2_of_4 = (pattern.keep, pattern.group) == (2, 4)
    tile = tile or (SELECT if is_2_of_4 else GATHER)
    row_tiles = -(-packed.rows // tile.height)
    unit = _group_bytes(pattern)
    splits, split_bytes = column_splits(packed, row_tiles, tile.parts * tile.width, state.processors)
    out = _allocate_output(x, packed.rows, splits)
    arguments: dict[str, Any] = {
        **_matrix_arguments(packed),
        "x": x,
        "out": out,
        "split_bytes": split_bytes,
        "part_bytes": -(-split_bytes // tile.parts // unit) * unit,
        "full_bytes": 8 % pattern.group == 0 and packed.columns % 8 == 0,
        "parts": tile.parts,
        "height": tile.height,
        "width": tile.width,
        "num_warps": tile.warps,
    }
    grid = (row_tiles, splits, x.shape[0])
    if is_2_of_4:
        triton_kernel.product_2_of_4[grid](**arguments)
    else:
        triton_kernel.product[grid](
            **arguments,
            positions=state.positions,
            keep=pattern.keep,
            group=pattern.group,
            slots=_next_power_of_two(max_values_per_byte(pattern)),
        )
    return _add_splits(out, x, packed.rows)


def multiply_by_tiles(x: Tensor, state: State, tile: Tile = BY_TILES) -> Tensor:
    """Compute `linear` by tiles that are unpacked in registers and multiplied by tensor cores."""
    from eggs_ptp.sparse import triton_tiles

    packed = state.packed
    batch = x.shape[0]
    row_tiles = -(-packed.rows // tile.height)
    splits, split_bytes = column_splits(packed, row_tiles, tile.width, state.processors)
    out = _allocate_output(x, packed.rows, splits)
    triton_tiles.by_tiles[(row_tiles, splits)](
        **_matrix_arguments(packed),
        x=x,
        out=out,
        split_bytes=split_bytes,
        batch=batch,
        keep=packed.pattern.keep,
        group=packed.pattern.group,
        inputs=max(16, _next_power_of_two(batch)),
        height=tile.height,
        width=tile.width,
        num_warps=tile.warps,
    )
    return _add_splits(out, x, packed.rows)


def multiply_unpacked(x: Tensor, state: State) -> Tensor:
    """Compute `linear` by the dense product of rows that are unpacked into memory."""
    packed = state.packed
    y = x.new_empty(x.shape[0], packed.rows)
    for start, rows in packed.tiles(_SCRATCH):
        y[:, start : start + rows.rows] = dense_linear(x, unpacked(state.of(rows)))
    return y


def unpacked(state: State, tile: Tile = UNPACK) -> Tensor:
    """Return the matrix (rows, columns) with its zeros, in its packed column order."""
    from eggs_ptp.sparse import triton_tiles

    packed = state.packed
    out = packed.values.new_empty(packed.rows, packed.columns)
    row_tiles = -(-packed.rows // tile.height)
    splits, split_bytes = column_splits(packed, row_tiles, tile.width, state.processors)
    triton_tiles.unpack[(row_tiles, splits)](
        **_matrix_arguments(packed),
        out=out,
        split_bytes=split_bytes,
        keep=packed.pattern.keep,
        group=packed.pattern.group,
        height=tile.height,
        width=tile.width,
        num_warps=tile.warps,
    )
    return out


def _matrix_arguments(packed: Packed) -> dict[str, Any]:
    """Return the arguments of all kernels that describe a matrix."""
    return {
        "values": packed.values,
        "bits": packed.bits,
        "rows": packed.rows,
        "columns": packed.columns,
        "value_stride": packed.values.stride(0),
        "bit_stride": packed.bits.stride(0),
    }


def column_splits(packed: Packed, row_tiles: int, width: int, processors: int) -> tuple[int, int]:
    """Divide the columns of a matrix among programs, so that the GPU has enough of them.

    If the tiles of rows alone give every multiprocessor two programs, columns are not split: adding up the splits
    takes one kernel more.

    Args:
        packed: The matrix.
        row_tiles: Programs along the rows.
        width: Bytes of bits that a program reads at a time.
        processors: Multiprocessors of the GPU.

    Returns:
        The number of splits, and the bytes of bits in each: whole tiles, that begin with a group.
    """
    unit = _group_bytes(packed.pattern)
    step = -(-width // unit) * unit
    steps = -(-packed.columns // (8 * step))
    max_splits = min(steps, max(1, 2 * processors // row_tiles))
    steps_per_split = -(-steps // max_splits)
    return -(-steps // steps_per_split), steps_per_split * step


def _group_bytes(pattern: Pattern) -> int:
    """Return the fewest bytes of bits that are whole groups."""
    return math.lcm(8, pattern.group) // 8


def max_values_per_byte(pattern: Pattern) -> int:
    """Return the most values that the columns of one byte of bits can have."""
    if 8 % pattern.group == 0:
        return 8 * pattern.keep // pattern.group
    return min(8, 2 * pattern.keep if pattern.group >= 8 else 8)


def _next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def _allocate_output(x: Tensor, rows: int, splits: int) -> Tensor:
    """Return the output of a kernel, (splits, batch, rows): the product, or one float32 sum per split."""
    if splits == 1:
        return x.new_empty(1, x.shape[0], rows)
    return x.new_empty(splits, x.shape[0], rows, dtype=torch.float32)


def _add_splits(out: Tensor, x: Tensor, rows: int) -> Tensor:
    """Return the product (batch, rows): the sum of the splits, rounded to the type of x."""
    if out.shape[0] == 1:
        return out[0]
    from eggs_ptp.sparse import triton_tiles

    y = x.new_empty(x.shape[0], rows)
    grid: Any = (-(-y.numel() // _ADD_BLOCK),)
    triton_tiles.add_splits[grid](out, y, y.numel(), splits=out.shape[0], block=_ADD_BLOCK)
    return y


TRITON = Backend(
    name="triton",
    description="Triton kernels on NVIDIA GPUs: any N:M",
    unsupported_reason=unsupported_reason,
    prepare=prepare,
    linear=linear,
    priority=100,
)
