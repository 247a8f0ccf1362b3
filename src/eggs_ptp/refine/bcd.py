"""Block coordinate descent on a mask: the exact best pattern of each group, for weights that are not updated."""

import itertools
import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import count_violations
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError

_MOST_PATTERNS = 20_000  # 8:16 has 12 870; each costs one sum per row and group
_COSTS_PER_BATCH = 1 << 22  # costs computed at a time: bounds the memory besides the matrix itself
_COLUMNS_PER_UPDATE = 128  # columns whose changes are carried to the rest of the matrix in one product
_LEAST_GAIN = 1e-6  # share of the row's loss: a smaller gain may be rounding, and could raise the loss


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
    """Choose each group's best pattern with all other groups fixed, from left to right, until nothing improves.

    Lowers tr(D H D^T) with D = W * ~mask the pruned weights and H = gram + damping * mean(diag gram) * I. For every
    group of M columns each row takes the pattern, of all C(M, N), of least loss, or keeps the one it has if none is
    better. A row stops after a sweep that changes nothing in it, or after `sweeps`. No row's loss rises, and weights
    are not changed.

    Args:
        mask: Keep mask, bool (out, in); at most N kept of every M.
        weight: W, (out, in).
        pattern: N kept of every M.
        gram: X^T X / tokens, (in, in).
        sweeps: Most passes over all groups, at least 0; 10 by default.
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default.
        keep_floor: Preserve the connectivity of the mask: no input ends with fewer connections than the least connected
            input of `mask` has (for EGGS-PTP at least N in each of its B blocks). Changes that would break this are
            undone, those of least gain first, so that rows depend on one another. Off by default.

    Returns:
        Keep mask, bool (out, in).

    Raises:
        PatternError: The pattern has more than 20 000 choices per group, the mask keeps more than N of M, or the
            columns cannot be cut into groups of M.
        NumericsError: gram is not finite.

    Source:
        This project. (SparseSwaps, arXiv:2512.10922, lowers the same loss by single swaps.)
    """
    if (count := math.comb(pattern.group, pattern.keep)) > _MOST_PATTERNS:
        raise PatternError(
            f"steps.refine: bcd tries every pattern of a group, and {pattern} has {count}; expected at most "
            f"{_MOST_PATTERNS}, as 8:16 has; leave the refine step out (steps.refine.name = 'none') or narrow the group"
        )
    if violations := count_violations(mask, pattern):
        raise PatternError(
            f"mask: expected {pattern}, but {violations} groups keep more; pass the pattern that it was made for"
        )
    descent = _Descent(mask, weight, pattern, damped(gram, damping), keep_floor)
    for _ in range(sweeps):
        if not descent.sweep():
            break
    return descent.current_mask()


