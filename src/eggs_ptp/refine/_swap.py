"""Swaps of one pruned weight for one kept weight, row by row, until a row's expected error is small."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern, Pattern

SameSign = Literal["original", "always", "never"]
Skip = Literal["mlp", "none"]


@dataclass(frozen=True)
class Rule:
    """How the rows swap.

    In each of at most `max_cycles` cycles a row with |error| > `threshold` grows its next weight and prunes one. It
    stops for good below the threshold, when it has no candidate left, or when the error would leave its first
    sign and `same_sign` forbids that ("original": for N:M only, as the public code does).
    """

    max_cycles: int
    threshold: float
    same_sign: SameSign

    def forbids_crossing(self, pattern: AnyPattern) -> bool:
        return self.same_sign == "always" or (self.same_sign == "original" and isinstance(pattern, Pattern))


@dataclass(frozen=True)
class Keys:
    """The order of the candidates, each (out, in) or able to broadcast to it.

    Where the error is positive the next weight to grow is the largest `grow + bonus` with `grow` > 0; where it is
    negative, the largest `bonus - grow` with `grow` < 0. The next to prune is the lowest `prune`.
    """

    grow: Tensor
    prune: Tensor
    bonus: Tensor | float = 0.0


def swap(mask: Tensor, part: Tensor, keys: Keys, pattern: AnyPattern, rule: Rule) -> Tensor:
    """The mask (True = keep) after the swaps; each row and, for N:M, each group keeps as many as before.

    `part` (out, in) is each weight's part of its row's expected output. The error of a row, the sum of `part` over its
    pruned weights, becomes smaller by `part` of the weight grown and larger by that of the weight pruned. A weight is
    swapped once at most. N:M prunes in the group of the weight grown; unstructured, only weights whose part has the
    other sign than the error, so that both halves of a swap lower it. Equal keys: lower column first.
    """
    most = min(rule.max_cycles, mask.shape[1])
    error = part.masked_fill(mask, 0.0).sum(1, dtype=torch.float64)
    cost = torch.stack([-(keys.grow + keys.bonus), keys.grow - keys.bonus])  # for a positive and a negative error
    allowed = torch.stack([keys.grow > 0, keys.grow < 0]) & ~mask
    grown = _Queue(cost, allowed, part, most)
    if isinstance(pattern, Pattern):
        return _swap_in_groups(mask, part, keys.prune, grown, error, pattern, rule)
    other_sign = torch.stack([part < 0, part > 0]) & mask
    pruned = _Queue(keys.prune.expand_as(other_sign), other_sign, part, most)
    taken = _walk(error, pruned.part - grown.part, most, rule, rule.forbids_crossing(pattern))
    swapped = torch.arange(most, device=mask.device) < taken.unsqueeze(-1)  # (2, out, most)
    result = mask.clone()
    for columns, value in ((grown.column, True), (pruned.column, False)):
        for side in range(2):
            row, place = swapped[side].nonzero(as_tuple=True)
            result[row, columns[side, row, place]] = value
    return result


class _Queue:
    """The first candidates of every row: their columns and parts, (2, out, most); a part is NaN where there is none."""

    def __init__(self, cost: Tensor, allowed: Tensor, part: Tensor, most: int) -> None:
        cost = cost.masked_fill(~allowed, torch.inf)
        self.column = cost.sort(dim=-1, stable=True).indices[..., :most]
        found = torch.gather(allowed, -1, self.column)
        values = torch.gather(part.expand_as(cost), -1, self.column)
        self.part = values.double().masked_fill(~found, torch.nan)


def _walk(error: Tensor, step: Tensor, most: int, rule: Rule, no_crossing: bool) -> Tensor:
    """How many swaps of each side every row makes, (2, out); `step` (2, out, most) is what each adds to its error."""
    rows = torch.arange(len(error), device=error.device)
    taken = torch.zeros(2, len(error), dtype=torch.long, device=error.device)
    first_sign, active = error.sign(), torch.ones_like(error, dtype=torch.bool)
    for _ in range(most):
        side = (error <= 0).long()
        after = error + step[side, rows, taken[side, rows]]
        active = active & _goes_on(error, after, first_sign, rule, no_crossing)
        if not active.any():
            break
        taken[side, rows] += active
        error = torch.where(active, after, error)
    return taken


def _goes_on(error: Tensor, after: Tensor, first_sign: Tensor, rule: Rule, no_crossing: bool) -> Tensor:
    goes_on = (error.abs() > rule.threshold) & ~after.isnan()
    return goes_on & (after.sign() == first_sign) if no_crossing else goes_on


def _swap_in_groups(
    mask: Tensor, part: Tensor, prune: Tensor, grown: _Queue, error: Tensor, pattern: Pattern, rule: Rule
) -> Tensor:
    result, rows = mask.clone(), torch.arange(len(mask), device=mask.device)
    # A weight grown here is no candidate: only those kept at the start and not pruned since have a finite cost.
    cost = prune.expand_as(mask).masked_fill(~mask, torch.inf).view(len(mask), -1, pattern.group)
    taken = torch.zeros(2, len(mask), dtype=torch.long, device=mask.device)
    first_sign, active = error.sign(), torch.ones_like(error, dtype=torch.bool)
    for _ in range(grown.column.shape[-1]):
        side = (error <= 0).long()
        place = taken[side, rows]
        grow = grown.column[side, rows, place]
        lowest, within = cost[rows, grow // pattern.group].min(-1)
        pruned = grow // pattern.group * pattern.group + within
        after = error - grown.part[side, rows, place] + part[rows, pruned]
        active = active & ~lowest.isinf() & _goes_on(error, after, first_sign, rule, rule.forbids_crossing(pattern))
        if not active.any():
            break
        moved = rows[active]
        result[moved, grow[active]] = True
        result[moved, pruned[active]] = False
        cost.view(len(mask), -1)[moved, pruned[active]] = torch.inf
        taken[side, rows] += active
        error = torch.where(active, after, error)
    return result
