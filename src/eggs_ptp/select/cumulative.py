"""Wanda's variant: each row loses the same share of its total score."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.noted import Noted
from eggs_ptp.core.pattern import Unstructured
from eggs_ptp.errors import MethodError


def cumulative(
    score: Tensor,
    pattern: Unstructured,
    *,
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.001,
    limit: Annotated[float, Field(gt=0, le=1)] = 0.8,
    original: bool = False,
) -> Noted:
    """Prune the lowest scores of each row while they add up to at most f of its total, f such that the share s goes.

    One f serves all rows, so rows lose different numbers of weights. It is bisected within [0, limit]; equal scores
    go lower column first.

    Args:
        score: (out, in), not negative, higher = keep.
        pattern: the sparsity s, which is met within `tolerance` of the matrix, or as nearly as f allows.
        tolerance: of the sparsity.
        limit: the largest f.
        original: as the public code: all scores equal to a row's last one go with it, and f is not sought more closely
            than to 0.001, whatever the sparsity is by then.

    Returns:
        Keep mask, bool (out, in). Facts: fraction f, sparsity reached.

    Raises:
        MethodError: a negative score, or a sparsity that `limit` does not reach (not with `original`).

    Source: Wanda, arXiv:2306.11695, its public code's `use_variant`.
    Differs: a row whose smallest score is above f of its total keeps all, where the public code's index falls off it.
    """
    ordered = score.sort(1).values
    if bool((ordered[:, 0] < 0).any()):
        raise MethodError("steps.select: 'cumulative' adds scores up and cannot take negative ones; set it to 'top'")
    running = ordered.cumsum(1, dtype=torch.float64)
    low, high, fraction = 0.0, limit, limit / 2
    narrowest = 0.001 if original else 1e-12
    while True:
        pruned = _pruned(ordered, running, fraction, together=original)  # (out, 1)
        share = int(pruned.sum()) / score.numel()
        if abs(share - pattern.sparsity) <= tolerance or high - low < narrowest:
            break
        low, high = (low, fraction) if share > pattern.sparsity else (fraction, high)
        fraction = (low + high) / 2
    if not original and high == limit and pattern.sparsity - share > tolerance:
        raise MethodError(
            f"steps.select.limit: a fraction of up to {limit:g} of each row's score is {share:.4f} of the weights, "
            f"less than the sparsity {pattern}; raise it, to 1 at most, or set steps.select to 'top'"
        )
    return Noted(_without_lowest(score, ordered, pruned), {"fraction": fraction, "sparsity": share})


def _pruned(ordered: Tensor, running: Tensor, fraction: float, together: bool) -> Tensor:
    """How many of each row's lowest scores add up to at most that fraction of it, (out, 1)."""
    fitting = torch.searchsorted(running, running[:, -1:] * fraction, right=True)
    return torch.searchsorted(ordered, _last(ordered, fitting), right=True) if together else fitting


def _without_lowest(score: Tensor, ordered: Tensor, pruned: Tensor) -> Tensor:
    last = _last(ordered, pruned)
    lower, tied = score < last, score == last
    going = pruned - lower.sum(1, keepdim=True)
    return ~(lower | (tied & (tied.cumsum(1, dtype=torch.int32) <= going)))


def _last(ordered: Tensor, pruned: Tensor) -> Tensor:
    """The largest of each row's `pruned` lowest scores, -inf of none."""
    return ordered.gather(1, (pruned - 1).clamp_min(0)).masked_fill(pruned == 0, -math.inf)
