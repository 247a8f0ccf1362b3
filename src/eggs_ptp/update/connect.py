"""EGGS-PTP's connectivity for any mask: diagonal blocks where they cost the layer least, with solved weights."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.connection_floor import add_diagonal_blocks
from eggs_ptp.core.diagonal_blocks import Diagonal, DiagonalBlocks
from eggs_ptp.core.least_squares import least_squares, single_weight_optima
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles
from eggs_ptp.core.rows import row_share
from eggs_ptp.core.step_result import StepResult
from eggs_ptp.errors import MethodError

_FIRST_ITERATIONS = 10  # for the weights of the given mask
_TOLERANCE = 1e-4


def connect(
    weight: Tensor,
    mask: Tensor | None,
    start: Tensor | None,
    pattern: Pattern,
    gram: Tensor,
    tokens: Tensor | None = None,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
    *,
    B: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto",
    diagonal: Diagonal = "best",
    iterations: Annotated[int, Field(ge=0)] = 5,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
) -> StepResult:
    """Put diagonals into the B blocks of M rows that matter least to each group of M inputs, measured by layer loss.

    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I. Least squares gives the weights W' of the given
    mask. s_ij = H_jj (W'_ij + ((W - W') H)_ij / H_jj)^2 is then the loss without the weight ij compared with its best
    value, all others fixed, whether it is kept or not. For every group g, rows are sorted by their share
    sum_(j in g) s_ij / sum_j W_ij^2 H_jj in ascending order, equal ones by index; consecutive rows form blocks, and the
    diagonals of each block are chosen by s. Every input keeps at least min(B, out // M) connections, and N times as
    many with "best" and "circulant". The kept weights are solved for again.

    With B = "auto" the loss is tr((W - W') H (W - W')^T). Where there are more than 1024 rows it is that of up to 256
    rows at the start of each quarter of them. On two models with 64 to 384 rows the chosen B grows with the rows and
    halves at 4:8: on average, after RIA's mask at 2:4, 1 at 64 rows, 3 at 128, 6 and 18 at 320 and 384; after masks
    that the loss has chosen (`reselect`) 0 to 2.

    Args:
        weight: W, (out, in). Its columns are permuted already.
        mask: Keep mask to change, bool (out, in).
        start: Weights of a previous update step, (out, in); None for the first.
        pattern: N kept of every M.
        gram: X^T X / tokens, (in, in).
        tokens: Number of tokens that gram was computed from, shape (); None for no correction of the damping.
        row_tiles: How rows are divided over processes; one process by default.
        B: Diagonal blocks per group, at least 0, or "auto" (default): of 0, 1, 2, 5, 10, 20, ..., out // M the number
            with the least loss. They are tried in this order, up to the first that does not lower the loss.
        diagonal: Columns that a block keeps, as in `expander`; "best" (default) goes by s.
        iterations: Iterations of least squares for the weights of each B, at least 0; 5 by default.
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default.

    Returns:
        Weight, float32 (out, in), and keep mask, bool (out, in), with the diagnostics B (blocks per group),
        diagonal_rows (rows per group), layer_loss and layer_loss_B0 (losses with B blocks and with none, as shares of
        tr(W H W^T) of the same rows).

    Raises:
        MethodError: There is no mask.
        PatternError: The pattern does not define that diagonal, or the columns cannot be cut into groups of M.
        NumericsError: gram is zero.

    Source:
        This project, after EGGS-PTP, arXiv:2508.09471.
    """
    if mask is None:
        raise MethodError(
            "steps.update: connect changes a mask, and there is none; give steps.select, or put it after a step that "
            "chooses one, such as alps"
        )
    hessian = damped(gram, damping, tokens)
    diagonal_blocks = DiagonalBlocks(pattern, diagonal)
    dense = weight.to(hessian.dtype)
    initial = dense if start is None else start.to(hessian.dtype)
    # Of the first two only the rows of this process are filled; `score` and `importance` are gathered.
    solved = dense.new_empty(dense.shape)
    optima = dense.new_empty(dense.shape)
    score = dense.new_empty(dense.shape)  # s
    importance = dense.new_empty(len(dense), dense.shape[1] // pattern.group, dtype=torch.float64)

    def score_rows(rows: slice) -> tuple[Tensor, Tensor]:
        solved[rows] = least_squares(dense[rows], mask[rows], hessian, initial[rows], _FIRST_ITERATIONS, _TOLERANCE)
        optima[rows], tile_score, _ = single_weight_optima(dense[rows], solved[rows], hessian)
        return tile_score, row_share(tile_score, dense[rows].square() * hessian.diagonal(), pattern.group)

    def solve(candidate: Tensor, rows: slice) -> Tensor:
        if candidate is mask:
            return solved[rows]
        return least_squares(dense[rows], candidate[rows], hessian, optima[rows], iterations, _TOLERANCE)

    row_tiles.fill(dense, score_rows, score, importance)
    result = add_diagonal_blocks(dense, hessian, mask, score, importance, diagonal_blocks, B, solve, row_tiles)
    return StepResult((result.weight, result.mask), result.diagnostics)
