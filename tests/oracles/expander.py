"""EGGS-PTP's selection (arXiv:2508.09471, as reconstructed), with all options: float64 loops over plain lists."""

import math
from collections.abc import Iterator

from oracles.selection import Mask, Matrix, by_group

Line = list[bool]


def row_importance(
    score: Matrix, weight: Matrix, norms: list[float], rri: str, alpha: float, columns: range
) -> list[float]:
    """RRI of every row in one group of columns, by "weight", "activation" or "score"; 1/0 taken as 0."""
    result = []
    for i in range(len(weight)):
        total = 0.0
        for j in columns:
            if rri == "score":
                total += score[i][j]
            elif rri == "weight":
                total += abs(weight[i][j])
            else:
                total += abs(weight[i][j]) * norms[j] ** alpha
        row_sum = math.fsum(abs(w) for w in weight[i])
        if rri != "score":
            total = total / row_sum if row_sum > 0 else 0.0
        result.append(total)
    return result


def ascending_rows(importance: list[float]) -> list[int]:
    """Rows from the least important to the most important; of equal ones the lower index first."""
    return sorted(range(len(importance)), key=lambda i: (importance[i], i))


def regular_blocks(size: int, keep: int) -> Iterator[Mask]:
    """Every 0/1 matrix (size, size) with `keep` ones in each row and column, built row by row."""

    def lines(start: int, ones: int) -> Iterator[Line]:
        if start == size:
            if ones == 0:
                yield []
            return
        for bit in (True, False):
            if ones >= bit:
                for rest in lines(start + 1, ones - bit):
                    yield [bit, *rest]

    def rows(capacity: list[int], count: int) -> Iterator[Mask]:
        if count == 0:
            yield []
            return
        for line in lines(0, keep):
            remaining = [capacity[c] - line[c] for c in range(size)]
            if all(0 <= ones <= count - 1 for ones in remaining):
                for rest in rows(remaining, count - 1):
                    yield [line, *rest]

    return rows([keep] * size, size)


def retained(block: Matrix, mask: Mask) -> float:
    return math.fsum(block[i][j] for i in range(len(block)) for j in range(len(block[0])) if mask[i][j])


def diagonal_block(block: Matrix, keep: int, diagonal: str, offset: int | str) -> Mask:
    """The mask of one block; of equally good candidates the first."""
    height = len(block)
    size = len(block[0])
    if diagonal == "best":
        return max(regular_blocks(size, keep), key=lambda mask: retained(block, mask))
    if diagonal == "forced":
        promoted = [[math.inf if j == t else block[t][j] for j in range(size)] for t in range(height)]
        return by_group(promoted, keep, size)
    candidates = []
    for shift in range(size) if offset == "best" else [0]:
        mask = [[False] * size for _ in range(height)]
        for t in range(height):
            for k in range(keep):
                if diagonal == "circulant":
                    mask[t][(t + k + shift) % size] = True
                elif diagonal == "staircase":
                    mask[t][(t * keep + k + shift) % size] = True
                else:
                    mask[t][t // keep * keep + k] = True
        candidates.append(mask)
    return max(candidates, key=lambda mask: retained(block, mask))


def with_blocks(
    score: Matrix,
    weight: Matrix,
    norms: list[float],
    keep: int,
    group: int,
    B: int,
    *,
    diagonal: str = "circulant",
    block: str = "square",
    offset: int | str = 0,
    rri: str = "activation",
    alpha: float = 0.5,
) -> Mask:
    """The mask with exactly B diagonal blocks per group (fewer if there are not enough rows)."""
    height = group // keep if block == "short" else group
    mask = by_group(score, keep, group)
    for first in range(0, len(score[0]), group):
        columns = range(first, first + group)
        ranking = ascending_rows(row_importance(score, weight, norms, rri, alpha, columns))
        for b in range(min(B, len(score) // height)):
            rows = ranking[b * height : (b + 1) * height]
            kept = diagonal_block([[score[i][j] for j in columns] for i in rows], keep, diagonal, offset)
            for t in range(height):
                for j in columns:
                    mask[rows[t]][j] = kept[t][j - first]
    return mask


def auto_blocks(
    score: Matrix, weight: Matrix, norms: list[float], keep: int, group: int, loss: float, **options
) -> int:
    """The largest B such that it and all smaller ones lose at most the share `loss` of the score retained at B = 0."""
    height = group // keep if options.get("block") == "short" else group
    without_blocks = retained(score, by_group(score, keep, group))
    for B in range(1, len(score) // height + 1):
        mask = with_blocks(score, weight, norms, keep, group, B, **options)
        if without_blocks - retained(score, mask) > loss * abs(without_blocks):
            return B - 1
    return len(score) // height
