"""Packed N:M matrices: the kept values of each row, and a bit mask of their columns.

Values have the type of the weight, or are integers with scales (`core/quantisation.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eggs_ptp.core.bits import flat_indices, has_exact_groups, pack_bits, unpack_bits
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.core.permutation import check_permutation, invert
from eggs_ptp.core.quantisation import GRIDS, compute_scales, dequantise, find_grid, pack_nibbles, unpack_nibbles
from eggs_ptp.core.quantisation import quantise as quantise_values
from eggs_ptp.errors import PatternError

VALUE_KINDS = ("float", *GRIDS)
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TILE_WEIGHTS = 1 << 19  # weights processed at a time, so that intermediate tensors fit the processor's cache


@dataclass(frozen=True)
class Packed:
    """An N:M matrix (rows, columns) without its zeros.

    Every group of M consecutive columns holds exactly N values, so those of group g of row r are
    `values[r, g * N : (g + 1) * N]`, in ascending order of their columns. Bit `c % 8` (0 = the lowest) of
    `bits[r, c // 8]` is 1 if column c is kept; bits past the last column are 0. With a channel permutation `order`,
    column i of the packed matrix is column `order[i]` of the weight: the weight times x is the packed matrix times
    `x[order]`.

    Quantised values are integers (int8; or int4, two to a byte of uint8, the first in the lower half, each plus 8), and
    `scales` has one scale for every `grid.scale_group_size` values of a row.

    Attributes:
        values: (rows, columns / M * N), the weight's type or int8; or (rows, columns / M * N / 2), uint8, for int4.
        bits: (rows, ceil(columns / 8)), uint8.
        pattern: N:M.
        columns: Input features.
        order: Channel permutation, (columns,), int32; None if the columns are in the weight's order.
        scales: (rows, groups), the weight's type; None if the values are not quantised.
    """

    values: Tensor
    bits: Tensor
    pattern: Pattern
    columns: int
    order: Tensor | None = None
    scales: Tensor | None = None

    @property
    def kind(self) -> str:
        """Kind of its values: "float", "int8" or "int4"."""
        return value_kind(self.values)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weight."""
        return self.values.dtype if self.scales is None else self.scales.dtype

    @property
    def kept(self) -> int:
        """Kept values of a row."""
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
        """Return its tensors by the names that they have in files."""
        candidates = {"values": self.values, "bits": self.bits, "scales": self.scales, "order": self.order}
        return {name: tensor for name, tensor in candidates.items() if tensor is not None}

    def row_slice(self, start: int, stop: int) -> "Packed":
        """Return rows `start` to `stop`, exclusive, as views."""
        scales = None if self.scales is None else self.scales[start:stop]
        return replace(self, values=self.values[start:stop], bits=self.bits[start:stop], scales=scales)

    def tiles(self, weights: int = _TILE_WEIGHTS) -> Iterator[tuple[int, "Packed"]]:
        """Yield row tiles of about `weights` weights each, with the index of their first row."""
        height = max(1, weights // self.columns)
        for start in range(0, self.rows, height):
            yield start, self.row_slice(start, start + height)


def pack(weight: Tensor, pattern: AnyPattern, order: Tensor | None = None, *, name: str = "weight") -> Packed:
    """Pack an N:M weight.

    Everything that is not zero is kept. If a group has fewer than N nonzero weights, zeros fill it up: first the
    negative ones, then those of the lowest columns. So `unpack` returns every bit, except that negative zeros of a
    group beyond its N become +0.0; weights pruned by this package have none.

    Args:
        weight: (rows, columns), float32, bfloat16 or float16.
        pattern: The N:M pattern that it satisfies.
        order: Channel permutation (columns,) after which it satisfies the pattern; None if it does as it is.
        name: The matrix, for error messages.

    Returns:
        The packed matrix.

    Raises:
        PatternError: The pattern is unstructured, or does not fit the weight; says how many groups hold more than N.
        MethodError: `order` is not a permutation of the columns.
    """
    pattern = require_nm(pattern, name)
    if weight.ndim != 2 or weight.dtype not in FLOAT_DTYPES:
        raise PatternError(
            f"{name}: expected a matrix of float32, bfloat16 or float16, got {weight.dtype} {tuple(weight.shape)}"
        )
    rows, columns = weight.shape
    pattern.check_width(columns, name)
    if order is not None:
        check_permutation(order, columns, name)
        order = order.to(weight.device, torch.int32)
    values = weight.new_empty(rows, columns // pattern.group * pattern.keep)
    bits = torch.empty(rows, -(-columns // 8), dtype=torch.uint8, device=weight.device)
    overfull = 0
    for start, tile in Packed(values, bits, pattern, columns).tiles():
        dense = weight[start : start + tile.rows]
        dense = dense.contiguous() if order is None else dense.index_select(1, order)
        mask = _is_nonzero(dense)
        tile.bits.copy_(pack_bits(mask))
        if not has_exact_groups(tile.bits, tile.columns, pattern):
            overfull += _fill_groups(mask, dense, pattern)
            tile.bits.copy_(pack_bits(mask))
        if not overfull:
            tile.values.view(-1).copy_(dense.view(-1).index_select(0, flat_indices(mask)))
    if overfull:
        permuted = "" if order is None else " in the given column order"
        raise PatternError(
            f"{name}: not {pattern}: {overfull} of {rows * columns // pattern.group} groups keep more than "
            f"{pattern.keep}{permuted}; name the pattern it was pruned to"
        )
    return Packed(values, bits, pattern, columns, order)


def require_nm(pattern: AnyPattern, name: str) -> Pattern:
    """Return the pattern if it is N:M, as only these can be packed.

    Args:
        pattern: The pattern to check.
        name: The matrix, or the option that the pattern was given by, for the error message.

    Raises:
        PatternError: It is unstructured.
    """
    if isinstance(pattern, Unstructured):
        raise PatternError(
            f"{name}: sparsity {pattern} is unstructured, and only N:M can be packed: without a fixed number of values "
            "in a group every row needs pointers of its own; prune to N:M, or keep it dense"
        )
    return pattern


def quantise(packed: Packed, values: str, name: str = "weight") -> Packed:
    """Quantise the values of a packed matrix, rounding to the nearest.

    Args:
        packed: A packed matrix of floats.
        values: The grid, "int8" or "int4".
        name: The matrix, for error messages.

    Returns:
        The same matrix with quantised values.

    Raises:
        PatternError: There is no such grid; the values are quantised already, or not finite; or a row has an odd number
            of values, for int4.
    """
    grid = find_grid(values)
    pattern = packed.pattern
    if packed.scales is not None:
        raise PatternError(f"{name}: its values are {packed.kind} already")
    if values == "int4" and packed.kept % 2:
        raise PatternError(f"{name}: {packed.kept} values a row, which int4 cannot store in pairs; use int8")
    group_size = grid.scale_group_size(pattern, packed.kept)
    scales = packed.values.new_empty(packed.rows, grid.scales_per_row(pattern, packed.kept))
    integers = packed.bits.new_empty((packed.rows, packed.kept), dtype=torch.int8)
    for start, tile in packed.tiles():
        rows = slice(start, start + tile.rows)
        scales[rows] = compute_scales(tile.values, group_size) if packed.kept else 0
        if not torch.isfinite(scales[rows]).all():  # the maximum of values with NaN or infinity is one of these
            raise PatternError(f"{name}: the weight holds NaN or infinity, which {values} cannot")
        integers[rows] = quantise_values(tile.values, scales[rows], grid, group_size)
    return replace(packed, values=pack_nibbles(integers) if values == "int4" else integers, scales=scales)


def value_kind(values: Tensor) -> str:
    """Return the kind of stored values by their dtype: "float", "int8" or "int4"."""
    return {torch.int8: "int8", torch.uint8: "int4"}.get(values.dtype, "float")


def kept_values(packed: Packed) -> Tensor:
    """Return the kept values (rows, kept) in the weight's type, dequantised if they are quantised."""
    if packed.scales is None:
        return packed.values
    grid = GRIDS[packed.kind]
    group_size = grid.scale_group_size(packed.pattern, packed.kept)
    return dequantise(quantised_integers(packed), packed.scales, grid, group_size)


def quantised_integers(packed: Packed) -> Tensor:
    """Return quantised values as integers, int8 (rows, kept)."""
    return unpack_nibbles(packed.values) if packed.kind == "int4" else packed.values


def unpack(packed: Packed) -> Tensor:
    """Return the dense weight (rows, columns) in its own column order, zero where nothing was kept."""
    weight = packed.values.new_empty((packed.rows, packed.columns), dtype=packed.dtype)
    inverse = None if packed.order is None else invert(packed.order)
    for start, tile in packed.tiles():
        target = weight[start : start + tile.rows]
        if inverse is None:
            expand(tile, target)
        else:
            target.copy_(expand(tile).index_select(1, inverse))
    return weight


def expand(packed: Packed, out: Tensor | None = None) -> Tensor:
    """Return the dense matrix (rows, columns) in the packed column order.

    Args:
        packed: The packed matrix, expanded in one piece.
        out: Contiguous tensor to write into; None for a new one.
    """
    dense = packed.values.new_empty((packed.rows, packed.columns), dtype=packed.dtype) if out is None else out
    dense.zero_().view(-1).scatter_(0, flat_indices(keep_mask(packed)), kept_values(packed).reshape(-1))
    return dense


def keep_mask(packed: Packed) -> Tensor:
    """Return the keep mask, bool (rows, columns), in the packed column order."""
    return unpack_bits(packed.bits, packed.columns)


def _is_nonzero(dense: Tensor) -> Tensor:
    """Return `dense != 0`, several times faster in 16-bit types: any bit but the sign is set."""
    if dense.dtype == torch.float32:
        return dense != 0
    return dense.view(torch.int16).bitwise_and(0x7FFF) != 0


def _fill_groups(mask: Tensor, dense: Tensor, pattern: Pattern) -> int:
    """Keep zeros too, in place, until every group keeps N; return how many groups keep more than N to begin with."""
    grouped = mask.view(-1, pattern.group)
    missing = pattern.keep - grouped.sum(1, keepdim=True)
    negative = torch.signbit(dense).view(grouped.shape)
    for zeros in (~grouped & negative, ~grouped & ~negative):
        added = zeros & (zeros.cumsum(1) <= missing)
        grouped |= added
        missing = missing - added.sum(1, keepdim=True)
    return int((missing < 0).sum())
