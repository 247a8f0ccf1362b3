"""Group descent from its definition, in float64: every group of every row by trying every pattern."""

import itertools

import torch
from torch import Tensor


def best_group(weight: Tensor, current: Tensor, hessian: Tensor, first: int, size: int, keep: int) -> Tensor:
    """Return a row in which one group has the pattern and the weights of least loss; all others are as before.

    Args:
        weight: W, (in,).
        current: W', (in,).
        hessian: H, (in, in).
        first: First column of the group.
        size: M.
        keep: N.
    """
    best, least = current, torch.inf
    for kept in itertools.combinations(range(first, first + size), keep):
        candidate = current.clone()
        candidate[first : first + size] = 0.0
        columns = list(kept)
        # The gradient vanishes at the kept weights: (W - W') H = 0 there.
        gradient = (weight - candidate) @ hessian
        candidate[columns] = torch.linalg.solve(hessian[columns][:, columns], gradient[columns])
        loss = (weight - candidate) @ hessian @ (weight - candidate)
        if loss < least:
            best, least = candidate, loss
    return best


def group_descent(weight: Tensor, start: Tensor, hessian: Tensor, size: int, keep: int, sweeps: int) -> Tensor:
    """Return the weights after some sweeps over all groups, (out, in)."""
    rows = start.double().clone()
    for _ in range(sweeps):
        for first in range(0, weight.shape[1], size):
            for row in range(len(rows)):
                rows[row] = best_group(weight[row].double(), rows[row], hessian.double(), first, size, keep)
    return rows
