"""Swaps of a pruned weight for a kept one, row by row, until the row's expected error is small."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern, Pattern

SameSign = Literal["original", "always", "never"]
Variance = Literal["within", "all"]
ZeroVariance = Literal["never", "first"]
Skip = Literal["mlp", "none"]

# Rounding of float32 squares leaves a variance this small, relative to the mean square, in a channel that never varies.
_ROUNDING_VARIANCE = 4 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class StoppingRule:
    """When a row stops swapping; a row that has stopped does not start again.

    Attributes:
        max_cycles: Most swaps of a row.
        threshold: A row stops once its |error| is at most this.
        same_sign: Whether a swap that would take the error to zero or across it stops the row instead: "always",
            "never", or "original", for N:M patterns only, as in the public code.
    """

    max_cycles: int
    threshold: float
    same_sign: SameSign

    def forbids_crossing(self, pattern: AnyPattern) -> bool:
        """Return whether the error must keep the sign that it had at the start."""
        return self.same_sign == "always" or (self.same_sign == "original" and isinstance(pattern, Pattern))


@dataclass(frozen=True)
class SwapKeys:
    """Sort keys of the candidates, each (out, in) or broadcast to it.

    Attributes:
        grow: Where a row's error is positive, the pruned weight grown next has the largest grow + bonus of those with
            grow > 0; where it is negative, the largest bonus - grow of those with grow < 0.
        prune: The kept weight pruned next has the lowest key.
        bonus: Added to `grow` in either direction.
    """

    grow: Tensor
    prune: Tensor
    bonus: Tensor | float = 0.0


def swap(mask: Tensor, contribution: Tensor, keys: SwapKeys, pattern: AnyPattern, rule: StoppingRule) -> Tensor:
    """Swap pruned weights for kept ones in every row until its rule stops it.

    The error of a row, its dense minus its sparse output, is the sum of the contributions of its pruned weights. A swap
    grows the row's next pruned weight and prunes a kept one: for N:M the lowest key of the same group, unstructured the
    lowest key of those whose contribution has the opposite sign of the error. The lists of candidates are made once, so
    no weight is swapped twice. A row without a candidate stops. Among equal keys the lower column is pruned first and
    the higher one grown first.

    Args:
        mask: Keep mask, bool (out, in).
        contribution: Each weight's contribution to its row's expected output, (out, in).
        keys: Sort keys of the candidates.
        pattern: N:M or unstructured.
        rule: When a row stops.

    Returns:
        New keep mask, bool (out, in); every row, and for N:M every group, keeps as many weights as before.
    """
    most = min(rule.max_cycles, mask.shape[1])
    costs = (-keys.grow - keys.bonus, keys.grow - keys.bonus)
    growable = ((keys.grow > 0) & ~mask, (keys.grow < 0) & ~mask)
    grow_candidates = _CandidateLists.rank(costs, growable, most, higher_first=True)
    prune_candidates: _CandidateLists | _GroupCandidates
    if isinstance(pattern, Pattern):
        prune_candidates = _GroupCandidates(keys.prune, mask, pattern)
    else:
        opposite_sign = (mask & (contribution < 0), mask & (contribution > 0))
        prune_candidates = _CandidateLists.rank((keys.prune, keys.prune), opposite_sign, most, higher_first=False)
    swapped = mask.clone()
    rows = torch.arange(len(mask), device=mask.device)
    swaps = torch.zeros(2, len(mask), dtype=torch.long, device=mask.device)  # so far, by sign of the error
    error = contribution.masked_fill(mask, 0.0).sum(1, dtype=torch.float64)
    first_sign = error.sign()
    active = torch.ones_like(error, dtype=torch.bool)
    for _ in range(most):
        side = (error <= 0).long()
        position = swaps[side, rows]
        grow, can_grow = grow_candidates.next(side, rows, position)
        prune, can_prune = prune_candidates.next(side, rows, position, grow)
        new_error = error + contribution[rows, prune] - contribution[rows, grow]
        active = active & can_grow & can_prune & (error.abs() > rule.threshold)
        if rule.forbids_crossing(pattern):
            active = active & (new_error.sign() == first_sign)
        if not active.any():
            break
        active_rows = rows[active]
        swapped[active_rows, grow[active]] = True
        swapped[active_rows, prune[active]] = False
        prune_candidates.remove(active_rows, prune[active])
        swaps[side, rows] += active
        error = torch.where(active, new_error, error)
    return swapped


def per_variance(
    value: Tensor, variance: Tensor, input_norm: Tensor, power: float, zero_variance: ZeroVariance
) -> Tensor:
    """Divide by a power of the channels' variance; channels that do not vary get 0, so that they are never grown.

    Args:
        value: (..., in).
        variance: (in,).
        input_norm: (in,), which tells a variance from its rounding error.
        power: Exponent of the variance; 0 returns `value` unchanged.
        zero_variance: "never" as above; "first" divides by zero as the public code does, where 0/0 is sorted before all
            others.

    Returns:
        value / variance^power, (..., in).
    """
    if not power:
        return value
    inf = float("inf")
    constant = variance <= _ROUNDING_VARIANCE * input_norm.square()
    divided = value / variance.masked_fill(constant, inf).pow(power)
    if zero_variance == "first":
        return torch.where(constant, (value / 0.0).nan_to_num(inf, inf, -inf), divided)
    return divided


@dataclass(frozen=True)
class _CandidateLists:
    """The first candidates of each row, where its error is positive [0] and where it is not [1]: (2, out, most)."""

    column: Tensor
    is_candidate: Tensor

    @classmethod
    def rank(
        cls, costs: tuple[Tensor, Tensor], allowed: tuple[Tensor, Tensor], most: int, *, higher_first: bool
    ) -> "_CandidateLists":
        """List the `most` lowest costs of each row among the columns that are allowed."""
        columns = [
            _lowest_columns(cost, may, most, higher_first=higher_first)
            for cost, may in zip(costs, allowed, strict=True)
        ]
        is_candidate = [may.gather(1, column) for may, column in zip(allowed, columns, strict=True)]
        return cls(torch.stack(columns), torch.stack(is_candidate))

    def next(self, side: Tensor, rows: Tensor, position: Tensor, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the column at this position of each row's list, and whether it is a candidate."""
        return self.column[side, rows, position], self.is_candidate[side, rows, position]

    def remove(self, rows: Tensor, columns: Tensor) -> None:
        """Do nothing: the next position in the list is another column."""


