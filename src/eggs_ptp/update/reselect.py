"""Reselection: the mask chosen again by what the solved weights are worth, as long as the layer loss falls."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.least_squares import least_squares, row_losses, single_weight_optima
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles
from eggs_ptp.errors import MethodError

_FIRST_ITERATIONS = 10  # for the weights of the given mask
_TOLERANCE = 1e-4


def reselect(
    weight: Tensor,
    mask: Tensor | None,
    start: Tensor | None,
    pattern: AnyPattern,
    gram: Tensor,
    tokens: Tensor | None = None,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
    *,
    rounds: Annotated[int, Field(ge=0)] = 3,
    iterations: Annotated[int, Field(ge=1)] = 5,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
) -> tuple[Tensor, Tensor]:
    """Solve for the kept weights, choose the mask again from them, and repeat row by row while the loss falls.

    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I. Least squares gives the weights W' of a mask.
    x = W' + (W - W') H / diag H is the best value of each weight with all others fixed, and H_jj x_ij^2 is what it
    lowers the loss tr((W - W') H (W - W')^T) by. Each round keeps the weights for which this is largest (N of M, or of
    the row) and solves for them, starting from x. A row whose loss does not fall, or whose mask does not change, keeps
    its previous mask and weights and is finished, so no row's loss rises.

    Args:
        weight: W, (out, in).
        mask: Keep mask to start from, bool (out, in).
        start: Weights of a previous update step, (out, in); None for the first.
        pattern: N:M, or unstructured, which is met in every row.
        gram: X^T X / tokens, (in, in).
        tokens: Number of tokens that gram was computed from, shape (); None for no correction of the damping.
        row_tiles: How rows are divided over processes; one process by default.
        rounds: Most rounds of choosing and solving, at least 0; 3 by default.
        iterations: Iterations of least squares in a round, at least 1; 5 by default.
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default.

    Returns:
        Weight, float32 (out, in), and keep mask, bool (out, in).

    Raises:
        MethodError: There is no mask.
        PatternError: The columns cannot be cut into groups of M.
        NumericsError: gram is zero.

    Source:
        This project: iterative hard thresholding, arXiv:0805.0510, with a diagonal metric and a solve in every round.
    """
    if mask is None:
        raise MethodError(
            "steps.update: reselect changes a mask, and there is none; give steps.select, or put it after a step that "
            "chooses one, such as sparsegpt"
        )
    hessian = damped(gram, damping, tokens)
    dense = weight.to(hessian.dtype)
    initial = dense if start is None else start
    solved = dense.new_empty(dense.shape)
    reselected = mask.new_empty(mask.shape)

    def reselect_tile(rows: slice) -> tuple[Tensor, Tensor]:
        return _reselect_rows(dense[rows], mask[rows], hessian, initial[rows], pattern, rounds, iterations)

    row_tiles.fill(dense, reselect_tile, solved, reselected)
    return solved, reselected


def _reselect_rows(
    dense: Tensor, mask: Tensor, hessian: Tensor, initial: Tensor, pattern: AnyPattern, rounds: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the weight and mask of some rows; rows leave the loop once they are finished."""
    solved = least_squares(dense, mask, hessian, initial, _FIRST_ITERATIONS, _TOLERANCE)
    reselected = mask.clone()
    rows = torch.arange(len(mask), device=mask.device)
    for _ in range(rounds):
        if not len(rows):
            break
        optima, score, loss = single_weight_optima(dense[rows], solved[rows], hessian)
        candidate_mask = keep_top(score, pattern)
        changed = (candidate_mask != reselected[rows]).any(1)
        rows = rows[changed]
        optima = optima[changed]
        candidate_mask = candidate_mask[changed]
        loss = loss[changed]
        candidate = least_squares(dense[rows], candidate_mask, hessian, optima, iterations, _TOLERANCE)
        improved = row_losses(dense[rows] - candidate, hessian) < loss
        rows = rows[improved]
        solved[rows] = candidate[improved]
        reselected[rows] = candidate_mask[improved]
    return solved, reselected
