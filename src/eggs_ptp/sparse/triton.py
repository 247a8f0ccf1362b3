"""The Triton backend: products with packed matrices on NVIDIA GPUs, any N:M, from the packed tensors themselves.

Up to `DIRECT` inputs kept values are multiplied where they are, up to `TILED` tiles are made dense in registers and
multiplied by tensor cores, and beyond that rows are made dense in memory for the dense product. Nothing waits for the
GPU, so products can be captured in CUDA graphs. What is summed in which order depends on shapes and the GPU's kind.
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

from eggs_ptp.core.pack import FLOATS, Packed
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse.backends import Backend

# From counts of bytes and instructions, not from measurements: `python benchmarks/gpu.py --thresholds` has both sides.
DIRECT, TILED = 1, 128
LEAST = (8, 0)  # the compute capability from which tensor cores take bfloat16
OLDEST = (3, 3)  # of the versions of triton, the first that compiles these kernels
_SCRATCH = 1 << 26  # weights made dense in memory at a time
_MEETING = 1 << 10  # outputs that one program of the last kernel adds up


@dataclass(frozen=True)
class Tile:
    """How much one program does: rows, bytes of bits at a time, parts of the columns at once, and warps."""

    height: int
    width: int
    parts: int
    warps: int


# A byte of bits is eight columns. GATHER has a warp read 64 neighbouring inputs for four rows, at the places of their
# kept weights; SELECT, for 2:4, 256 neighbouring ones, each thread eight of them for all four rows.
GATHER, SELECT = Tile(4, 8, 8, 8), Tile(4, 32, 4, 4)
BY_TILES, UNPACK = Tile(64, 8, 1, 4), Tile(16, 32, 1, 4)


def why_not(device: torch.device, dtype: torch.dtype, _: Pattern, __: int, ___: int, ____: int) -> str | None:
    """The reason for which this backend does not compute a product, or None."""
    if device.type != "cuda":
        return f"device {device.type}, for NVIDIA GPUs only"
    if dtype not in FLOATS:
        return f"type {dtype}, for float32, bfloat16 and float16"
    return _lacking(device)


@functools.cache
def _lacking(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "this torch is for AMD, the kernels were written for NVIDIA"
    try:
        if tuple(map(int, version("triton").split(".")[:2])) < OLDEST:
            return f"triton {version('triton')}, from {'.'.join(map(str, OLDEST))} on"
    except PackageNotFoundError:
        return "triton is not installed; pip install triton"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if (found := torch.cuda.get_device_capability(device)) < LEAST:
        return f"compute capability {found[0]}.{found[1]}, from {LEAST[0]}.{LEAST[1]} on"
    return None


@dataclass(frozen=True)
class State:
    """A packed matrix, the places of a byte's ones, and how many processors its device has."""

    packed: Packed
    table: Tensor
    processors: int

    def of(self, packed: Packed) -> "State":
        """The same for some rows of the matrix."""
        return State(packed, self.table, self.processors)


def prepare(packed: Packed) -> State:
    """No layout of its own: kernels read the packed tensors."""
    device = packed.values.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return State(packed, _table(device), processors)


@functools.cache
def _table(device: torch.device) -> Tensor:
    """For each byte the columns of its ones, the lowest first, four bits each."""
    words = [sum(place << 4 * i for i, place in enumerate(j for j in range(8) if byte >> j & 1)) for byte in range(256)]
    return torch.tensor(words, dtype=torch.int32, device=device)


def linear(x: Tensor, state: State) -> Tensor:
    """Y = x W^T, (batch, rows), summed in float32 and rounded once, in tensor cores beyond `DIRECT` inputs.

    A pruned weight counts as a zero, so that infinities and NaNs come out as from the dense product.
    """
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        if x.shape[0] <= DIRECT:
            return _direct(x, state)
        if x.shape[0] <= (
            TILED if x.itemsize == 2 else TILED // 4
        ):  # float32 takes more registers, and no tensor cores
            return _by_tiles(x, state)
        return _unpacked(x, state)


