"""Doubly regular blocks: squares of M x M that keep exactly N per row and N per column."""

import functools
import math

import torch
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern

_ENUMERABLE = 10_000  # row choices tried when listing all doubly regular blocks of a size
_ELEMENTS = 1 << 22  # of the largest intermediate tensor (32 MB in float64)


def best_regular(blocks: Tensor, keep: int) -> Tensor:
    """The doubly regular block with the largest retained score, exactly, for each of many blocks.

    argmax over K in {0, 1}^(M x M), K 1 = N, K^T 1 = N, of sum_tc K_tc s_tc. Small squares (M = 4; 90 candidates
    for 2:4) are enumerated, larger ones solved by `transport`. Of equal candidates a circulant one wins.

    Args:
        blocks: scores, (blocks, M, M).
        keep: N.

    Returns:
        Keep mask, bool (blocks, M, M).

    Source: this project; both ways are standard.
    """
    size = blocks.shape[-1]
    if math.comb(size, keep) ** (size - 1) <= _ENUMERABLE:
        return most_retained(blocks, _all_regular(size, keep).to(blocks.device))
    return transport(blocks, keep)


def most_retained(blocks: Tensor, candidates: Tensor) -> Tensor:
    """The candidate with the largest retained score for each block, the first of equal ones.

    Args:
        blocks: scores, (blocks, height, M).
        candidates: keep masks, bool (candidates, height, M).

    Returns:
        Keep mask, bool (blocks, height, M).
    """
    flat = candidates.flatten(1).double().T  # (height * M, candidates)
    parts = torch.split(blocks, max(1, _ELEMENTS // len(candidates)))
    return torch.cat([candidates[(_whole(part).flatten(1) @ flat).argmax(1)] for part in parts])


def bands(size: int, keep: int, step: int, height: int) -> Tensor:
    """Every cyclic offset of a band of diagonals: row t keeps columns (t * step + k + offset) mod M, k < N.

    Returns:
        Keep masks, bool (M offsets, height, M).
    """
    offset = torch.arange(size)[:, None, None]
    row = torch.arange(height)[None, :, None]
    column = torch.arange(size)[None, None, :]
    return (column - row * step - offset) % size < keep


def transport(blocks: Tensor, keep: int) -> Tensor:
    """The same optimum by flow: start from each row's N best, then carry surplus columns' entries to short ones.

    A block is a transport of N from every row to every column with capacities of 1. In the graph on the M columns
    the edge a -> b is the best exchange within a row, max over the rows that keep a and not b of s_rb - s_ra. No
    closed walk gains at the start, and exchanging along the path that loses least, from any column kept too often to
    any kept too seldom, leaves it so (successive shortest paths); when every column is kept N times, a block that no
    closed walk improves is optimal. Of equal paths the one with fewest edges visits no column twice. There are at
    most N (M - N) paths, and scores are whole numbers, so nothing is rounded on the way.
    """
    size = blocks.shape[-1]
    whole = _whole(blocks)
    kept = keep_top(whole.flatten(0, 1), Pattern(keep, size)).view_as(whole)
    circulant = most_retained(blocks, bands(size, keep, 1, size).to(blocks.device))
    part = max(1, _ELEMENTS // size**3)
    for score, chosen in zip(torch.split(whole, part), torch.split(kept, part), strict=True):
        unsettled = (chosen.sum(1) != keep).any(1).nonzero()[:, 0]
        while len(unsettled):
            chosen[unsettled] ^= _cheapest_path(score[unsettled], chosen[unsettled], keep)
            unsettled = unsettled[(chosen[unsettled].sum(1) != keep).any(1)]
    as_good = (whole * circulant).sum((1, 2), keepdim=True) == (whole * kept).sum((1, 2), keepdim=True)
    return torch.where(as_good, circulant, kept)


def _cheapest_path(score: Tensor, kept: Tensor, keep: int) -> Tensor:
    """The entries to flip along each block's best path from a column kept too often to one kept too seldom."""
    size = score.shape[-1]
    loses = torch.where(kept, -score, -math.inf)  # (blocks, row, a)
    gains = torch.where(kept, -math.inf, score)  # (blocks, row, b)
    edge, row = (loses[:, :, :, None] + gains[:, :, None, :]).max(1)  # (blocks, a, b)
    surplus = kept.sum(1) - keep  # (blocks, M)
    reach = torch.where(surplus > 0, 0.0, -math.inf).double()
    here = torch.arange(size, device=score.device)
    via = []
    for _ in range(size - 1):
        through, before = (reach[:, :, None] + edge).max(1)
        better = through > reach
        if not bool(better.any()):
            break
        via.append(torch.where(better, before, here))
        reach = torch.where(better, through, reach)
    flips = torch.zeros_like(kept)
    block = torch.arange(len(score), device=score.device)
    at = torch.where(surplus < 0, reach, -math.inf).argmax(1)
    for step in reversed(via):
        previous = step[block, at]
        exchanged, moved = row[block, previous, at], previous != at
        flips[block, exchanged, previous] |= moved
        flips[block, exchanged, at] |= moved
        at = previous
    return flips


def _whole(blocks: Tensor) -> Tensor:
    """Scores as whole numbers in float64 of which any block's sum is exact, so that ties and gains are.

    A power of two per block scales its largest score to under 2^(52 - bits of the block's size): nothing is lost
    of float32 scores down to 2^-21 of the largest at M = 8.
    """
    exact = blocks.double()
    bits = 52 - (blocks.shape[1] * blocks.shape[2]).bit_length()
    exponent = torch.frexp(exact.abs().amax((1, 2), keepdim=True)).exponent
    return (exact * 2.0 ** (bits - exponent).double()).round()


@functools.lru_cache(maxsize=16)
def _all_regular(size: int, keep: int) -> Tensor:
    """Every doubly regular block, circulants first: bool (blocks, M, M)."""
    row = torch.combinations(torch.arange(size), keep)
    rows = torch.zeros(len(row), size, dtype=torch.long).scatter_(1, row, 1)
    chosen = torch.cartesian_prod(*[torch.arange(len(rows))] * (size - 1)).view(-1, size - 1)
    above = rows[chosen]  # all but the last row, which the column counts determine
    last = keep - above.sum(1, keepdim=True)
    regular = torch.cat([above, last], 1)[((last == 0) | (last == 1)).flatten(1).all(1)]
    return torch.cat([bands(size, keep, 1, size), regular.bool()])
