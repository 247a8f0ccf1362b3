"""Keep masks: bool, True = keep. Among equal scores the lower index is pruned first, everywhere."""

import functools
from typing import Literal

import torch
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern, Pattern

# Up to this M a group is gone through column by column: M passes to count, M(M - 1)/2 to compare all pairs. Past it
# reductions and sorting are cheaper.
_WIDEST_BY_COLUMN = 16
_IN_CACHE = 1 << 20  # scores compared at a time


def keep_top(
    score: Tensor,
    pattern: AnyPattern,
    *,
    group: Literal["row", "layer", "block"] = "row",
    block_size: int = 128,
    count: Literal["exact", "original"] = "exact",
) -> Tensor:
    """Keep the highest scores: N of every M consecutive columns, or all but the share s of a comparison group.

    `score` is (out, in), higher = keep, and must hold no NaN (a NaN has no place in an order, and only the caller
    can name the matrix); the mask has its shape. `group` and `count` concern unstructured patterns only: a group is a
    row, the matrix ("layer"), or all rows of `block_size` consecutive columns ("block", the last one may be narrower).
    Of a group of n weights `count="exact"` prunes round(n * s); `count="original"` follows the public code of Wanda,
    RIA and SparseGPT: int(n * s) of a row, or everything up to and including the score at rank int(n * s) of a layer
    or block, which is one weight too many.

    Raises:
        PatternError: the columns cannot be cut into groups of M.
    """
    if isinstance(pattern, Pattern):
        pattern.check_width(score.shape[1], "score")
        parts = score.split(max(1, _IN_CACHE // score.shape[1]))
        return torch.cat([_keep_of_group(rows, pattern) for rows in parts])
    if group == "block":
        blocks = score.split(block_size, dim=1)
        return torch.cat([keep_top(block, pattern, group="layer", count=count) for block in blocks], 1)
    compared = score if group == "row" else score.reshape(1, -1)
    share = compared.shape[1] * pattern.sparsity
    if count == "original" and group == "layer":
        return score > compared.kthvalue(int(share) + 1).values
    # 9 decimals: 100 * 0.29 is 28.999999999999996 in binary.
    pruned = int(share) if count == "original" else round(round(share, 9))
    return ~_lowest(compared, pruned).view_as(score)


def satisfies(mask: Tensor, pattern: Pattern) -> bool:
    """Whether exactly N of every M consecutive columns of each row are True."""
    return bool((_kept(mask, pattern) == pattern.keep).all())


def violations(mask: Tensor, pattern: Pattern) -> int:
    """Number of groups of M consecutive columns with more than N True.

    Pass `weight != 0` to check stored weights: a kept weight may itself be zero, so fewer than N is no violation.
    """
    return int((_kept(mask, pattern) > pattern.keep).sum())


def density(mask: Tensor) -> float:
    """Share of True."""
    return int(mask.count_nonzero()) / mask.numel()


def zeroed(weight: Tensor, mask: Tensor) -> Tensor:
    """`weight` in float32 where `mask` is True, and +0.0 elsewhere: its bits times one or zero.

    A third of the time that `torch.where` takes on a CPU, which branches on every entry.
    """
    return (weight.view(torch.int32) * mask).view(torch.float32)


def nonzeros(weight: Tensor) -> int:
    """Entries that are not zero, counted without branching: a fifth of the time of `weight.count_nonzero()`."""
    return int((weight != 0).count_nonzero())


def _kept(mask: Tensor, pattern: Pattern) -> Tensor:
    pattern.check_width(mask.shape[1], "mask")
    grouped = mask.view(mask.shape[0], -1, pattern.group)  # (out, groups, M)
    if pattern.group > _WIDEST_BY_COLUMN:
        return grouped.sum(-1)
    return functools.reduce(torch.add, grouped.view(torch.int8).unbind(-1))  # ten times as fast


def _keep_of_group(score: Tensor, pattern: Pattern) -> Tensor:
    grouped = score.reshape(score.shape[0], -1, pattern.group)  # (out, groups, M)
    pruned = pattern.group - pattern.keep
    if pattern.group > _WIDEST_BY_COLUMN:
        lowest = grouped.argsort(dim=-1, stable=True)[..., :pruned]
        kept = torch.ones(grouped.shape, dtype=torch.bool, device=score.device)
        return kept.scatter_(-1, lowest, False).view_as(score)
    places = grouped.permute(2, 0, 1).contiguous()  # (M, out, groups)
    beaten = torch.zeros(places.shape, dtype=torch.int8, device=score.device)
    for k in range(1, pattern.group):
        for j in range(k):
            upper = places[k] >= places[j]  # a tie goes to the higher column
            beaten[k] += upper
            beaten[j] += ~upper
    return (beaten >= pruned).permute(1, 2, 0).reshape(score.shape)


def _lowest(score: Tensor, pruned: int) -> Tensor:
    """True at the `pruned` lowest of each row, without sorting: all below the threshold, and the first ties."""
    if not pruned:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.kthvalue(pruned, dim=1, keepdim=True).values
    lowest = score <= threshold
    if bool((lowest.sum(1) > pruned).any()):
        tied = score == threshold
        surplus = lowest.sum(1, keepdim=True) - pruned
        allowed = tied.sum(1, keepdim=True) - surplus
        lowest &= ~tied | (tied.cumsum(1, dtype=torch.int32) <= allowed)
    return lowest
