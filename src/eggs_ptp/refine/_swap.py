"""Swaps of a pruned weight for a kept one, row by row, until a row's expected error is small."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern, Pattern

SameSign = Literal["original", "always", "never"]
Variance = Literal["within", "all"]
ZeroVariance = Literal["never", "first"]
Skip = Literal["mlp", "none"]

# A variance this small beside the mean square is what float32 squares leave of a channel that never varies.
_FLAT = 4 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Rule:
    """When a row goes on: at most `max_cycles` times, while |error| > `threshold`.

    Where `same_sign` forbids it ("original": N:M only, as the public code does) a swap may not take the error to zero
    or across it. A row that has stopped has stopped for good.
    """

    max_cycles: int
    threshold: float
    same_sign: SameSign

    def forbids_crossing(self, pattern: AnyPattern) -> bool:
        """Whether the error has to keep the sign it started with."""
        return self.same_sign == "always" or (self.same_sign == "original" and isinstance(pattern, Pattern))


@dataclass(frozen=True)
class Keys:
    """The order of the candidates; each key is (out, in), or broadcasts to it.

    Where a row's error is positive, the next to grow has the largest grow + bonus of those with grow > 0; where it is
    negative, the largest bonus - grow of those with grow < 0. The next to prune has the lowest `prune`.
    """

    grow: Tensor
    prune: Tensor
    bonus: Tensor | float = 0.0


def swap(mask: Tensor, part: Tensor, keys: Keys, pattern: AnyPattern, rule: Rule) -> Tensor:
    """The mask (True = keep) after the swaps: every row, and for N:M every group, keeps as many as before.

    `part` (out, in) is each weight's part of its row's expected output, so that a row's error, dense minus sparse
    output, is the sum over its pruned weights. A swap grows the next pruned weight of the row's list and prunes, for
    N:M, the lowest of the same group; unstructured, the lowest of those whose part has the sign opposite to the error.
    Lists are drawn up once, so no weight is swapped twice. A row without a candidate stops. Among equal keys
    the lower column is pruned first and the higher one grown first.
    """
    most = min(rule.max_cycles, mask.shape[1])
    costs, allowed = (-keys.grow - keys.bonus, keys.grow - keys.bonus), (keys.grow > 0, keys.grow < 0)
    grown = _Lists.draw(costs, (allowed[0] & ~mask, allowed[1] & ~mask), most, higher_first=True)
    victims: _Lists | _Groups
    if isinstance(pattern, Pattern):
        victims = _Groups(keys.prune, mask, pattern)
    else:
        opposite = (mask & (part < 0), mask & (part > 0))
        victims = _Lists.draw((keys.prune, keys.prune), opposite, most, higher_first=False)
    result, rows = mask.clone(), torch.arange(len(mask), device=mask.device)
    taken = torch.zeros(2, len(mask), dtype=torch.long, device=mask.device)
    error = part.masked_fill(mask, 0.0).sum(1, dtype=torch.float64)
    first_sign, active = error.sign(), torch.ones_like(error, dtype=torch.bool)
    for _ in range(most):
        side = (error <= 0).long()
        place = taken[side, rows]
        grow, can_grow = grown.next(side, rows, place)
        prune, can_prune = victims.next(side, rows, place, grow)
        after = error + part[rows, prune] - part[rows, grow]
        active = active & can_grow & can_prune & (error.abs() > rule.threshold)
        if rule.forbids_crossing(pattern):
            active = active & (after.sign() == first_sign)
        if not active.any():
            break
        moved = rows[active]
        result[moved, grow[active]] = True
        result[moved, prune[active]] = False
        victims.spend(moved, prune[active])
        taken[side, rows] += active
        error = torch.where(active, after, error)
    return result


def per_variance(
    value: Tensor, variance: Tensor, input_norm: Tensor, power: float, zero_variance: ZeroVariance
) -> Tensor:
    """Value / variance^power, and 0 (never grown) for channels that do not vary.

    `value` (..., in), `variance` and `input_norm` (in,). `zero_variance="first"` divides by zero as the public code
    does, where 0/0 comes before everything else.
    """
    if not power:
        return value
    flat, inf = variance <= _FLAT * input_norm.square(), float("inf")
    divided = value / variance.masked_fill(flat, inf).pow(power)
    if zero_variance == "first":
        return torch.where(flat, (value / 0.0).nan_to_num(inf, inf, -inf), divided)
    return divided


@dataclass(frozen=True)
class _Lists:
    """The first candidates of each row where its error is positive [0] and where it is not [1]: (2, out, most)."""

    column: Tensor
    found: Tensor

    @classmethod
    def draw(
        cls, costs: tuple[Tensor, Tensor], allowed: tuple[Tensor, Tensor], most: int, *, higher_first: bool
    ) -> "_Lists":
        """The `most` lowest costs of each row among the columns allowed."""
        pairs = list(zip(costs, allowed, strict=True))
        columns = [_lowest(cost, where, most, higher_first=higher_first) for cost, where in pairs]
        found = [where.gather(1, column) for where, column in zip(allowed, columns, strict=True)]
        return cls(torch.stack(columns), torch.stack(found))

    def next(self, side: Tensor, rows: Tensor, place: Tensor, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.column[side, rows, place], self.found[side, rows, place]

    def spend(self, rows: Tensor, columns: Tensor) -> None:
        """Nothing to do: the place in the list moves on."""


class _Groups:
    """The kept weights of each group of M. One that was grown is no candidate."""

    def __init__(self, cost: Tensor, mask: Tensor, pattern: Pattern) -> None:
        self._size = pattern.group
        self._cost = cost.expand_as(mask).masked_fill(~mask, torch.inf).contiguous()

    def next(self, _side: Tensor, rows: Tensor, _place: Tensor, grow: Tensor) -> tuple[Tensor, Tensor]:
        group = grow // self._size
        lowest, within = self._cost.view(len(rows), -1, self._size)[rows, group].min(-1)
        return group * self._size + within, ~lowest.isposinf()

    def spend(self, rows: Tensor, columns: Tensor) -> None:
        self._cost[rows, columns] = torch.inf


def _lowest(cost: Tensor, allowed: Tensor, most: int, *, higher_first: bool) -> Tensor:
    """The columns of the `most` lowest costs of each row; among equal ones the lower or the higher column first."""
    cost = torch.where(allowed, cost, torch.inf)
    cost = cost.flip(1) if higher_first else cost
    values, column = cost.topk(min(most + 1, cost.shape[1]), largest=False)
    # topk leaves the order of equal values open, and a stable sort of all rows takes ten times as long.
    tied = ((values[:, 1:] == values[:, :-1]) & ~values[:, 1:].isposinf()).any(1)
    column[tied] = cost[tied].sort(dim=1, stable=True).indices[:, : column.shape[1]]
    column = column[:, :most]
    return cost.shape[1] - 1 - column if higher_first else column
