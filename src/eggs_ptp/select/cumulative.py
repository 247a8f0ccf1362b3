"""Wanda's variant: each row loses the same share of its total score."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.pattern import Unstructured
from eggs_ptp.core.step_result import StepResult
from eggs_ptp.errors import MethodError


def cumulative(
    score: Tensor,
    pattern: Unstructured,
    *,
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.001,
    limit: Annotated[float, Field(gt=0, le=1)] = 0.8,
    original: bool = False,
) -> StepResult:
    """Prune the lowest scores of each row up to a fraction f of the row's total score.

    In row i the lowest scores are pruned while their sum is at most f * sum_j S_ij. One f holds for all rows, so rows
    lose different numbers of weights; f is found by bisection within [0, limit] so that the whole matrix reaches the
    sparsity s. Of equal scores the lower column is pruned first.

    Args:
        score: (out, in), not negative; higher = keep.
        pattern: Unstructured with sparsity s, which is met within `tolerance` over the matrix, or as closely as f
            allows.
        tolerance: Accepted difference from the sparsity, between 0 and 1; 0.001 by default.
        limit: Largest f, above 0 and up to 1; 0.8 by default.
        original: Do as the public code does: scores equal to the last one pruned of a row are pruned too, and the
            bisection stops at a width of 0.001 even where the sparsity is not met. Off by default.

    Returns:
        Keep mask, bool (out, in), with the diagnostics fraction (f) and sparsity (the one reached).

    Raises:
        MethodError: A score is negative, or `limit` does not reach the sparsity (not with `original`).

    Source:
        Wanda, arXiv:2306.11695, its public code's `use_variant`.

    Differs:
        A row whose smallest score is more than f of its total keeps all its weights, where the index of the public code
        runs past the row.
    """
    ordered = score.sort(1).values
    if bool((ordered[:, 0] < 0).any()):
        raise MethodError("steps.select: 'cumulative' adds scores up and cannot take negative ones; set it to 'top'")
    running = ordered.cumsum(1, dtype=torch.float64)
    low, high = 0.0, limit
    fraction = limit / 2
    narrowest = 0.001 if original else 1e-12
    while True:
        pruned = _pruned_per_row(ordered, running, fraction, with_ties=original)  # (out, 1)
        sparsity = int(pruned.sum()) / score.numel()
        if abs(sparsity - pattern.sparsity) <= tolerance or high - low < narrowest:
            break
        low, high = (low, fraction) if sparsity > pattern.sparsity else (fraction, high)
        fraction = (low + high) / 2
    if not original and high == limit and pattern.sparsity - sparsity > tolerance:
        raise MethodError(
            f"steps.select.limit: a fraction of up to {limit:g} of each row's score is {sparsity:.4f} of the weights, "
            f"less than the sparsity {pattern}; raise it, to 1 at most, or set steps.select to 'top'"
        )
    return StepResult(_keep_all_but_lowest(score, ordered, pruned), {"fraction": fraction, "sparsity": sparsity})


def _pruned_per_row(ordered: Tensor, running: Tensor, fraction: float, with_ties: bool) -> Tensor:
    """Count how many of each row's lowest scores add up to at most that fraction of the row's total: (out, 1)."""
    fitting = torch.searchsorted(running, running[:, -1:] * fraction, right=True)
    if not with_ties:
        return fitting
    return torch.searchsorted(ordered, _last_pruned(ordered, fitting), right=True)


def _keep_all_but_lowest(score: Tensor, ordered: Tensor, pruned: Tensor) -> Tensor:
    """Return the keep mask, (out, in), that prunes the `pruned` (out, 1) lowest scores of each row."""
    last = _last_pruned(ordered, pruned)
    lower = score < last
    tied = score == last
    pruned_ties = pruned - lower.sum(1, keepdim=True)
    return ~(lower | (tied & (tied.cumsum(1, dtype=torch.int32) <= pruned_ties)))


def _last_pruned(ordered: Tensor, pruned: Tensor) -> Tensor:
    """Return the largest of each row's `pruned` lowest scores, (out, 1); -inf where that is none."""
    return ordered.gather(1, (pruned - 1).clamp_min(0)).masked_fill(pruned == 0, -math.inf)
