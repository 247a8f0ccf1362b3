"""EGGS-PTP's floor under any mask, where it costs the layer least, with the kept weights solved for again."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.blocks import Diagonal, Reading
from eggs_ptp.core.floor import connected
from eggs_ptp.core.least_squares import least_squares, loss_alone
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.noted import Noted
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.rows import row_share
from eggs_ptp.core.slabs import ALONE, Slabs
from eggs_ptp.errors import MethodError

_FIRST = 10  # iterations for the weights of the mask that comes
_TOLERANCE = 1e-4


def connect(
    weight: Tensor,
    mask: Tensor | None,
    start: Tensor | None,
    pattern: Pattern,
    gram: Tensor,
    tokens: Tensor | None = None,
    slabs: Slabs = ALONE,
    *,
    B: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto",
    diagonal: Diagonal = "best",
    iterations: Annotated[int, Field(ge=0)] = 5,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
) -> Noted:
    """Put diagonals into the B blocks of M rows that matter least to each group of M inputs, as the layer loss sees it.

    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I. Least squares gives the weights W' of the mask
    that comes; then s_ij = H_jj (W'_ij + ((W - W') H)_ij / H_jj)^2 is what the layer loses without the weight ij, taken
    alone, whether it is kept or not. Rows of group g ascend by their share sum_(j in g) s_ij / sum_j W_ij^2 H_jj, equal
    ones by index; blocks are consecutive rows, and of each the diagonals are chosen by s. Every input keeps at least
    min(B, out // M) connections ("best", "circulant": N times as many).

    `B` "auto" is the number, of 0, 1, 2, 5, 10, 20, ..., out // M, with the least loss tr((W - W') H (W - W')^T), tried
    upwards, with `iterations` of least squares each, until one does not lose less; where there are more than 1024 rows,
    it is the loss of up to 256 at the start of each quarter of them. On two models with 64 to 384 rows it grows with
    the rows and halves at 4:8: after RIA's mask 1 at 64 rows, 3 at 128, 6 and 18 at 320 and 384 for 2:4 (means); after
    masks that the loss has chosen (reselect) 0 to 2. `diagonal` and `damping` as in `expander`, `pcg`; "best" is by s.

    `weight`, `mask` and `start`, the weights of an update step before (out, in), columns permuted already; `gram`
    (in, in), made of `tokens`. Returns weight (float32) and mask; facts: B, diagonal_rows per group, layer_loss and
    layer_loss_B0 as shares of tr(W H W^T), of the same rows.

    Raises:
        MethodError: there is no mask.
        PatternError: the pattern does not define that diagonal.
        NumericsError: gram is zero.

    Source: this project, after EGGS-PTP, arXiv:2508.09471.
    """
    if mask is None:
        raise _without_mask()
    hessian, reading = damped(gram, damping, tokens), Reading(pattern, diagonal)
    dense = weight.to(hessian.dtype)
    begin = dense if start is None else start.to(hessian.dtype)
    solved, alone, score = (dense.new_empty(dense.shape) for _ in range(3))  # of the first two, rows that are ours
    importance = dense.new_empty(len(dense), dense.shape[1] // pattern.group, dtype=torch.float64)

    def judge(rows: slice) -> tuple[Tensor, Tensor]:
        solved[rows] = least_squares(dense[rows], mask[rows], hessian, begin[rows], _FIRST, _TOLERANCE)
        alone[rows], missed, _ = loss_alone(dense[rows], solved[rows], hessian)
        return missed, row_share(missed, dense[rows].square() * hessian.diagonal(), pattern.group)

    def solve(kept: Tensor, rows: slice) -> Tensor:
        if kept is mask:
            return solved[rows]
        return least_squares(dense[rows], kept[rows], hessian, alone[rows], iterations, _TOLERANCE)

    slabs.fill(dense, judge, score, importance)
    found = connected(dense, hessian, mask, score, importance, reading, B, solve, slabs)
    return Noted((found.weight, found.mask), found.facts)


def _without_mask() -> MethodError:
    return MethodError(
        "steps.update: connect changes a mask, and there is none; give steps.select, or put it after a step that "
        "chooses one, such as alps"
    )
