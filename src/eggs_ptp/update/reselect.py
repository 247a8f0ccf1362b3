"""The mask chosen again by what the solved weights say, as long as the layer loss falls."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.least_squares import least_squares, loss_alone, row_losses
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.core.slabs import ALONE, Slabs
from eggs_ptp.errors import MethodError

_FIRST = 10  # iterations for the weights of the mask that comes
_TOLERANCE = 1e-4


def reselect(
    weight: Tensor,
    mask: Tensor | None,
    start: Tensor | None,
    pattern: AnyPattern,
    gram: Tensor,
    tokens: Tensor | None = None,
    slabs: Slabs = ALONE,
    *,
    rounds: Annotated[int, Field(ge=0)] = 3,
    iterations: Annotated[int, Field(ge=1)] = 5,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
) -> tuple[Tensor, Tensor]:
    """Solve for the kept weights, then keep what the loss misses most, and again, row by row while it falls.

    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I. Least squares gives the weights W' of a mask;
    x = W' + (W - W') H / diag H is the best value of each weight with all others as they are, and H_jj x_ij^2 what the
    loss tr((W - W') H (W - W')^T) gains by it. Each of `rounds` keeps the largest (N of M, or of the row) and solves
    again, by `iterations` from x; a row that comes to lose more, or whose mask stands still, stays as it was and is
    done. So no row's loss rises. `weight`, `mask`, `start` (weights of an update step before) (out, in), `gram`
    (in, in), made of `tokens`; returns weight (float32) and mask.

    Source: this project: iterative hard thresholding, arXiv:0805.0510, with a diagonal metric, and solved between.

    Raises:
        MethodError: there is no mask.
        PatternError: the columns cannot be cut into groups of M.
        NumericsError: gram is zero.
    """
    if mask is None:
        raise MethodError(
            "steps.update: reselect changes a mask, and there is none; give steps.select, or put it after a step that "
            "chooses one, such as sparsegpt"
        )
    hessian = damped(gram, damping, tokens)
    dense = weight.to(hessian.dtype)
    begin = dense if start is None else start
    solved, kept = dense.new_empty(dense.shape), mask.new_empty(mask.shape)

    def choose(rows: slice) -> tuple[Tensor, Tensor]:
        return _reselected(dense[rows], mask[rows], hessian, begin[rows], pattern, rounds, iterations)

    slabs.fill(dense, choose, solved, kept)
    return solved, kept


def _reselected(
    dense: Tensor, mask: Tensor, hessian: Tensor, begin: Tensor, pattern: AnyPattern, rounds: int, iterations: int
) -> tuple[Tensor, Tensor]:
    solved = least_squares(dense, mask, hessian, begin, _FIRST, _TOLERANCE)
    kept, rows = mask.clone(), torch.arange(len(mask), device=mask.device)
    for _ in range(rounds):
        if not len(rows):
            break
        alone, score, before = loss_alone(dense[rows], solved[rows], hessian)
        found = keep_top(score, pattern)
        moved = (found != kept[rows]).any(1)
        rows, alone, found, before = (part[moved] for part in (rows, alone, found, before))
        tried = least_squares(dense[rows], found, hessian, alone, iterations, _TOLERANCE)
        after = row_losses(dense[rows] - tried, hessian)
        better = after < before
        rows = rows[better]
        solved[rows], kept[rows] = tried[better], found[better]
    return solved, kept
