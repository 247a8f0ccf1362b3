"""Packed N:M matrices: the kept values row after row, and one bit a weight that says where they stood.

The values are those of the weight, or whole numbers with scales (`core/grid.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eggs_ptp.core.bits import is_exact, join_bits, places, split_bits
from eggs_ptp.core.grid import GRIDS, find_grid, join_nibbles, restore, scales_of, split_nibbles
from eggs_ptp.core.grid import quantise as to_grid
from eggs_ptp.core.order import check as check_order
from eggs_ptp.core.order import invert
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.errors import PatternError

KINDS = ("float", *GRIDS)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_TILE = 1 << 19  # weights worked on at a time: what is made on the way stays in the processor's cache


@dataclass(frozen=True)
class Packed:
    """An N:M matrix (rows, columns) without its zeros.

    Every group of M consecutive columns holds exactly N values, so those of group g of row r are
    `values[r, g * N : (g + 1) * N]`, by rising column. Bit `c % 8` (0 = the lowest) of `bits[r, c // 8]` is 1 where
    column c is kept; bits past the last column are 0. With an `order`, column i of the packed matrix is column
    `order[i]` of the weight: the weight times x is the packed matrix times `x[order]`.

    Quantised, values are whole numbers (int8; or int4, two to a byte of uint8, the first in the lower half, each plus
    8), and `scales` has one for every `grid.run` values of a row.

    Shapes: values (rows, columns / M * N), the weight's type, or int8; or (rows, columns / M * N / 2), uint8; bits
    (rows, ceil(columns / 8)), uint8; order (columns,), int32; scales (rows, groups), the weight's type.
    """

    values: Tensor
    bits: Tensor
    pattern: Pattern
    columns: int
    order: Tensor | None = None
    scales: Tensor | None = None

    @property
    def kind(self) -> str:
        """What its values are: "float", "int8" or "int4"."""
        return kind_of(self.values)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weight."""
        return self.values.dtype if self.scales is None else self.scales.dtype

    @property
    def kept(self) -> int:
        """Values of a row."""
        return self.columns // self.pattern.group * self.pattern.keep

    @property
    def rows(self) -> int:
        """Output features."""
        return self.values.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, as they are stored."""
        parts = {"values": self.values, "bits": self.bits, "scales": self.scales, "order": self.order}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def rows_from(self, start: int, stop: int) -> "Packed":
        """Rows `start` to `stop`, exclusive, as views."""
        scales = None if self.scales is None else self.scales[start:stop]
        return replace(self, values=self.values[start:stop], bits=self.bits[start:stop], scales=scales)

    def tiles(self, weights: int = _TILE) -> Iterator[tuple[int, "Packed"]]:
        """The rows in tiles of about `weights` columns times rows, each with the number of its first row."""
        height = max(1, weights // self.columns)
        for start in range(0, self.rows, height):
            yield start, self.rows_from(start, start + height)


def pack(weight: Tensor, pattern: AnyPattern, order: Tensor | None = None, *, name: str = "weight") -> Packed:
    """Pack an N:M weight (rows, columns); `order` is one in whose columns it is N:M.

    Whatever is not zero is kept. Where a group has fewer than N of these, its zeros fill the places: first the
    negative ones, then the lowest columns. So `unpack` gives back every bit, but for negative zeros of a group beyond
    its N places, which come back as +0.0; weights pruned by this package have none.

    Raises:
        PatternError: the pattern is unstructured, or does not fit the weight; says how many groups hold more.
        MethodError: `order` is no order of the columns.
    """
    pattern = structured(pattern, name)
    if weight.ndim != 2 or weight.dtype not in FLOATS:
        raise PatternError(
            f"{name}: expected a matrix of float32, bfloat16 or float16, got {weight.dtype} {tuple(weight.shape)}"
        )
    rows, columns = weight.shape
    pattern.check_width(columns, name)
    if order is not None:
        check_order(order, columns, name)
        order = order.to(weight.device, torch.int32)
    values = weight.new_empty(rows, columns // pattern.group * pattern.keep)
    bits = torch.empty(rows, -(-columns // 8), dtype=torch.uint8, device=weight.device)
    excess = 0
    for start, tile in Packed(values, bits, pattern, columns).tiles():
        dense = weight[start : start + tile.rows]
        dense = dense.contiguous() if order is None else dense.index_select(1, order)
        kept = _is_nonzero(dense)
        tile.bits.copy_(join_bits(kept))
        if not is_exact(tile.bits, tile.columns, pattern):
            excess += _fill(kept, dense, pattern)
            tile.bits.copy_(join_bits(kept))
        if not excess:
            tile.values.view(-1).copy_(dense.view(-1).index_select(0, places(kept)))
    if excess:
        raise PatternError(
            f"{name}: not {pattern}: {excess} of {rows * columns // pattern.group} groups keep more than "
            f"{pattern.keep}{'' if order is None else ' in the order given'}; name the pattern it was pruned to"
        )
    return Packed(values, bits, pattern, columns, order)


def structured(pattern: AnyPattern, name: str) -> Pattern:
    """The pattern, if it can be packed; `name` says whose it is.

    Raises:
        PatternError: it is unstructured.
    """
    if isinstance(pattern, Unstructured):
        raise PatternError(
            f"{name}: sparsity {pattern} is unstructured, and only N:M can be packed: without a fixed number of values "
            "in a group every row needs pointers of its own; prune to N:M, or keep it dense"
        )
    return pattern


def quantise(packed: Packed, values: str, name: str = "weight") -> Packed:
    """The same matrix with its values on a grid, "int8" or "int4", rounded to the nearest.

    Raises:
        PatternError: there is no such grid, values are quantised already or not finite, or an odd number of int4.
    """
    grid, pattern = find_grid(values), packed.pattern
    if packed.scales is not None:
        raise PatternError(f"{name}: its values are {packed.kind} already")
    if values == "int4" and packed.kept % 2:
        raise PatternError(f"{name}: {packed.kept} values a row, which int4 cannot store in pairs; use int8")
    run = grid.run(pattern, packed.kept)
    scales = packed.values.new_empty(packed.rows, grid.count(pattern, packed.kept))
    numbers = packed.bits.new_empty((packed.rows, packed.kept), dtype=torch.int8)
    for start, tile in packed.tiles():
        place = slice(start, start + tile.rows)
        scales[place] = scales_of(tile.values, run) if packed.kept else 0
        if not torch.isfinite(scales[place]).all():  # a maximum keeps NaN and infinity
            raise PatternError(f"{name}: the weight holds NaN or infinity, which {values} cannot")
        numbers[place] = to_grid(tile.values, scales[place], grid, run)
    return replace(packed, values=join_nibbles(numbers) if values == "int4" else numbers, scales=scales)


def kind_of(values: Tensor) -> str:
    """What stored values are: "float", "int8" or "int4"."""
    return {torch.int8: "int8", torch.uint8: "int4"}.get(values.dtype, "float")


def floats(packed: Packed) -> Tensor:
    """The kept values (rows, kept) in the weight's type."""
    if packed.scales is None:
        return packed.values
    grid = GRIDS[packed.kind]
    return restore(numbers(packed), packed.scales, grid, grid.run(packed.pattern, packed.kept))


