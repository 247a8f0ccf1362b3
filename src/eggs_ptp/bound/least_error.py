"""Lower bounds on the output error of every N:M mask, row by row."""

import torch
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern


def least_error(
    weight: Tensor, hessian: Tensor, pattern: Pattern, minorant: Tensor, *, updated: bool = False, steps: int = 30
) -> Tensor:
    r"""No N:M mask loses less: a lower bound on u H u^T for every row, u = W - W' what is lost, W' of the pattern.

    Of a mask with pruned set P the loss is u_P = w_P with u = 0 elsewhere, where kept weights stay as they are, and
    the least over all u with u_P = w_P where they may be solved for (`updated`).

    With d = `minorant` (d >= 0, A = H - diag d positive semidefinite) the loss is u A u^T + sum_j d_j u_j^2, and for
    any v (A is positive semidefinite, so (u - v) A (u - v)^T >= 0):

        u H u^T >= -v A v^T + sum_j (2 a_j u_j + d_j u_j^2),  a = v A.

    The sum falls apart into columns, and its least over masks into groups. Kept weights as they are: u_j is w_j or 0,
    so pruning j costs c_j = 2 a_j w_j + d_j w_j^2, and a group loses at least its M - N smallest. Solved for: u_j
    is free where it is kept, where the least is -a_j^2 / d_j, so
    pruning j costs c_j = d_j (w_j + a_j / d_j)^2 more than keeping it:

        bound(v) = -v A v^T [- sum_j a_j^2 / d_j] + sum over groups of the M - N smallest c_j.

    Whatever v is, no mask loses less; v is moved by conditional gradients (Frank and Wolfe) towards the u of the
    smallest costs, with exact line search, in float32, and the best v of each row is judged in float64. v = 0, the
    first, gives the bound that neglects all correlations beyond d. What is left between the bound and the best
    mask is the gap of the relaxation as well as of the mask: the bound need not be reached.

    Args:
        weight: W (out, in), the groups consecutive columns.
        hessian: H (in, in), symmetric and positive semidefinite.
        pattern: N:M.
        minorant: d (in,), of `bound.minorant.minorant`.
        updated: whether kept weights may be solved for.
        steps: conditional gradients.

    Returns:
        (out,) in float64, >= 0.

    Source: this project. Splitting a diagonal off: the perspective relaxation of sparse regression, arXiv:0603019 in
    its simplest form; the certificate of conditional gradients: Jaggi, ICML 2013.
    """
    search = _Relaxation(weight.float(), hessian.float(), pattern, minorant.float(), updated)
    point = search.ascend(steps)
    judge = _Relaxation(weight.double(), hessian.double(), pattern, minorant.double(), updated)
    nothing = torch.zeros_like(judge.weight)
    found = torch.maximum(judge.bound(point.double())[0], judge.bound(nothing)[0])
    return found.clamp_min(0.0)


class _Relaxation:
    """The bound as a function of v, for all rows at once."""

    def __init__(self, weight: Tensor, hessian: Tensor, pattern: Pattern, minorant: Tensor, updated: bool) -> None:
        pattern.check_width(weight.shape[1], "weight")
        self.weight, self.pattern, self.updated = weight, pattern, updated
        self.diagonal = minorant.to(weight)
        self.rest = hessian - torch.diag(self.diagonal)
        self.inverse = torch.where(self.diagonal > 0, self.diagonal.reciprocal(), 0.0)

    def bound(self, point: Tensor, pull: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The bound at v (out,), the u that it is taken at, and that u's share of the diagonal."""
        weight, diagonal = self.weight, self.diagonal
        pull = point @ self.rest if pull is None else pull
        if self.updated:
            free = -pull * self.inverse
            # Without a diagonal to hold it, a kept weight that is pulled could fall without end: no bound there.
            lost = torch.where((diagonal == 0) & (pull.abs() > 0), torch.inf, pull.square() * self.inverse)
            cost = diagonal * (weight - free).square()
            least = -lost.sum(1)
        else:
            free, least = torch.zeros_like(weight), torch.zeros_like(weight[:, 0])
            cost = 2 * pull * weight + diagonal * weight.square()
        kept = keep_top(cost, self.pattern)
        taken = torch.where(kept, free, weight)
        value = least + torch.where(kept, 0.0, cost).sum(1) - (point * pull).sum(1)
        return value, taken, (diagonal * taken.square()).sum(1)

    def ascend(self, steps: int) -> Tensor:
        """The v of the best bound that was come across, (out, in)."""
        value, point, own = self.bound(torch.zeros_like(self.weight))
        best, at = value, torch.zeros_like(self.weight)
        pull = point @ self.rest
        for _ in range(steps):
            value, taken, its = self.bound(point, pull)
            better = value > best
            best, at = torch.where(better, value, best), torch.where(better.unsqueeze(1), point, at)
            step = taken - point
            bent = step @ self.rest
            # Along the way the diagonal's part is at most the mean of its ends.
            fall = -2 * (pull * step).sum(1) + own - its
            curve = 2 * (bent * step).sum(1)
            size = torch.where(curve > 0, fall / curve, 1.0).clamp(0.0, 1.0)
            point = torch.addcmul(point, size.unsqueeze(1), step)
            pull = torch.addcmul(pull, size.unsqueeze(1), bent)
            own = own + size * (its - own)
        value = self.bound(point, pull)[0]
        return torch.where((value > best).unsqueeze(1), point, at)
