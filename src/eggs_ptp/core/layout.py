"""Layout of a packed matrix: dtypes and shapes of its tensors, and a check of untrusted ones."""

import torch
from torch import Tensor

from eggs_ptp.core.bits import has_exact_groups, pack_bits
from eggs_ptp.core.pack import FLOAT_DTYPES, Packed, keep_mask, quantised_integers
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.permutation import check_permutation
from eggs_ptp.core.quantisation import GRIDS, QuantisationGrid, find_grid
from eggs_ptp.errors import PatternError


def packed_layout(
    shape: tuple[int, ...], dtype: torch.dtype, pattern: Pattern, values: str | None = None, *, ordered: bool = False
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor of a packed matrix.

    Args:
        shape: Shape of the weight, (rows, columns).
        dtype: Its type.
        pattern: N:M.
        values: "int8" or "int4" for quantised values; None for values in the weight's type.
        ordered: Whether its columns are permuted, so that an `order` is stored with it.

    Returns:
        (dtype, shape) by tensor name, as in `Packed.tensors`.
    """
    rows, columns = shape
    kept = columns // pattern.group * pattern.keep
    if values is None:
        values_layout = dtype, (rows, kept)
    elif values == "int8":
        values_layout = torch.int8, (rows, kept)
    else:
        values_layout = torch.uint8, (rows, kept // 2)
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"values": values_layout}
    tensors["bits"] = torch.uint8, (rows, -(-columns // 8))
    if values is not None:
        tensors["scales"] = dtype, (rows, find_grid(values).scales_per_row(pattern, kept))
    if ordered:
        tensors["order"] = torch.int32, (columns,)
    return tensors


def check_packed(packed: Packed, name: str) -> None:
    """Refuse tensors that are not a valid packed matrix.

    Args:
        packed: The tensors, from an untrusted file.
        name: The matrix, for error messages.

    Raises:
        PatternError: A dtype or shape that does not fit, a group whose bits do not mark exactly N columns, or scales or
            integers out of their range.
        MethodError: Its `order` is not a permutation of the columns.
    """
    pattern, columns = packed.pattern, packed.columns
    pattern.check_width(columns, name)
    values, bits = packed.values, packed.bits
    if packed.scales is not None:
        _check_quantised(packed, packed.scales, name)
    elif values.ndim != 2 or values.dtype not in FLOAT_DTYPES or values.shape[1] != packed.kept:
        raise PatternError(
            f"{name}: {pattern} of {columns} columns has values of {packed.kept} floats a row, "
            f"got {values.dtype} {tuple(values.shape)}"
        )
    bits_shape = (values.shape[0], -(-columns // 8))
    if bits.dtype != torch.uint8 or bits.shape != bits_shape:
        raise PatternError(
            f"{name}: {pattern} of {columns} columns has bits of shape {bits_shape}, uint8, "
            f"got {bits.dtype} {tuple(bits.shape)}"
        )
    wrong = sum(_count_wrong_groups(tile) for _, tile in packed.tiles())
    if wrong:
        raise PatternError(f"{name}: the bits of {wrong} groups do not mark {pattern.keep} of {pattern.group} columns")
    if packed.order is not None:
        check_permutation(packed.order, columns, name)


def _check_quantised(packed: Packed, scales: Tensor, name: str) -> None:
    """Refuse quantised values or scales that do not fit the matrix or their grid."""
    values = packed.values
    grid = GRIDS.get(packed.kind)
    width = packed.kept // 2 if packed.kind == "int4" else packed.kept
    if grid is None or values.ndim != 2 or values.shape[1] != width:
        raise PatternError(
            f"{name}: {packed.pattern} of {packed.columns} columns with scales has values of {packed.kept} int8, or "
            f"{packed.kept // 2} bytes of int4, a row, got {values.dtype} {tuple(values.shape)}"
        )
    shape = (values.shape[0], grid.scales_per_row(packed.pattern, packed.kept))
    if scales.dtype not in FLOAT_DTYPES or scales.shape != shape:
        raise PatternError(
            f"{name}: expected scales of shape {shape}, float32, bfloat16 or float16, "
            f"got {scales.dtype} {tuple(scales.shape)}"
        )
    if not (torch.isfinite(scales) & (scales >= 0)).all():
        raise PatternError(f"{name}: scales must be finite and not negative, and some are not")
    if any(_has_value_below_grid(tile, grid) for _, tile in packed.tiles()):
        raise PatternError(
            f"{name}: values of {packed.kind} lie between -{grid.max_level} and {grid.max_level}, and some do not"
        )


def _has_value_below_grid(tile: Packed, grid: QuantisationGrid) -> bool:
    """Return whether an integer is below -max_level; none can be above max_level in its type."""
    return bool((quantised_integers(tile) < -grid.max_level).any())


def _count_wrong_groups(tile: Packed) -> int:
    """Count the groups that do not mark exactly N columns; bits set past the last column count as one more."""
    if has_exact_groups(tile.bits, tile.columns, tile.pattern):
        return int(tile.columns % 8 and bool((pack_bits(keep_mask(tile)) != tile.bits).any()))
    return int((keep_mask(tile).reshape(-1, tile.pattern.group).sum(1) != tile.pattern.keep).sum())
