"""The layout of a packed matrix: types and shapes of its tensors, and refusing tensors that cannot be one."""

import torch
from torch import Tensor

from eggs_ptp.core.bits import is_exact, join_bits
from eggs_ptp.core.grid import GRIDS, Grid, find_grid
from eggs_ptp.core.order import check as check_order
from eggs_ptp.core.pack import FLOATS, Packed, keep_mask, numbers
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError


def layout(
    shape: tuple[int, ...], dtype: torch.dtype, pattern: Pattern, values: str | None = None, *, ordered: bool = False
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Types and shapes of the tensors of a packed matrix, for a weight of this shape and type."""
    rows, columns = shape
    kept = columns // pattern.group * pattern.keep
    found = {
        "values": {None: (dtype, (rows, kept)), "int8": (torch.int8, (rows, kept))}.get(
            values, (torch.uint8, (rows, kept // 2))
        ),
        "bits": (torch.uint8, (rows, -(-columns // 8))),
    }
    if values is not None:
        found["scales"] = dtype, (rows, find_grid(values).count(pattern, kept))
    return found | ({"order": (torch.int32, (columns,))} if ordered else {})


def check(packed: Packed, name: str) -> None:
    """Refuse tensors that cannot be a packed matrix: `name` says whose they are.

    Raises:
        PatternError: a type or shape that does not fit, a group whose bits do not mark exactly N columns, or scales or
            whole numbers that cannot have been written.
        MethodError: its order is no order of the columns.
    """
    pattern, columns = packed.pattern, packed.columns
    pattern.check_width(columns, name)
    values, bits = packed.values, packed.bits
    if packed.scales is not None:
        _check_grid(packed, packed.scales, name)
    elif values.ndim != 2 or values.dtype not in FLOATS or values.shape[1] != packed.kept:
        raise PatternError(
            f"{name}: {pattern} of {columns} columns has values of {packed.kept} floats a row, "
            f"got {values.dtype} {tuple(values.shape)}"
        )
    expected = (packed.kept, -(-columns // 8))
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


def _check_grid(packed: Packed, scales: Tensor, name: str) -> None:
    values, grid = packed.values, GRIDS.get(packed.kind)
    wide = packed.kept // 2 if packed.kind == "int4" else packed.kept
    if grid is None or values.ndim != 2 or values.shape[1] != wide:
        raise PatternError(
            f"{name}: {packed.pattern} of {packed.columns} columns with scales has values of {packed.kept} int8, or "
            f"{packed.kept // 2} bytes of int4, a row, got {values.dtype} {tuple(values.shape)}"
        )
    shape = (values.shape[0], grid.count(packed.pattern, packed.kept))
    if scales.dtype not in FLOATS or scales.shape != shape:
        raise PatternError(
            f"{name}: expected scales of shape {shape}, float32, bfloat16 or float16, "
            f"got {scales.dtype} {tuple(scales.shape)}"
        )
    if not (torch.isfinite(scales) & (scales >= 0)).all():
        raise PatternError(f"{name}: scales must be finite and not negative, and some are not")
    if any(_beyond(tile, grid) for _, tile in packed.tiles()):
        raise PatternError(f"{name}: values of {packed.kind} lie between -{grid.top} and {grid.top}, and some do not")


def _beyond(tile: Packed, grid: Grid) -> bool:
    return bool((numbers(tile) < -grid.top).any())


def _wrong_groups(tile: Packed) -> int:
    """Groups that do not mark exactly N columns; marks past the last column count as one."""
    if is_exact(tile.bits, tile.columns, tile.pattern):
        return int(tile.columns % 8 and bool((join_bits(keep_mask(tile)) != tile.bits).any()))
    return int((keep_mask(tile).reshape(-1, tile.pattern.group).sum(1) != tile.pattern.keep).sum())