class _Descent:
    """State of the descent, transposed: row j of a tensor is column j of the weight, for the active rows only.

    With d the pruned weights of one row, its loss is d^T H d; `slope` is H d. In a group g the rest of the row adds
    c = slope - H_gg d_g, so that pruning the set P of the group costs sum_(j in P) w_j (2 c_j + H_jj w_j) +
    sum_(j < k in P) 2 w_j w_k H_jk. This is linear in M (M + 1) / 2 terms, which one product sums up for all patterns.
    """

    def __init__(self, mask: Tensor, weight: Tensor, pattern: Pattern, hessian: Tensor, keep_floor: bool) -> None:
        self.hessian = hessian
        self.group = pattern.group
        self.finished_mask = mask.clone()  # (out, in); a row is written when it stops
        self.rows = torch.arange(len(mask), device=mask.device)  # the active rows
        self.dense = weight.to(hessian.dtype).T.contiguous()  # (in, active)
        self.keep = mask.T.contiguous()
        pruned = self.dense * ~self.keep
        self.slope = hessian @ pruned
        self.loss = (pruned * self.slope).sum(0).clamp_min(0.0)  # (active,)
        self.floor = int(mask.sum(0).min()) if keep_floor else 0
        # Connections of each input in rows that have stopped.
        self.finished_connections = torch.zeros(len(hessian), dtype=torch.long, device=mask.device)
        # Of equal costs the first is taken: the lowest columns are pruned first.
        kept_columns = list(itertools.combinations(range(pattern.group), pattern.keep))[::-1]
        patterns = torch.zeros(len(kept_columns), pattern.group, dtype=torch.bool)
        patterns.scatter_(1, torch.tensor(kept_columns), True)
        self.patterns = patterns.T.to(mask.device)  # (M, patterns)
        self.pairs = torch.triu_indices(pattern.group, pattern.group, 1, device=mask.device)
        self.terms = self._terms_of(~self.patterns).T.contiguous()  # (patterns, terms)

    def current_mask(self) -> Tensor:
        """Return the mask so far, (out, in)."""
        self.finished_mask[self.rows] = self.keep.T
        return self.finished_mask

    def sweep(self) -> bool:
        """Visit every group once; return whether any row is still active."""
        before = self.keep.clone()
        width = len(self.dense)
        step = max(1, _COLUMNS_PER_UPDATE // self.group) * self.group
        for low in range(0, width, step):
            high = min(low + step, width)
            change = torch.empty_like(self.slope[low:high])
            for first in range(low, high, self.group):
                columns = slice(first, first + self.group)
                group_change = self._choose_patterns(columns)
                change[first - low : first - low + self.group] = group_change
                self.slope[low:high].addmm_(self.hessian[low:high, columns], group_change)
            for rest in (slice(0, low), slice(high, width)):
                self.slope[rest].addmm_(self.hessian[rest, low:high], change)
        changed = (self.keep != before).any(0)
        self._stop(~changed)
        return bool(len(self.rows))

    def _choose_patterns(self, columns: slice) -> Tensor:
        """Choose the pattern of one group in each row; return what this adds to the pruned weights, (M, active)."""
        weight = self.dense[columns]
        keep = self.keep[columns]
        corner = self.hessian[columns, columns]
        pruned = weight * ~keep
        rest = self.slope[columns] - corner @ pruned
        single = weight * (2 * rest + corner.diagonal().unsqueeze(1) * weight)
        left, right = self.pairs
        double = 2 * corner[left, right].unsqueeze(1) * weight[left] * weight[right]
        terms = torch.cat([single, double])
        rows_per_batch = max(1, _COSTS_PER_BATCH // len(self.terms))
        costs = [self.terms @ batch for batch in terms.split(rows_per_batch, dim=1)]
        choice = torch.cat([cost.argmin(0) for cost in costs])
        candidate = self.patterns[:, choice]
        gain = ((self._terms_of(~keep) - self._terms_of(~candidate)) * terms).sum(0)
        moves = gain > _LEAST_GAIN * (self.loss + terms.abs().sum(0))
        if self.floor:
            self._undo_below_floor(columns, candidate, gain, moves)
        self.keep[columns] = torch.where(moves, candidate, keep)
        return weight * ~self.keep[columns] - pruned

    def _terms_of(self, pruned: Tensor) -> Tensor:
        """Mark the terms that count when `pruned` (M, n) weights are pruned: (terms, n)."""
        return torch.cat([pruned, pruned[self.pairs[0]] & pruned[self.pairs[1]]]).to(self.hessian.dtype)

    def _undo_below_floor(self, columns: slice, candidate: Tensor, gain: Tensor, moves: Tensor) -> None:
        """Clear the entries of `moves` that would leave an input of the group with too few connections."""
        keep = self.keep[columns]
        while True:
            connections = self.finished_connections[columns] + torch.where(moves, candidate, keep).sum(1)
            missing = (self.floor - connections).clamp_min(0)
            if not missing.any():
                return
            column = int(missing.argmax())
            losing = (moves & keep[column] & ~candidate[column]).nonzero().squeeze(1)
            moves[losing[gain[losing].argsort(stable=True)[: int(missing[column])]]] = False

    def _stop(self, stops: Tensor) -> None:
        """Write the mask of the rows that stop, and go on with the others."""
        if not stops.any():
            return
        self.finished_mask[self.rows[stops]] = self.keep[:, stops].T
        self.finished_connections += self.keep[:, stops].sum(1)
        active = ~stops
        self.rows = self.rows[active]
        self.loss = self.loss[active]
        self.dense = self.dense[:, active]
        self.keep = self.keep[:, active]
        self.slope = self.slope[:, active]
