"""Exact least squares on a fixed support, for all rows at once."""

import torch
from torch import Tensor

from eggs_ptp.core.slabs import AT_ONCE


def row_losses(change: Tensor, hessian: Tensor) -> Tensor:
    """Loss d H d^T of each row d of `change` (out, in): (out,)."""
    return (change @ hessian * change).sum(1)


def loss_alone(dense: Tensor, solved: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best value x_ij of each weight with all others as `solved`, what it saves against 0, and each row's loss.

    x = W' + (W - W') H / diag H and H_jj x_ij^2, both (out, in), 1/0 read as 0; as `row_losses` of W - W', (out,).
    """
    diagonal, change = hessian.diagonal(), dense - solved
    pull = change @ hessian
    alone = solved + pull * torch.where(diagonal > 0, diagonal.reciprocal(), 0.0)
    return alone, alone.square() * diagonal, (pull * change).sum(1)


def least_squares(
    weight: Tensor, mask: Tensor, hessian: Tensor, start: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """Find argmin over X supported on `mask` of tr((W - X) H (W - X)^T), by conjugate gradients from `start`.

    Rows are problems of their own: each has its own step sizes, and leaves once a step has lowered its loss by less
    than `tolerance` of it. The preconditioner is 1 / diag H. All (out, in), `hessian` (in, in), of one type.
    """
    rows = max(1, AT_ONCE // len(hessian))
    parts = zip(*(whole.split(rows) for whole in (weight, mask, start)), strict=True)
    solved = [_solved(dense, kept, begin, hessian, iterations, tolerance) for dense, kept, begin in parts]
    return solved[0] if len(solved) == 1 else torch.cat(solved)


def _solved(weight: Tensor, mask: Tensor, start: Tensor, hessian: Tensor, iterations: int, tolerance: float) -> Tensor:
    diagonal = hessian.diagonal()
    inverse = torch.where(diagonal > 0, diagonal.reciprocal(), 0.0)
    solution = start * mask
    pull = (weight - solution) @ hessian  # (rows, in)
    loss = (pull * (weight - solution)).sum(1)
    rows = torch.arange(len(weight), device=weight.device)
    now, free = solution.clone(), mask.to(weight.dtype)
    pull = pull * free
    ahead = pull * inverse
    slope = (pull * ahead).sum(1)
    for _ in range(iterations):
        bent = ahead @ hessian * free
        curvature = (ahead * bent).sum(1)
        # Taken anew, not as `slope`: then every step is a line search, which rounding cannot make overshoot.
        fall = (pull * ahead).sum(1)
        step = torch.where(curvature > 0, fall / curvature, 0.0)
        gain = step * fall
        goes_on = gain > tolerance * loss.clamp_min(0.0)
        now = torch.addcmul(now, step.unsqueeze(1), ahead)
        if not goes_on.all():
            solution[rows[~goes_on]] = now[~goes_on]
            rows, now, free, loss, gain = (part[goes_on] for part in (rows, now, free, loss, gain))
            pull, ahead, bent, step, slope = (part[goes_on] for part in (pull, ahead, bent, step, slope))
        if not len(rows):
            return solution
        loss = loss - gain
        pull = torch.addcmul(pull, step.unsqueeze(1), bent, value=-1)
        toward = pull * inverse
        slope, before = (pull * toward).sum(1), slope
        ahead = torch.addcmul(toward, (slope / before).unsqueeze(1), ahead)
    solution[rows] = now
    return solution
