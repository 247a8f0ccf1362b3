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


def without_common_prefix(labels: Sequence[str]) -> tuple[str, list[str]]:
    """Split off the dotted prefix that all labels have, so that tables fit a narrow terminal.

    `model.layers.0-1.mlp.up_proj` and `model.layers.0-1.mlp.down_proj` become `model.layers.0-1.mlp`, `up_proj` and
    `down_proj`.

    Args:
        labels: The labels; each keeps at least its last part.

    Returns:
        The prefix, without a dot at its end, and the rest of each label; an empty prefix for fewer than two labels.
    """
    if len(set(labels)) < 2:
        return "", list(labels)
    parts = [label.split(".") for label in labels]
    shortest = min(len(each) for each in parts) - 1
    common = 0
    while common < shortest and len({each[common] for each in parts}) == 1:
        common += 1
    return ".".join(parts[0][:common]), [".".join(each[common:]) for each in parts]


def without_constant_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], candidates: Sequence[str]
) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """Take out the columns that have the same text in every row, so that tables fit a narrow terminal.

    Args:
        columns: Heads of the columns.
        rows: The cells of each row.
        candidates: Heads that may be taken out.

    Returns:
        The remaining columns, their rows, and the text of each column that was taken out.
    """
    constants = {
        head: rows[0][index]
        for index, head in enumerate(columns)
        if rows and head in candidates and len({row[index] for row in rows}) == 1
    }
    kept = [index for index, head in enumerate(columns) if head not in constants]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows], constants


def value_range(texts: Iterable[str]) -> str:
    """Return the one text that all are, or the first and the last: `50.0%`, or `49.8% to 50.2%`."""
    distinct = list(dict.fromkeys(texts))
    return distinct[0] if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}" if distinct else ""


def number_ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges: `[0, 1, 2, 5]` is `0-2,5`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
