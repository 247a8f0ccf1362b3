"""EGGS-PTP's selection: diagonals in unimportant rows for connectivity, the highest scores in all others."""

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.connection_floor import diagonal_batches, write_diagonals
from eggs_ptp.core.diagonal_blocks import Diagonal, DiagonalBlocks, Height, Offset
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.rows import Importance, row_importance
from eggs_ptp.core.step_result import StepResult

_SCORES_PER_BATCH = 1 << 18  # scores added up at a time in float64: fits a cache
_FIRST_SPAN = 64  # diagonal blocks per group that B = "auto" examines first; each further span doubles the total


def expander(
    score: Tensor,
    weight: Tensor,
    pattern: Pattern,
    input_norm: Tensor,
    *,
    B: Annotated[int, Field(ge=0)] | Literal["auto"] = 5,
    diagonal: Diagonal = "circulant",
    block: Height = "square",
    offset: Offset = 0,
    rri: Importance = "activation",
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5,
    loss: Annotated[float, Field(ge=0, le=1)] = 0.001,
) -> StepResult:
    """Keep N of every M by score, but by diagonals in the B blocks of rows that matter least to each group of columns.

    For every group g of M columns, rows are sorted by their relative row importance
    RRI_ig = sum_(j in g) |W_ij| n_j^alpha / sum_j |W_ij| in ascending order, where 1/0 counts as 0 and equal rows are
    sorted by index. Consecutive rows form diagonal blocks; a shorter last block is not used. In the first B blocks a
    diagonal decides what is kept, so that every input keeps at least min(B, out // M) connections; in all other rows
    the N highest scores are kept. B = 0 is the choice by score alone (`top`).

    Args:
        score: (out, in); higher = keep. Its columns are permuted already, as are those of weight and input_norm.
        weight: W, (out, in).
        pattern: N kept of every M.
        input_norm: n_j per token, (in,).
        B: Diagonal blocks per group, at least 0, or "auto" (this project): as many as cost at most `loss` of the
            retained score. 5 by default.
        diagonal: Columns that row t of a block keeps. "circulant" (default): (t + k) mod M for k < N. "staircase":
            (t N + k) mod M. "forced": t and the N - 1 others with the highest scores. "block": squares of N along the
            main diagonal. "best" (this project): of all masks with N per row and N per column of the block, the one
            that retains most score.
        block: Height of a block. "square" (default) is M rows; "short" is M / N rows, which needs "staircase" and keeps
            each column once.
        offset: 0 (default), or "best": rotate the columns of the circulant or staircase so that it retains most score.
        rri: Relative row importance. "activation" (default) is the formula above, "weight" the same with alpha = 0,
            "score" the sum of the group's scores.
        alpha: Exponent of the input norm in RRI, at least 0; 0.5 by default.
        loss: Share of the score retained at B = 0 that "auto" may lose, 0 to 1; 0.001 by default.

    Returns:
        Keep mask, bool (out, in), with the diagnostics B (blocks per group), diagonal_rows (rows per group) and
        score_lost (share of the score retained at B = 0).

    Raises:
        PatternError: The pattern does not define that diagonal or block, or the columns cannot be cut into groups of M.
        MethodError: Options that exclude each other.

    Source:
        EGGS-PTP, arXiv:2508.09471, reconstructed, as no code is public. The defaults are the likeliest reading.
    """
    diagonal_blocks = DiagonalBlocks(pattern, diagonal, block, offset)
    mask = keep_top(score, pattern)
    blocks_per_group = len(score) // diagonal_blocks.height
    if B == 0 or blocks_per_group == 0:
        return StepResult(mask, {"B": 0, "diagonal_rows": 0, "score_lost": 0.0})
    importance = row_importance(score, weight, input_norm, pattern.group, rri, alpha)
    retained = abs(_retained_score(score, mask))
    if B == "auto":
        limit, allowed_cost = blocks_per_group, loss * retained
    else:
        limit, allowed_cost = min(B, blocks_per_group), math.inf
    used, cost = _add_blocks(mask, score, importance, diagonal_blocks, limit, allowed_cost)
    score_lost = cost / retained if cost else 0.0
    return StepResult(mask, {"B": used, "diagonal_rows": used * diagonal_blocks.height, "score_lost": score_lost})


def _retained_score(score: Tensor, mask: Tensor) -> float:
    """Return the sum of the scores that the mask keeps."""
    rows_per_batch = max(1, _SCORES_PER_BATCH // score.shape[1])
    batches = zip(score.split(rows_per_batch), mask.split(rows_per_batch), strict=True)
    return math.fsum(float((rows.double() * kept).sum()) for rows, kept in batches)


def _add_blocks(
    mask: Tensor, score: Tensor, importance: Tensor, diagonal_blocks: DiagonalBlocks, limit: int, allowed_cost: float
) -> tuple[int, float]:
    """Write diagonals into at most `limit` blocks per group of `mask`, in order, until they cost more than allowed.

    Args:
        mask: Keep mask, (out, in); changed in place.
        score: (out, in).
        importance: RRI of each row in each group, (out, groups).
        diagonal_blocks: Height and diagonal of a block.
        limit: Most blocks per group.
        allowed_cost: Most retained score that the blocks may cost in total.

    Returns:
        Blocks per group, and the score that they cost.
    """
    used = 0
    cost = 0.0
    span = limit if allowed_cost == math.inf else _FIRST_SPAN
    while used < limit:
        for batch in diagonal_batches(score, mask, importance, diagonal_blocks, used, min(used + span, limit)):
            fits = int((cost + batch.costs.cumsum(0) <= allowed_cost).long().cumprod(0).sum())
            write_diagonals(mask, batch, fits)
            used += fits
            cost += float(batch.costs[:fits].sum())
            if fits < len(batch.costs):
                return used, cost
        span = used
    return used, cost
