"""Keep masks: bool, True = keep. Among equal scores the lower index is pruned first, everywhere."""

import functools
from typing import Literal

import torch
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern, Pattern

# Groups of up to this many columns are processed column by column: M passes to count, M(M - 1)/2 comparisons to rank.
# For larger M reductions and sorting are faster.
_MAX_GROUP_BY_COLUMN = 16
_SCORES_PER_BATCH = 1 << 20  # what fits a processor's cache


def keep_top(
    score: Tensor,
    pattern: AnyPattern,
    *,
    group: Literal["row", "layer", "block"] = "row",
    block_size: int = 128,
    count: Literal["exact", "original"] = "exact",
) -> Tensor:
    """Keep the highest scores: N of every M consecutive columns, or all but the share s of each comparison group.

    Args:
        score: (out, in), higher = keep. It must hold no NaN: a NaN cannot be ranked, and only the caller can name the
            matrix in an error.
        pattern: N:M, or unstructured with sparsity s. The options below concern unstructured patterns only.
        group: Comparison group: a "row", the whole matrix ("layer"), or all rows of `block_size` consecutive columns
            ("block").
        block_size: Columns of a "block"; the last block may be narrower.
        count: How many of a group's n weights are pruned: "exact" round(n * s); "original", as in the public code of
            Wanda, RIA and SparseGPT, int(n * s) of a row, or everything up to and including the score of rank
            int(n * s) of a layer or block, which is one weight too many.

    Returns:
        Keep mask, bool (out, in).

    Raises:
        PatternError: The columns cannot be cut into groups of M.
    """
    if isinstance(pattern, Pattern):
        pattern.check_width(score.shape[1], "score")
        batches = score.split(max(1, _SCORES_PER_BATCH // score.shape[1]))
        return torch.cat([_keep_top_of_groups(rows, pattern) for rows in batches])
    if group == "block":
        blocks = score.split(block_size, dim=1)
        return torch.cat([keep_top(block, pattern, group="layer", count=count) for block in blocks], 1)
    compared = score if group == "row" else score.reshape(1, -1)
    share = compared.shape[1] * pattern.sparsity
    if count == "original" and group == "layer":
        return score > compared.kthvalue(int(share) + 1).values
    # Rounded to 9 decimals first, as 100 * 0.29 is 28.999999999999996 in binary.
    pruned = int(share) if count == "original" else round(round(share, 9))
    return ~_lowest(compared, pruned).view_as(score)


def satisfies(mask: Tensor, pattern: Pattern) -> bool:
    """Return whether exactly N of every M consecutive columns of each row of `mask` (out, in) are True."""
    return bool((_kept_per_group(mask, pattern) == pattern.keep).all())


def count_violations(mask: Tensor, pattern: Pattern) -> int:
    """Count the groups of M consecutive columns with more than N True.

    Pass `weight != 0` to check stored weights: a kept weight may itself be zero, so fewer than N is no violation.

    Args:
        mask: (out, in), bool.
        pattern: N:M.
    """
    return int((_kept_per_group(mask, pattern) > pattern.keep).sum())


def density(mask: Tensor) -> float:
    """Return the share of True entries."""
    return int(mask.count_nonzero()) / mask.numel()


def apply_mask(weight: Tensor, mask: Tensor) -> Tensor:
    """Return `weight`, float32, where `mask` is True, and +0.0 elsewhere.

    The bits are multiplied by one or zero, which takes a third of the time of `torch.where` on a CPU: that one branches
    on every entry.
    """
    return (weight.view(torch.int32) * mask).view(torch.float32)


def count_nonzeros(weight: Tensor) -> int:
    """Count the entries that are not zero, in a fifth of the time of `weight.count_nonzero()`, which branches."""
    return int((weight != 0).count_nonzero())


def _kept_per_group(mask: Tensor, pattern: Pattern) -> Tensor:
    """Count the True entries of each group: (out, groups)."""
    pattern.check_width(mask.shape[1], "mask")
    grouped = mask.view(mask.shape[0], -1, pattern.group)  # (out, groups, M)
    if pattern.group > _MAX_GROUP_BY_COLUMN:
        return grouped.sum(-1)
    return functools.reduce(torch.add, grouped.view(torch.int8).unbind(-1))  # ten times as fast


def _keep_top_of_groups(score: Tensor, pattern: Pattern) -> Tensor:
    """Keep the N highest scores of every group of M columns."""
    grouped = score.reshape(score.shape[0], -1, pattern.group)  # (out, groups, M)
    pruned = pattern.group - pattern.keep
    if pattern.group > _MAX_GROUP_BY_COLUMN:
        lowest = grouped.argsort(dim=-1, stable=True)[..., :pruned]
        mask = torch.ones(grouped.shape, dtype=torch.bool, device=score.device)
        return mask.scatter_(-1, lowest, False).view_as(score)
    columns = grouped.permute(2, 0, 1).contiguous()  # (M, out, groups)
    rank = torch.zeros(columns.shape, dtype=torch.int8, device=score.device)  # how many of its group it outranks
    for k in range(1, pattern.group):
        for j in range(k):
            higher_wins = columns[k] >= columns[j]  # a tie goes to the higher column
            rank[k] += higher_wins
            rank[j] += ~higher_wins
    return (rank >= pruned).permute(1, 2, 0).reshape(score.shape)


def _lowest(score: Tensor, pruned: int) -> Tensor:
    """Mark the `pruned` lowest of each row without sorting: all below the threshold, and the first that equal it."""
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