class _GroupCandidates:
    """The kept weights of each group of M; a weight that was grown is no candidate."""

    def __init__(self, cost: Tensor, mask: Tensor, pattern: Pattern) -> None:
        self._size = pattern.group
        self._cost = cost.expand_as(mask).masked_fill(~mask, torch.inf).contiguous()

    def next(self, _side: Tensor, rows: Tensor, _position: Tensor, grow: Tensor) -> tuple[Tensor, Tensor]:
        """Return the column of lowest cost in the group of each grown column, and whether there is one."""
        group = grow // self._size
        lowest, within = self._cost.view(len(rows), -1, self._size)[rows, group].min(-1)
        return group * self._size + within, ~lowest.isposinf()

    def remove(self, rows: Tensor, columns: Tensor) -> None:
        """Take these weights off the lists."""
        self._cost[rows, columns] = torch.inf


def _lowest_columns(cost: Tensor, allowed: Tensor, most: int, *, higher_first: bool) -> Tensor:
    """Return the columns of each row's `most` lowest costs; of equal ones the lower or the higher column first."""
    cost = torch.where(allowed, cost, torch.inf)
    cost = cost.flip(1) if higher_first else cost
    values, column = cost.topk(min(most + 1, cost.shape[1]), largest=False)
    # topk returns equal values in any order, and a stable sort of all rows takes ten times as long.
    tied = ((values[:, 1:] == values[:, :-1]) & ~values[:, 1:].isposinf()).any(1)
    column[tied] = cost[tied].sort(dim=1, stable=True).indices[:, : column.shape[1]]
    column = column[:, :most]
    return cost.shape[1] - 1 - column if higher_first else column
