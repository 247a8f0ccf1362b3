"""Exact least squares on a fixed support, for all rows of a matrix."""

import torch
from torch import Tensor

from eggs_ptp.core.row_tiles import MAX_TILE_WEIGHTS


def row_losses(change: Tensor, hessian: Tensor) -> Tensor:
    """Return the loss d H d^T of each row d of a change in weights.

    Args:
        change: (out, in).
        hessian: H, (in, in).

    Returns:
        (out,).
    """
    return (change @ hessian * change).sum(1)


def single_weight_optima(dense: Tensor, solved: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the optimal value of each weight while all others stay fixed, and what it is worth.

    With W the dense weight and W' the solved one, the optimum is x = W' + (W - W') H / diag H, with 1/0 taken as 0, and
    the loss of its row is lower by H_jj x_ij^2 than with a zero at ij.

    Args:
        dense: W, (out, in).
        solved: W', (out, in).
        hessian: H, (in, in).

    Returns:
        x and H_jj x_ij^2, both (out, in), and the loss of each row of W - W', (out,).
    """
    diagonal = hessian.diagonal()
    change = dense - solved
    gradient = change @ hessian
    optimum = solved + gradient * torch.where(diagonal > 0, diagonal.reciprocal(), 0.0)
    return optimum, optimum.square() * diagonal, (gradient * change).sum(1)


def least_squares(
    weight: Tensor, mask: Tensor, hessian: Tensor, start: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """Minimise tr((W - X) H (W - X)^T) over X supported on a mask, by preconditioned conjugate gradients.

    Rows are independent problems: each has its own step sizes, and stops once a step has lowered its loss by less than
    `tolerance` of the loss. The preconditioner is 1 / diag H. All tensors have the same type.

    Args:
        weight: W, (out, in).
        mask: The support of X, bool (out, in).
        hessian: H, (in, in).
        start: Where the iteration starts, (out, in).
        iterations: Steps at most.
        tolerance: Relative decrease of the loss at which a row stops.

    Returns:
        X, (out, in).
    """
    rows = max(1, MAX_TILE_WEIGHTS // len(hessian))
    tiles = zip(*(tensor.split(rows) for tensor in (weight, mask, start)), strict=True)
    solved = [
        _conjugate_gradients(tile_weight, tile_mask, tile_start, hessian, iterations, tolerance)
        for tile_weight, tile_mask, tile_start in tiles
    ]
    return solved[0] if len(solved) == 1 else torch.cat(solved)


def _conjugate_gradients(
    weight: Tensor, mask: Tensor, start: Tensor, hessian: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """Solve the least squares problem of some rows; rows that have converged are dropped from the iteration."""
    diagonal = hessian.diagonal()
    preconditioner = torch.where(diagonal > 0, diagonal.reciprocal(), 0.0)
    solution = start * mask
    residual = (weight - solution) @ hessian  # (rows, in)
    loss = (residual * (weight - solution)).sum(1)
    rows = torch.arange(len(weight), device=weight.device)
    iterate = solution.clone()
    support = mask.to(weight.dtype)
    residual = residual * support
    direction = residual * preconditioner
    slope = (residual * direction).sum(1)
    for _ in range(iterations):
        product = direction @ hessian * support
        curvature = (direction * product).sum(1)
        # Computed from the direction and not taken from `slope`: then every step is an exact line search, which cannot
        # overshoot by rounding.
        descent = (residual * direction).sum(1)
        step = torch.where(curvature > 0, descent / curvature, 0.0)
        gain = step * descent
        active = gain > tolerance * loss.clamp_min(0.0)
        iterate = torch.addcmul(iterate, step.unsqueeze(1), direction)
        if not active.all():
            solution[rows[~active]] = iterate[~active]
            rows, iterate, support, loss, gain = (tensor[active] for tensor in (rows, iterate, support, loss, gain))
            residual, direction, product = (tensor[active] for tensor in (residual, direction, product))
            step, slope = step[active], slope[active]
        if not len(rows):
            return solution
        loss = loss - gain
        residual = torch.addcmul(residual, step.unsqueeze(1), product, value=-1)
        preconditioned = residual * preconditioner
        previous_slope = slope
        slope = (residual * preconditioned).sum(1)
        direction = torch.addcmul(preconditioned, (slope / previous_slope).unsqueeze(1), direction)
    solution[rows] = iterate
    return solution
