"""Exact choice of each group's pattern, given all others, for masks whose kept weights stay as they are."""

import itertools
import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import violations
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError

_MOST_PATTERNS = 20_000  # 8:16 has 12 870; each costs one sum per row and group
_ELEMENTS = 1 << 22  # costs computed at a time: bounds the memory beside the matrix itself
_BLOCK = 128  # columns whose changes are carried to the rest of the matrix in one product
_LEAST_GAIN = 1e-6  # of the row's loss: below it rounding could raise what it seems to lower


def bcd(
    mask: Tensor,
    weight: Tensor,
    pattern: Pattern,
    gram: Tensor,
    *,
    sweeps: Annotated[int, Field(ge=0)] = 10,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    keep_floor: bool = False,
) -> Tensor:
    """Lower tr(D H D^T), D = weight * ~mask, H = gram + damping * mean(diag gram) * I, group by group.

    For every group of M columns, from left to right, each row takes the pattern, of all C(M, N), that loses least with
    its other groups as they are; where none gains it keeps the one it has. Rows stop after a sweep that changes
    nothing, or after `sweeps`. `mask`, `weight` (out, in), `gram` (in, in); returns the mask, True = keep. No row's
    loss rises, and weights are not changed.

    `keep_floor` preserves what a mask made for connectivity promises: no input comes to have fewer connections than
    the least connected input has in `mask` (for EGGS-PTP at least N in each of its B blocks). Changes that would break
    it are taken back, those that gain least first; rows then depend on one another.

    Source: this project. (SparseSwaps, arXiv:2512.10922, lowers the same loss by single swaps.)

    Raises:
        PatternError: more than 20 000 patterns per group, or a mask that keeps more than N of M.
        NumericsError: gram is zero.
    """
    if (count := math.comb(pattern.group, pattern.keep)) > _MOST_PATTERNS:
        raise PatternError(
            f"steps.refine: bcd tries every pattern of a group, and {pattern} has {count}; expected at most "
            f"{_MOST_PATTERNS}, as 8:16 has; leave the refine step out (steps.refine.name = 'none') or narrow the group"
        )
    if bad := violations(mask, pattern):
        raise PatternError(f"mask: expected {pattern}, but {bad} groups keep more; pass the pattern it was made for")
    descent = _Descent(mask, weight, pattern, damped(gram, damping), keep_floor)
    for _ in range(sweeps):
        if not descent.sweep():
            break
    return descent.mask()


class _Descent:
    """The state of the descent, transposed: row j of a tensor is column j of the weight, for the rows still moving.

    With d the pruned weights of one row, its loss is d^T H d; `slope` is H d. In a group the rest of the row adds
    c = slope - H_gg d_g, so that pruning the set P of the group costs sum_(j in P) w_j (2 c_j + H_jj w_j) +
    sum_(j < k in P) 2 w_j w_k H_jk: linear in M (M + 1) / 2 terms, which one product sums up for all patterns.
    """

    def __init__(self, mask: Tensor, weight: Tensor, pattern: Pattern, hessian: Tensor, keep_floor: bool) -> None:
        self.hessian, self.group = hessian, pattern.group
        self.done = mask.clone()  # (out, in); rows are written when they stop
        self.rows = torch.arange(len(mask), device=mask.device)
        self.dense = weight.to(hessian.dtype).T.contiguous()  # (in, moving)
        self.keep = mask.T.contiguous()
        gone = self.dense * ~self.keep
        self.slope = hessian @ gone
        self.loss = (gone * self.slope).sum(0).clamp_min(0.0)  # (moving,)
        self.floor = int(mask.sum(0).min()) if keep_floor else 0
        self.settled = torch.zeros(
            len(hessian), dtype=torch.long, device=mask.device
        )  # connections of rows that stopped
        # Of equal costs the first is taken: the lowest columns pruned first.
        kept = list(itertools.combinations(range(pattern.group), pattern.keep))[::-1]
        patterns = torch.zeros(len(kept), pattern.group, dtype=torch.bool).scatter_(1, torch.tensor(kept), True)
        self.patterns = patterns.T.to(mask.device)  # (M, patterns)
        self.pairs = torch.triu_indices(pattern.group, pattern.group, 1, device=mask.device)
        self.terms = self._terms_of(~self.patterns).T.contiguous()  # (patterns, terms)

    def mask(self) -> Tensor:
        """The mask as it stands, (out, in)."""
        self.done[self.rows] = self.keep.T
        return self.done

    def sweep(self) -> bool:
        """Visit every group once; whether any row still moves."""
        before, width = self.keep.clone(), len(self.dense)
        step = max(1, _BLOCK // self.group) * self.group
        for low in range(0, width, step):
            high = min(low + step, width)
            change = torch.empty_like(self.slope[low:high])
            for first in range(low, high, self.group):
                here = slice(first, first + self.group)
                change[first - low : first - low + self.group] = moved = self._visit(here)
                self.slope[low:high].addmm_(self.hessian[low:high, here], moved)
            for rest in (slice(0, low), slice(high, width)):
                self.slope[rest].addmm_(self.hessian[rest, low:high], change)
        moves = (self.keep != before).any(0)
        self._stop(~moves)
        return bool(len(self.rows))

    def _visit(self, here: slice) -> Tensor:
        """Choose the patterns of one group; what this adds to the pruned weights, (M, moving)."""
        weight, keep, corner = self.dense[here], self.keep[here], self.hessian[here, here]
        gone = weight * ~keep
        rest = self.slope[here] - corner @ gone
        single = weight * (2 * rest + corner.diagonal().unsqueeze(1) * weight)
        left, right = self.pairs
        double = 2 * corner[left, right].unsqueeze(1) * weight[left] * weight[right]
        terms = torch.cat([single, double])
        costs = [self.terms @ part for part in terms.split(max(1, _ELEMENTS // len(self.terms)), dim=1)]
        choice = torch.cat([cost.argmin(0) for cost in costs])
        wanted = self.patterns[:, choice]
        gain = ((self._terms_of(~keep) - self._terms_of(~wanted)) * terms).sum(0)
        moves = gain > _LEAST_GAIN * (self.loss + terms.abs().sum(0))
        if self.floor:
            self._hold_floor(here, wanted, gain, moves)
        self.keep[here] = torch.where(moves, wanted, keep)
        return weight * ~self.keep[here] - gone

    def _terms_of(self, pruned: Tensor) -> Tensor:
        """Which terms count when `pruned` (M, n) go: (terms, n)."""
        return torch.cat([pruned, pruned[self.pairs[0]] & pruned[self.pairs[1]]]).to(self.hessian.dtype)

    def _hold_floor(self, here: slice, wanted: Tensor, gain: Tensor, moves: Tensor) -> None:
        """Take back, in `moves`, what would leave an input of the group with too few connections."""
        keep = self.keep[here]
        while True:
            degree = self.settled[here] + torch.where(moves, wanted, keep).sum(1)
            short = (self.floor - degree).clamp_min(0)
            if not short.any():
                return
            column = int(short.argmax())
            leaving = (moves & keep[column] & ~wanted[column]).nonzero().squeeze(1)
            moves[leaving[gain[leaving].argsort(stable=True)[: int(short[column])]]] = False

    def _stop(self, stops: Tensor) -> None:
        if not stops.any():
            return
        self.done[self.rows[stops]] = self.keep[:, stops].T
        self.settled += self.keep[:, stops].sum(1)
        moving = ~stops
        self.rows, self.loss = self.rows[moving], self.loss[moving]
        self.dense, self.keep, self.slope = (part[:, moving] for part in (self.dense, self.keep, self.slope))