def numbers(packed: Packed) -> Tensor:
    """Quantised values as whole numbers (rows, kept), int8."""
    return split_nibbles(packed.values) if packed.kind == "int4" else packed.values


def unpack(packed: Packed) -> Tensor:
    """The weight (rows, columns) in its own column order, zeros where nothing was kept."""
    weight = packed.values.new_empty((packed.rows, packed.columns), dtype=packed.dtype)
    natural = None if packed.order is None else invert(packed.order)
    for start, tile in packed.tiles():
        place = weight[start : start + tile.rows]
        if natural is None:
            expand(tile, place)
        else:
            place.copy_(expand(tile).index_select(1, natural))
    return weight


def expand(packed: Packed, out: Tensor | None = None) -> Tensor:
    """The packed matrix (rows, columns) in its packed column order, made at once; into `out`, contiguous, if given."""
    dense = packed.values.new_empty((packed.rows, packed.columns), dtype=packed.dtype) if out is None else out
    dense.zero_().view(-1).scatter_(0, places(keep_mask(packed)), floats(packed).reshape(-1))
    return dense


def keep_mask(packed: Packed) -> Tensor:
    """Keep mask (rows, columns) in the packed column order."""
    return split_bits(packed.bits, packed.columns)


def _is_nonzero(dense: Tensor) -> Tensor:
    """`dense != 0`, several times faster in the 16-bit types: all bits but the sign's."""
    if dense.dtype == torch.float32:
        return dense != 0
    return dense.view(torch.int16).bitwise_and(0x7FFF) != 0


def _fill(kept: Tensor, dense: Tensor, pattern: Pattern) -> int:
    """Keep zeros, in place, until every group has N; returns how many groups have more than N to begin with."""
    grouped = kept.view(-1, pattern.group)
    missing = pattern.keep - grouped.sum(1, keepdim=True)
    negative = torch.signbit(dense).view(grouped.shape)
    for zeros in (~grouped & negative, ~grouped & ~negative):
        taken = zeros & (zeros.cumsum(1) <= missing)
        grouped |= taken
        missing = missing - taken.sum(1, keepdim=True)
    return int((missing < 0).sum())
