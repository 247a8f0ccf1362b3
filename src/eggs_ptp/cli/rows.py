"""Rows about matrices, the same ones of several blocks folded into one row."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Folded:
    """Rows that differ in the block's number alone: a label for all, their cells, and their names in order."""

    label: str
    cells: tuple[str, ...]
    names: tuple[str, ...]


def fold(rows: Iterable[tuple[str, Sequence[str]]]) -> list[Folded]:
    """Fold rows `(name, cells)`, in the order in which each first appears.

    The block's number is the first that stands alone between dots: `model.layers.0.mlp.up_proj` and its like of
    block 1 make `model.layers.0-1.mlp.up_proj`.
    """
    found: dict[tuple[str, str, tuple[str, ...]], list[tuple[int, str]]] = {}
    for name, cells in rows:
        match = re.search(r"(?<=\.)\d+(?=\.)", name)
        head, tail = (name[: match.start()], name[match.end() :]) if match else (name, "")
        found.setdefault((head, tail, tuple(cells)), []).append((int(match[0]) if match else -1, name))
    return [
        Folded(
            f"{head}{ranges(number for number, _ in members if number >= 0)}{tail}",
            cells,
            tuple(name for _, name in members),
        )
        for (head, tail, cells), members in found.items()
    ]


def ranges(numbers: Iterable[int]) -> str:
    """`[0, 1, 2, 5]` is `0-2,5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
