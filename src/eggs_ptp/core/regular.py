"""Doubly regular blocks: M x M masks that keep exactly N per row and N per column."""

import functools
import math

import torch
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern

_MAX_ENUMERATED = 10_000  # combinations of rows tried, at most, to list all doubly regular blocks of a size
_ELEMENTS = 1 << 22  # of the largest intermediate tensor (32 MB in float64)


def best_regular(blocks: Tensor, keep: int) -> Tensor:
    """Return the doubly regular block that retains the largest score, exactly, for each of many blocks.

    argmax over K in {0, 1}^(M x M), K 1 = N, K^T 1 = N, of sum_tc K_tc s_tc. For small M all candidates are compared
    (M = 4; 90 candidates for 2:4), larger blocks are solved by `transport`. Among equally good candidates a circulant
    one is preferred.

    Args:
        blocks: Scores, (blocks, M, M).
        keep: N.

    Returns:
        Keep mask, bool (blocks, M, M).

    Source: this project; both algorithms are standard.
    """
    size = blocks.shape[-1]
    if math.comb(size, keep) ** (size - 1) <= _MAX_ENUMERATED:
        return most_retained(blocks, all_regular(size, keep).to(blocks.device))
    return transport(blocks, keep)


def most_retained(blocks: Tensor, candidates: Tensor) -> Tensor:
    """Return the candidate that retains the largest score of each block, the first of equally good ones.

    Args:
        blocks: Scores, (blocks, height, M).
        candidates: Keep masks, bool (candidates, height, M).

    Returns:
        Keep mask, bool (blocks, height, M).
    """
    flat_candidates = candidates.flatten(1).double().T  # (height * M, candidates)
    batches = torch.split(blocks, max(1, _ELEMENTS // len(candidates)))
    return torch.cat([candidates[(_as_integers(batch).flatten(1) @ flat_candidates).argmax(1)] for batch in batches])


def bands(size: int, keep: int, step: int, height: int) -> Tensor:
    """Return every cyclic offset of a band of diagonals: row t keeps columns (t * step + k + offset) mod M, k < N.

    Args:
        size: M.
        keep: N.
        step: Columns that the band moves to the right per row.
        height: Rows.

    Returns:
        Keep masks, bool (M offsets, height, M).
    """
    offset = torch.arange(size)[:, None, None]
    row = torch.arange(height)[None, :, None]
    column = torch.arange(size)[None, None, :]
    return (column - row * step - offset) % size < keep


def transport(blocks: Tensor, keep: int) -> Tensor:
    """Find the same optimum as a flow: start from each row's N best, then move entries from overfull to short columns.

    A block is a transport of N units from every row to every column, with capacities of 1. In a graph whose nodes are
    the M columns, the edge a -> b is the best exchange within a row: the maximum of s_rb - s_ra over the rows r that
    keep a and not b. At the start no cycle gains, and exchanging along the path of least loss, from any column kept too
    often to any kept too seldom, preserves that (successive shortest paths). Once every column is kept N times, a block
    that no cycle improves is optimal. Of equally good paths the one with the fewest edges visits no column twice. There
    are at most N (M - N) paths, and scores are integers, so nothing is rounded on the way.

    Args:
        blocks: Scores, (blocks, M, M).
        keep: N.

    Returns:
        Keep mask, bool (blocks, M, M).
    """
    size = blocks.shape[-1]
    integers = _as_integers(blocks)
    mask = keep_top(integers.flatten(0, 1), Pattern(keep, size)).view_as(integers)
    circulant = most_retained(blocks, bands(size, keep, 1, size).to(blocks.device))
    batch = max(1, _ELEMENTS // size**3)
    for score, batch_mask in zip(torch.split(integers, batch), torch.split(mask, batch), strict=True):
        unfinished = (batch_mask.sum(1) != keep).any(1).nonzero()[:, 0]
        while len(unfinished):
            batch_mask[unfinished] ^= _cheapest_path(score[unfinished], batch_mask[unfinished], keep)
            unfinished = unfinished[(batch_mask[unfinished].sum(1) != keep).any(1)]
    as_good = (integers * circulant).sum((1, 2), keepdim=True) == (integers * mask).sum((1, 2), keepdim=True)
    return torch.where(as_good, circulant, mask)


def _cheapest_path(score: Tensor, mask: Tensor, keep: int) -> Tensor:
    """Return the entries to flip along each block's best path from a column kept too often to one kept too seldom."""
    size = score.shape[-1]
    loss = torch.where(mask, -score, -math.inf)  # (blocks, row, a)
    gain = torch.where(mask, -math.inf, score)  # (blocks, row, b)
    edge, row = (loss[:, :, :, None] + gain[:, :, None, :]).max(1)  # (blocks, a, b)
    surplus = mask.sum(1) - keep  # (blocks, M)
    distance = torch.where(surplus > 0, 0.0, -math.inf).double()  # of the best path to each column: its gain
    columns = torch.arange(size, device=score.device)
    predecessors = []
    for _ in range(size - 1):
        extended, predecessor = (distance[:, :, None] + edge).max(1)
        better = extended > distance
        if not bool(better.any()):
            break
        predecessors.append(torch.where(better, predecessor, columns))
        distance = torch.where(better, extended, distance)
    flips = torch.zeros_like(mask)
    block = torch.arange(len(score), device=score.device)
    column = torch.where(surplus < 0, distance, -math.inf).argmax(1)
    for predecessor in reversed(predecessors):
        previous = predecessor[block, column]
        exchanged_row = row[block, previous, column]
        moved = previous != column
        flips[block, exchanged_row, previous] |= moved
        flips[block, exchanged_row, column] |= moved
        column = previous
    return flips


def _as_integers(blocks: Tensor) -> Tensor:
    """Scale scores to integers in float64 whose sums over a block are exact, so that ties and gains are.

    A power of two per block scales its largest score to under 2^(52 - bits of the block's size). At M = 8 that loses
    nothing of float32 scores down to 2^-21 of the largest.
    """
    exact = blocks.double()
    bits = 52 - (blocks.shape[1] * blocks.shape[2]).bit_length()
    exponent = torch.frexp(exact.abs().amax((1, 2), keepdim=True)).exponent
    return (exact * 2.0 ** (bits - exponent).double()).round()


@functools.lru_cache(maxsize=16)
def all_regular(size: int, keep: int) -> Tensor:
    """Return every doubly regular block, circulants first: bool (blocks, M, M)."""
    kept_columns = torch.combinations(torch.arange(size), keep)
    rows = torch.zeros(len(kept_columns), size, dtype=torch.long).scatter_(1, kept_columns, 1)
    choices = torch.cartesian_prod(*[torch.arange(len(rows))] * (size - 1)).view(-1, size - 1)
    upper = rows[choices]  # all rows but the last, which the column counts determine
    last = keep - upper.sum(1, keepdim=True)
    regular = torch.cat([upper, last], 1)[((last == 0) | (last == 1)).flatten(1).all(1)]
    return torch.cat([bands(size, keep, 1, size), regular.bool()])
