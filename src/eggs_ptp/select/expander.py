"""EGGS-PTP's selection: rows that matter little are pruned for connectivity, the others for importance."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.blocks import Diagonal, Height, Offset, Reading
from eggs_ptp.core.floor import diagonals, put
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.noted import Noted
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.rows import Importance, row_importance

_CACHED = 1 << 18  # scores added up at a time in float64: fits a cache
_FIRST_SPAN = 64  # blocks of each group that B = "auto" looks at first; then as many again, and so on


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
) -> Noted:
    """Keep N of every M by score, but by diagonals in the B blocks of rows that matter least to each group of columns.

    Rows of group g ascend (equal ones by index) by RRI_ig = sum_(j in g) |W_ij| n_j^alpha / sum_j |W_ij|, 1/0 read as
    0; blocks are consecutive rows, a short last one never counts. Every input keeps at least min(B, out // M)
    connections; B = 0 is the choice by score.

    Args:
        score: (out, in), higher = keep; columns permuted already, as those of weight and input_norm.
        weight: (out, in).
        pattern: N kept of every M.
        input_norm: n_j, (in,).
        B: diagonal blocks per group, or "auto" (this project): as many as lose at most `loss` of the retained score.
        diagonal: columns kept by row t of a block: "circulant" (t + k) mod M, k < N; "staircase" (t N + k) mod M;
            "forced" t and the N - 1 best others; "block" squares of N on the main diagonal; "best" (this project)
            those of the block with N per row and N per column that retains most score.
        block: "square", M rows, or "short", M / N rows (staircase only: each column once).
        offset: 0, or "best": turn the circulant or staircase by the columns that retain most score.
        rri: "activation" as above, "weight" with alpha = 0, "score" the sum of the group's scores.
        alpha: exponent of the input norm in RRI.
        loss: share of B = 0's retained score that "auto" may lose.

    Returns:
        Keep mask, bool (out, in). Facts: B used, diagonal_rows per group, score_lost (share of B = 0's retained score).

    Raises:
        PatternError: the pattern does not define that diagonal or block.
        MethodError: options that exclude each other.

    Source: EGGS-PTP, arXiv:2508.09471, reconstructed: no code is public. Defaults are the likeliest reading.
    """
    reading = Reading(pattern, diagonal, block, offset)
    mask = keep_top(score, pattern)
    most = len(score) // reading.height
    if B == 0 or most == 0:
        return Noted(mask, {"B": 0, "diagonal_rows": 0, "score_lost": 0.0})
    importance = row_importance(score, weight, input_norm, pattern.group, rri, alpha)
    retained = abs(_retained(score, mask))
    limit, allowed = (most, loss * retained) if B == "auto" else (min(B, most), math.inf)
    used, lost = _connect(mask, score, importance, reading, limit, allowed)
    share = lost / retained if lost else 0.0
    return Noted(mask, {"B": used, "diagonal_rows": used * reading.height, "score_lost": share})


def _retained(score: Tensor, mask: Tensor) -> float:
    parts = (torch.split(tensor, max(1, _CACHED // score.shape[1])) for tensor in (score, mask))
    return math.fsum(float((rows.double() * kept).sum()) for rows, kept in zip(*parts, strict=True))


def _connect(
    mask: Tensor, score: Tensor, importance: Tensor, reading: Reading, limit: int, allowed: float
) -> tuple[int, float]:
    """Put diagonals into at most `limit` blocks per group of `mask`, in order, while they cost `allowed` score at most.

    Returns:
        Blocks per group, and the score they cost.
    """
    used, lost = 0, 0.0
    span = limit if allowed == math.inf else _FIRST_SPAN
    while used < limit:
        for found in diagonals(score, mask, importance, reading, used, min(used + span, limit)):
            fits = int((lost + found.costs.cumsum(0) <= allowed).long().cumprod(0).sum())
            put(mask, found, fits)
            used, lost = used + fits, lost + float(found.costs[:fits].sum())
            if fits < len(found.costs):
                return used, lost
        span = used
    return used, lost
