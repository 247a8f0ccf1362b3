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
) -> Noted:
    """Prune the lowest scores of each row that add up to a fraction f of its total, f such that the share s goes.

    A row loses every score up to the largest whose cumulative sum is at most f * total; one f serves all rows, so
    rows lose different numbers of weights. f is bisected within [0, limit].

    Args:
        score: (out, in), not negative, higher = keep.
        pattern: the sparsity s, which is met within `tolerance` of the matrix, or as nearly as f allows.
        tolerance: of the sparsity, and the narrowest bracket of f.
        limit: the largest f.

    Returns:
        Keep mask, bool (out, in). Facts: fraction f, sparsity reached.

    Raises:
        MethodError: a negative score, or a sparsity that `limit` does not reach.

    Source: Wanda, arXiv:2306.11695, its public code's `use_variant`.
    Differs: a row whose smallest score is above f * total keeps all, where the public code's index falls off the row.
    """
    ordered = score.sort(1).values
    if bool((ordered[:, 0] < 0).any()):
        raise MethodError("steps.select: 'cumulative' adds scores up and cannot take negative ones; set it to 'top'")
    running = ordered.cumsum(1, dtype=torch.float64)
    low, high, fraction = 0.0, limit, limit / 2
    threshold, share = _pruned(ordered, running, fraction)
    while abs(share - pattern.sparsity) > tolerance and high - low >= tolerance:
        if share > pattern.sparsity:
            high = fraction
        else:
            low = fraction
        fraction = (low + high) / 2
        threshold, share = _pruned(ordered, running, fraction)
    if high == limit and pattern.sparsity - share > tolerance:
        raise MethodError(
            f"steps.select.limit: a fraction of up to {limit:g} of each row's score is {share:.4f} of the weights, "
            f"less than the sparsity {pattern}; raise it, to 1 at most, or set steps.select to 'top'"
        )
    return Noted(score > threshold, {"fraction": fraction, "sparsity": share})


def _pruned(ordered: Tensor, running: Tensor, fraction: float) -> tuple[Tensor, float]:
    """The largest score that each row loses, (out, 1), and the share of the matrix that goes."""
    qualified = torch.searchsorted(running, running[:, -1:] * fraction, right=True)
    threshold = ordered.gather(1, (qualified - 1).clamp_min(0)).masked_fill(qualified == 0, -math.inf)
    return threshold, int(torch.searchsorted(ordered, threshold, right=True).sum()) / ordered.numel()
