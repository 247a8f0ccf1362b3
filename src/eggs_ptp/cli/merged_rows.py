"""Table rows of matrices, merged over decoder blocks."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_BLOCK_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class MergedRow:
    """Rows whose names differ in the block number only and whose cells are the same.

    Attributes:
        label: The common name with the range of block numbers.
        cells: The cells that all rows have.
        names: The full names of the merged rows, in their order.
    """

    label: str
    cells: tuple[str, ...]
    names: tuple[str, ...]


def merge_rows(rows: Iterable[tuple[str, Sequence[str]]]) -> list[MergedRow]:
    """Merge rows that differ in the block number only, in the order in which each kind first appears.

    The block number is the first number that is a whole part of a dotted name: `model.layers.0.mlp.up_proj` and
    `model.layers.1.mlp.up_proj` become `model.layers.0-1.mlp.up_proj`.

    Args:
        rows: Pairs of a name and its cells.
    """
    members: dict[tuple[str, str, tuple[str, ...]], list[tuple[int | None, str]]] = {}
    for name, cells in rows:
        prefix, suffix, block = name, "", None
        if match := _BLOCK_NUMBER.search(name):
            prefix = name[: match.start()]
            suffix = name[match.end() :]
            block = int(match[0])
        members.setdefault((prefix, suffix, tuple(cells)), []).append((block, name))
    merged = []
    for (prefix, suffix, cells), blocks_and_names in members.items():
        blocks = number_ranges(block for block, _ in blocks_and_names if block is not None)
        names = tuple(name for _, name in blocks_and_names)
        merged.append(MergedRow(f"{prefix}{blocks}{suffix}", cells, names))
    return merged


def number_ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges: `[0, 1, 2, 5]` is `0-2,5`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
