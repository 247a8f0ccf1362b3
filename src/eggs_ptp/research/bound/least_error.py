"""A lower bound on the output error of every N:M mask, row by row."""

import torch
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern


def least_error(
    weight: Tensor, hessian: Tensor, pattern: Pattern, minorant: Tensor, *, updated: bool = False, steps: int = 30
) -> Tensor:
    r"""Bound the output error of all N:M masks from below: u H u^T for every row, u = W - W', W' of the pattern.

    A mask with pruned set P has u_P = w_P. With kept weights unchanged, u is 0 elsewhere; if they may be updated, the
    error is the least over all u with u_P = w_P.

    With d = `minorant` (d >= 0, A = H - diag d positive semidefinite) the error is u A u^T + sum_j d_j u_j^2, and for
    any v (A is positive semidefinite, so (u - v) A (u - v)^T >= 0):

        u H u^T >= -v A v^T + sum_j (2 a_j u_j + d_j u_j^2),  a = v A.

    The sum is separable by columns, and its minimum over masks by groups. With kept weights unchanged, u_j is w_j or 0,
    so pruning j costs c_j = 2 a_j w_j + d_j w_j^2, and a group loses at least its M - N smallest costs. With updated
    weights, u_j is free where j is kept, with the minimum -a_j^2 / d_j, so pruning j costs
    c_j = d_j (w_j + a_j / d_j)^2 more than keeping it:

        bound(v) = -v A v^T [- sum_j a_j^2 / d_j] + sum over groups of the M - N smallest c_j.

    This holds for every v. v is moved by conditional gradients (Frank and Wolfe) towards the u of the smallest costs,
    with exact line search, in float32, and the best v of each row is evaluated in float64. The start v = 0 gives the
    bound that neglects all correlations not contained in d. The gap between the bound and the best mask includes that
    of the relaxation: the bound need not be attained.

    Args:
        weight: W (out, in), groups are consecutive columns.
        hessian: H (in, in), symmetric and positive semidefinite.
        pattern: N:M.
        minorant: d (in,), from `bound.minorant.minorant`.
        updated: Whether kept weights may be updated.
        steps: Number of conditional gradient steps.

    Returns:
        (out,) in float64, >= 0.

    Source: this project. Splitting off a diagonal: the perspective relaxation of sparse regression, arXiv:0603019 in
    its simplest form; the certificate of conditional gradients: Jaggi, ICML 2013.
    """
    search = _Relaxation(weight.float(), hessian.float(), pattern, minorant.float(), updated)
    point = search.ascend(steps)
    exact = _Relaxation(weight.double(), hessian.double(), pattern, minorant.double(), updated)
    origin = torch.zeros_like(exact.weight)
    bound = torch.maximum(exact.bound(point.double())[0], exact.bound(origin)[0])
    return bound.clamp_min(0.0)


class _Relaxation:
    """The bound as a function of v, for all rows at once."""

    def __init__(self, weight: Tensor, hessian: Tensor, pattern: Pattern, minorant: Tensor, updated: bool) -> None:
        pattern.check_width(weight.shape[1], "weight")
        self.weight = weight
        self.pattern = pattern
        self.updated = updated
        self.diagonal = minorant.to(weight)
        self.remainder = hessian - torch.diag(self.diagonal)
        self.inverse = torch.where(self.diagonal > 0, self.diagonal.reciprocal(), 0.0)

    def bound(self, point: Tensor, linear: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the bound at v.

        Args:
            point: v (out, in).
            linear: a = v A (out, in), if known.

        Returns:
            The bound (out,), the u that attains the minimum (out, in), and sum_j d_j u_j^2 (out,).
        """
        weight = self.weight
        diagonal = self.diagonal
        linear = point @ self.remainder if linear is None else linear
        if self.updated:
            free = -linear * self.inverse
            # Where d is 0 and a is not, the error of a kept weight has no lower bound.
            gain = torch.where((diagonal == 0) & (linear.abs() > 0), torch.inf, linear.square() * self.inverse)
            cost = diagonal * (weight - free).square()
            least = -gain.sum(1)
        else:
            free = torch.zeros_like(weight)
            least = torch.zeros_like(weight[:, 0])
            cost = 2 * linear * weight + diagonal * weight.square()
        kept = keep_top(cost, self.pattern)
        minimiser = torch.where(kept, free, weight)
        value = least + torch.where(kept, 0.0, cost).sum(1) - (point * linear).sum(1)
        return value, minimiser, (diagonal * minimiser.square()).sum(1)

    def ascend(self, steps: int) -> Tensor:
        """Return the v with the best bound seen on the way, (out, in)."""
        value, point, diagonal_term = self.bound(torch.zeros_like(self.weight))
        best_value = value
        best_point = torch.zeros_like(self.weight)
        linear = point @ self.remainder
        for _ in range(steps):
            value, minimiser, minimiser_term = self.bound(point, linear)
            better = value > best_value
            best_value = torch.where(better, value, best_value)
            best_point = torch.where(better.unsqueeze(1), point, best_point)
            direction = minimiser - point
            direction_linear = direction @ self.remainder
            # Between the two points the diagonal term is at most the interpolation of its values at both.
            slope = -2 * (linear * direction).sum(1) + diagonal_term - minimiser_term
            curvature = 2 * (direction_linear * direction).sum(1)
            size = torch.where(curvature > 0, slope / curvature, 1.0).clamp(0.0, 1.0)
            point = torch.addcmul(point, size.unsqueeze(1), direction)
            linear = torch.addcmul(linear, size.unsqueeze(1), direction_linear)
            diagonal_term = diagonal_term + size * (minimiser_term - diagonal_term)
        value = self.bound(point, linear)[0]
        return torch.where((value > best_value).unsqueeze(1), point, best_point)
