"""Packed N:M matrices: the kept values row after row, and one bit a weight that says where they stood."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eggs_ptp.core.order import check as check_order
from eggs_ptp.core.order import invert
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.errors import PatternError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_TILE = 1 << 19  # weights worked on at a time: what is made on the way stays in the processor's cache
# Eight bytes of 0 or 1 times this have bit j of the topmost byte = byte j: byte j meets its factor 2^(56 - 7j) on bit
# 56 + j, and all other products fall on bits of their own, so that nothing is carried.
_GATHER = sum(1 << (56 - 7 * j) for j in range(8))


@dataclass(frozen=True)
class Packed:
    """An N:M matrix (rows, columns) without its zeros.

    Every group of M consecutive columns holds exactly N values, so those of group g of row r are
    `values[r, g * N : (g + 1) * N]`, by rising column. Bit `c % 8` (0 = the lowest) of `bits[r, c // 8]` is 1 where
    column c is kept; bits past the last column are 0. With an `order`, column i of the packed matrix is column
    `order[i]` of the weight: the weight times x is the packed matrix times `x[order]`.

    Shapes: values (rows, columns / M * N), the weight's type; bits (rows, ceil(columns / 8)), uint8; order (columns,),
    int32.
    """

    values: Tensor
    bits: Tensor
    pattern: Pattern
    columns: int
    order: Tensor | None = None

    @property
    def rows(self) -> int:
        """Output features."""
        return self.values.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in (self.values, self.bits, self.order) if tensor is not None)

    def rows_from(self, start: int, stop: int) -> "Packed":
        """Rows `start` to `stop`, exclusive, as views."""
        return replace(self, values=self.values[start:stop], bits=self.bits[start:stop])

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
        tile.bits.copy_(_join(kept))
        if not _is_exact(tile):
            excess += _fill(kept, dense, pattern)
            tile.bits.copy_(_join(kept))
        if not excess:
            tile.values.view(-1).copy_(dense.view(-1).index_select(0, _places(kept)))
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


def unpack(packed: Packed) -> Tensor:
    """The weight (rows, columns) in its own column order, zeros where nothing was kept."""
    weight = packed.values.new_empty(packed.rows, packed.columns)
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
    dense = packed.values.new_empty(packed.rows, packed.columns) if out is None else out
    dense.zero_().view(-1).scatter_(0, _places(keep_mask(packed)), packed.values.reshape(-1))
    return dense


def keep_mask(packed: Packed) -> Tensor:
    """Keep mask (rows, columns) in the packed column order."""
    eight = _spread().view(torch.int64).view(256).to(packed.bits.device)  # all eight moved at once
    flat = packed.bits.reshape(-1).int()
    return eight.index_select(0, flat).view(torch.bool).view(packed.rows, 8 * packed.bits.shape[1])[:, : packed.columns]


def check(packed: Packed, name: str) -> None:
    """Refuse tensors that cannot be a packed matrix: `name` says whose they are.

    Raises:
        PatternError: a type or shape that does not fit, or a group whose bits do not mark exactly N columns.
        MethodError: its order is no order of the columns.
    """
    pattern, columns = packed.pattern, packed.columns
    pattern.check_width(columns, name)
    expected = (columns // pattern.group * pattern.keep, -(-columns // 8))
    values, bits = packed.values, packed.bits
    if values.ndim != 2 or values.dtype not in FLOATS or values.shape[1] != expected[0]:
        raise PatternError(
            f"{name}: {pattern} of {columns} columns has values of {expected[0]} floats a row, "
            f"got {values.dtype} {tuple(values.shape)}"
        )
    if bits.dtype != torch.uint8 or bits.shape != (values.shape[0], expected[1]):
        raise PatternError(
            f"{name}: {pattern} of {columns} columns has bits of shape {(values.shape[0], expected[1])}, uint8, "
            f"got {bits.dtype} {tuple(bits.shape)}"
        )
    wrong = sum(_wrong_groups(tile) for _, tile in packed.tiles())
    if wrong:
        raise PatternError(f"{name}: the bits of {wrong} groups do not mark {pattern.keep} of {pattern.group} columns")
    if packed.order is not None:
        check_order(packed.order, columns, name)


def _wrong_groups(tile: Packed) -> int:
    """Groups that do not mark exactly N columns; marks past the last column count as one."""
    if _is_exact(tile):
        return int(tile.columns % 8 and bool((_join(keep_mask(tile)) != tile.bits).any()))
    return int((keep_mask(tile).reshape(-1, tile.pattern.group).sum(1) != tile.pattern.keep).sum())


def _is_nonzero(dense: Tensor) -> Tensor:
    """`dense != 0`, several times faster in the 16-bit types: all bits but the sign's."""
    if dense.dtype == torch.float32:
        return dense != 0
    return dense.view(torch.int16).bitwise_and(0x7FFF) != 0


def _places(kept: Tensor) -> Tensor:
    """Flat indices of True, rising."""
    if kept.device.type == "cpu":  # numpy finds them several times faster
        return torch.from_numpy(kept.numpy().reshape(-1).nonzero()[0])
    return kept.reshape(-1).nonzero().view(-1)


def _is_exact(tile: Packed) -> bool:
    """Whether the bits of every group mark exactly N columns."""
    pattern = tile.pattern
    if 8 % pattern.group == 0 and tile.columns % 8 == 0:
        return bool(_exact_bytes(pattern).to(tile.bits.device).index_select(0, tile.bits.reshape(-1).int()).all())
    return bool((keep_mask(tile).reshape(-1, pattern.group).sum(1) == pattern.keep).all())


@functools.cache
def _exact_bytes(pattern: Pattern) -> Tensor:
    """For each byte, whether all its groups have exactly N bits."""
    return (_spread().view(256, -1, pattern.group).sum(-1) == pattern.keep).all(1)


@functools.cache
def _spread() -> Tensor:
    """For each byte its eight bits, the lowest first: (256, 8), uint8."""
    return (torch.arange(256)[:, None].bitwise_right_shift(torch.arange(8)) & 1).to(torch.uint8)


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


def _join(mask: Tensor) -> Tensor:
    """Eight columns a byte, the first one lowest; the last byte is filled up with zeros."""
    short = -mask.shape[1] % 8
    if short:
        mask = torch.nn.functional.pad(mask, (0, short))
    return (mask.contiguous().view(torch.int64) * _GATHER).bitwise_right_shift(56).to(torch.uint8)
