"""Refinement of an allocated channel permutation by linear assignment."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles

_ELEMENTS_PER_BATCH = 2**18  # numbers that stay in a cache while every candidate is compared with them


def refine_by_assignment(
    score: Tensor,
    permutation: Tensor,
    pattern: Pattern,
    blocks: int,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
    *,
    rows: int | None = None,
    widest: int | None = None,
) -> Tensor:
    """Reassign the channels at one position of all groups at a time, so that the retained score never falls.

    If group g gets the channel that group h has at this position, it retains sum_i b_ig + max(0, S_ih - u_ig), where
    u_ig is the N-th largest of the group's other M - 1 scores in row i and b_ig the sum of the N largest of them. As
    max(0, a - b) = max(a, b) - b, everything except V[g, h] = sum_i max(S_ih, u_ig) is the same for every assignment.
    So V alone decides, nothing is sorted, and the assignment that maximises V is exact.

    Computing V takes out * groups^2 operations; `rows` and `widest` reduce that. The promise that the retained score
    never falls is checked on all rows.

    Args:
        score: Stacked scores of all linears that share the input, (out, in); higher = keep.
        permutation: Channel permutation to refine, (in,).
        pattern: N kept of every M.
        blocks: Consecutive blocks of groups that are refined separately.
        row_tiles: Computes the rows of V that belong to this process and gathers the others'.
        rows: Rows of `score` that enter V, evenly spaced; None for all.
        widest: Largest number of groups refined together. A block with more is refined in several parts, each made of
            every k-th group, so that all parts of an allocated permutation are alike; None for no limit.

    Returns:
        Refined permutation, (in,).

    Source:
        RIA, ICLR 2024 (OpenReview Tr0lPx9woF), linear sum assignment, one pass.
    """
    channels = score.float().T.contiguous()  # (in, out)
    count = len(score)
    sampled_rows = torch.arange(rows, device=score.device) * count // rows if rows and rows < count else None
    refined = permutation.view(-1, pattern.group).clone()
    for block in refined.tensor_split(blocks):
        parts = -(-len(block) // widest) if widest else 1
        for first in range(min(parts, len(block))):
            groups = block[first::parts].clone()
            block[first::parts] = _refine_groups(channels, groups, pattern.keep, sampled_rows, row_tiles)
    return refined.reshape(-1)


def _refine_groups(
    channels: Tensor, permutation: Tensor, keep: int, sampled_rows: Tensor | None, row_tiles: RowTiles
) -> Tensor:
    """Reassign each position of these groups once; `permutation` (groups, M) is changed in place and returned."""
    positions = [channels[permutation[:, position]] for position in range(permutation.shape[1])]  # M of (groups, out)
    for position, candidate in enumerate(positions):
        threshold = _nth_largest(positions[:position] + positions[position + 1 :], keep)
        # Above all thresholds the size of a score makes no difference between groups. Clamping makes channels that are
        # kept everywhere (or nowhere) tie exactly, and keeps outliers from drowning the rest in rounding.
        bounded = candidate.clamp(threshold.amin(0), threshold.amax(0))
        if sampled_rows is None:
            assignment = _best_assignment(threshold, bounded, row_tiles)
        else:
            assignment = _best_assignment(threshold[:, sampled_rows], bounded[:, sampled_rows], row_tiles)
        # V is rounded: move nothing for a difference that the exact terms do not show.
        if _gain(threshold, bounded[assignment]) > _gain(threshold, bounded):
            positions[position] = candidate[assignment]
            permutation[:, position] = permutation[assignment, position]
    return permutation


def _best_assignment(threshold: Tensor, candidate: Tensor, row_tiles: RowTiles) -> Tensor:
    """Return for each group g the group h whose candidate channel it gets, maximising the sum of V[g, h].

    Args:
        threshold: u, (groups, out).
        candidate: S, (groups, out).
        row_tiles: Computes the rows of V^T that belong to this process and gathers the others'.
    """
    groups = len(threshold)
    transposed = torch.empty(groups, groups, dtype=torch.float64, device=threshold.device)  # V^T

    def value_rows(tile: slice) -> tuple[Tensor]:
        value = torch.zeros_like(transposed[tile])
        partial_sums = torch.empty(value.shape, device=value.device)  # over some rows of the scores
        step = max(1, _ELEMENTS_PER_BATCH // groups)
        for start in range(0, threshold.shape[1], step):
            u = threshold[:, start : start + step].contiguous()
            s = candidate[tile][:, start : start + step].contiguous()
            higher = torch.empty_like(u)
            for h in range(len(s)):
                torch.sum(torch.maximum(u, s[h], out=higher), 1, out=partial_sums[h])
            value += partial_sums
        return (value,)

    row_tiles.fill(candidate, value_rows, transposed)
    value = transposed.T
    # A constant taken from a row or column changes no choice, and starting with zeros makes the solver 3 to 4x faster.
    cost = value.amax(1, keepdim=True) - value
    cost -= cost.amin(0, keepdim=True)
    _, assignment = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(assignment).to(threshold.device)


def _gain(threshold: Tensor, candidate: Tensor) -> float:
    """Return the score that the groups retain of these candidates beyond what they retain without them."""
    return float((candidate - threshold).clamp_min_(0.0).sum(dtype=torch.float64))


def _nth_largest(values: list[Tensor], n: int) -> Tensor:
    """Return the elementwise n-th largest of equally shaped tensors."""
    from_largest = n <= len(values) + 1 - n  # count from the nearer end
    rank = n if from_largest else len(values) + 1 - n
    nearer, farther = (torch.maximum, torch.minimum) if from_largest else (torch.minimum, torch.maximum)
    extremes: list[Tensor] = []  # the `rank` most extreme so far, outermost first
    for value in values:
        for i, extreme in enumerate(extremes):
            extremes[i], value = nearer(extreme, value), farther(extreme, value)
        if len(extremes) < rank:
            extremes.append(value)
    return extremes[-1]