def _direct(x: Tensor, state: State, tile: Tile | None = None) -> Tensor:
    from eggs_ptp.sparse import triton_kernel

    packed, pattern = state.packed, state.packed.pattern
    selects = (pattern.keep, pattern.group) == (2, 4)
    tile = tile or (SELECT if selects else GATHER)
    heights, unit = -(-packed.rows // tile.height), _unit(pattern)
    splits, split_bytes = _splits(packed, heights, tile.parts * tile.width, state.processors)
    out = _room(x, packed.rows, splits)
    how: dict[str, Any] = {
        **_tensors(packed),
        "x": x,
        "out": out,
        "split_bytes": split_bytes,
        "part_bytes": -(-split_bytes // tile.parts // unit) * unit,
        "whole": 8 % pattern.group == 0 and packed.columns % 8 == 0,
        "parts": tile.parts,
        "height": tile.height,
        "width": tile.width,
        "num_warps": tile.warps,
    }
    grid = (heights, splits, x.shape[0])
    if selects:
        triton_kernel.product_2_of_4[grid](**how)
    else:
        slots = _power(_most_values(pattern))
        triton_kernel.product[grid](**how, table=state.table, keep=pattern.keep, group=pattern.group, slots=slots)
    return _added(out, x, packed.rows)


def _by_tiles(x: Tensor, state: State, tile: Tile = BY_TILES) -> Tensor:
    from eggs_ptp.sparse import triton_tiles

    packed, batch = state.packed, x.shape[0]
    heights, inputs = -(-packed.rows // tile.height), max(16, _power(batch))
    splits, split_bytes = _splits(packed, heights, tile.width, state.processors)
    out = _room(x, packed.rows, splits)
    triton_tiles.by_tiles[(heights, splits)](
        **_tensors(packed),
        x=x,
        out=out,
        split_bytes=split_bytes,
        batch=batch,
        keep=packed.pattern.keep,
        group=packed.pattern.group,
        inputs=inputs,
        height=tile.height,
        width=tile.width,
        num_warps=tile.warps,
    )
    return _added(out, x, packed.rows)


def _unpacked(x: Tensor, state: State) -> Tensor:
    packed = state.packed
    y = x.new_empty(x.shape[0], packed.rows)
    for start, part in packed.tiles(_SCRATCH):
        y[:, start : start + part.rows] = dense_linear(x, unpacked(state.of(part)))
    return y


def unpacked(state: State, tile: Tile = UNPACK) -> Tensor:
    """The matrix (rows, columns) with its zeros, in its packed column order."""
    from eggs_ptp.sparse import triton_tiles

    packed = state.packed
    out = packed.values.new_empty(packed.rows, packed.columns)
    heights = -(-packed.rows // tile.height)
    splits, split_bytes = _splits(packed, heights, tile.width, state.processors)
    triton_tiles.unpack[(heights, splits)](
        **_tensors(packed),
        out=out,
        split_bytes=split_bytes,
        keep=packed.pattern.keep,
        group=packed.pattern.group,
        height=tile.height,
        width=tile.width,
        num_warps=tile.warps,
    )
    return out


def _tensors(packed: Packed) -> dict[str, Any]:
    """What every kernel is told of a matrix."""
    return {
        "values": packed.values,
        "bits": packed.bits,
        "rows": packed.rows,
        "columns": packed.columns,
        "value_stride": packed.values.stride(0),
        "bit_stride": packed.bits.stride(0),
    }


def _splits(packed: Packed, heights: int, width: int, processors: int) -> tuple[int, int]:
    """Into how many parts the columns are cut, and the bytes of bits in each: whole tiles that begin with a group.

    Where rows alone give every processor two programs, nothing is cut: adding up costs a kernel more.
    """
    unit = _unit(packed.pattern)
    step = -(-width // unit) * unit
    steps = -(-packed.columns // (8 * step))
    wanted = min(steps, max(1, 2 * processors // heights))
    size = -(-steps // wanted)
    return -(-steps // size), size * step


def _unit(pattern: Pattern) -> int:
    """The fewest bytes of bits that are whole groups."""
    return math.lcm(8, pattern.group) // 8


def _most_values(pattern: Pattern) -> int:
    """The most values that a byte's columns can have."""
    if 8 % pattern.group == 0:
        return 8 * pattern.keep // pattern.group
    return min(8, 2 * pattern.keep if pattern.group >= 8 else 8)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _room(x: Tensor, rows: int, splits: int) -> Tensor:
    """Where a kernel writes: the product itself, or one a split, (splits, batch, rows), to be added."""
    if splits == 1:
        return x.new_empty(1, x.shape[0], rows)
    return x.new_empty(splits, x.shape[0], rows, dtype=torch.float32)


def _added(out: Tensor, x: Tensor, rows: int) -> Tensor:
    if out.shape[0] == 1:
        return out[0]
    from eggs_ptp.sparse import triton_tiles

    y = x.new_empty(x.shape[0], rows)
    grid: Any = (-(-y.numel() // _MEETING),)
    triton_tiles.add_splits[grid](out, y, y.numel(), splits=out.shape[0], block=_MEETING)
    return y


TRITON = Backend("triton", "Triton kernels on NVIDIA GPUs: any N:M", why_not, prepare, linear)
