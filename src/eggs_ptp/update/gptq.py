"""GPTQ on kept weights: quantised column by column, each time correcting the columns that follow."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import damped, upper_factor
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.quantisation import GRIDS, QuantisationGrid
from eggs_ptp.errors import MethodError

_BLOCK = 128  # columns quantised one by one before their errors are carried to the rest of the matrix
_SCALE_SHARES = tuple(1 - 0.05 * step for step in range(8))  # candidate scales, as shares of the largest magnitude


def gptq(
    weight: Tensor,
    mask: Tensor | None,
    pattern: Pattern,
    gram: Tensor,
    start: Tensor | None = None,
    tokens: Tensor | None = None,
    *,
    values: Literal["int8", "int4"] = "int8",
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    passes: Annotated[int, Field(ge=0)] = 4,
) -> tuple[Tensor, Tensor]:
    """Quantise kept weights so that packing with the same `values` changes no bit of them.

    V is `start`, or the dense weight, on the mask, and
    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I = R R^T with U = R^-1. For every column j from
    left to right, Q_:j is the nearest value of a / top * {-top, ..., top} where j is kept and 0 elsewhere;
    e = (V_:j - Q_:j) / U_jj; and V_:k -= e U_jk for all k >= j. There is one scale a per row (int8, top = 127), or one
    per 64 kept weights of a row (int4, top = 7), chosen when the sweep gets to them: of 1, 0.95, ..., 0.65 times their
    largest magnitude, in bfloat16, the one that rounds with least squared error. Their largest weight becomes +-a, so
    that a can be read off the weights. Then `passes` over all columns choose each Q_:j again with all other columns
    fixed, the best for tr((V - Q) H (V - Q)^T), which never rises.

    Any update step after this one, and tuning, moves weights off the quantisation grid again.

    Args:
        weight: W, (out, in).
        mask: Keep mask, bool (out, in).
        pattern: N kept of every M.
        gram: X^T X / tokens, (in, in).
        start: Weights of a previous update step, (out, in); None for the first.
        tokens: Number of tokens that gram was computed from, shape (); None for no correction of the damping.
        values: Integer type of the quantisation grid: "int8" (default) or "int4".
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default.
        passes: Passes of coordinate descent after the sweep, at least 0; 4 by default. They end early when nothing
            changes.

    Returns:
        Weight, float32 (out, in), and the mask.

    Raises:
        MethodError: There is no mask.
        NumericsError: gram is zero, or H is not positive definite.

    Source:
        GPTQ, arXiv:2210.17323, algorithm 1, with pruned weights as in SparseGPT, arXiv:2301.00774, section 3.5.

    Differs:
        Symmetric grids over kept weights only. The passes are coordinate descent, as in QuantEase, arXiv:2309.01885,
        without its reordering.
    """
    if mask is None:
        raise MethodError(
            "steps.update: gptq quantises the weights of a given mask, and there is none; give steps.select, or masks"
        )
    grid = GRIDS[values]
    target = torch.where(mask, weight if start is None else start, 0.0).float().T.contiguous()  # V, (in, out)
    kept = mask.T.contiguous()
    hessian = damped(gram, damping, tokens).float()
    mean = hessian.diagonal().mean()
    # A channel that is always zero has no other entries: any positive diagonal will do.
    hessian.diagonal().copy_(torch.where(hessian.diagonal() == 0, mean, hessian.diagonal()))
    inverse_factor = _inverse(upper_factor(hessian, 0.0))  # U
    scale_group = grid.scale_group_size(pattern, len(target) // pattern.group * pattern.keep)
    width = scale_group // pattern.keep * pattern.group  # columns that share scales
    quantised = target.clone()  # columns to the right of the sweep hold corrected values that are not quantised yet
    scales = torch.zeros_like(target)
    is_peak = torch.zeros_like(kept)
    for low in range(0, len(target), width):
        columns = slice(low, min(low + width, len(target)))
        scale, peak = _choose_scales(quantised[columns], kept[columns], grid)
        scales[columns] = torch.where(kept[columns], scale, 0.0)
        is_peak[columns] = peak
        for first in range(columns.start, columns.stop, _BLOCK):
            block = slice(first, min(first + _BLOCK, columns.stop))
            _quantise_block(quantised, scales, is_peak, inverse_factor, block, grid)
    for _ in range(passes):
        if not _descend(quantised, target, scales, is_peak, hessian, grid):
            break
    return quantised.T.contiguous(), mask


def _inverse(factor: Tensor) -> Tensor:
    """Invert an upper triangular matrix."""
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=True)
    return inverse


def _choose_scales(columns: Tensor, kept: Tensor, grid: QuantisationGrid) -> tuple[Tensor, Tensor]:
    """Choose one scale for each row of some columns.

    Args:
        columns: Weights, (columns, rows).
        kept: Keep mask, bool (columns, rows).
        grid: Quantisation grid.

    Returns:
        Scales, (rows,), and the weight of each row that becomes the scale itself, bool (columns, rows).
    """
    magnitude = torch.where(kept, columns.abs(), -1.0)
    largest, position = magnitude.max(0)
    candidates = torch.stack([(largest.clamp_min(0) * share).bfloat16().float() for share in _SCALE_SHARES])
    errors = torch.stack(
        [(_nearest(columns, scale, grid) - columns).square().mul_(kept).sum(0) for scale in candidates]
    )
    scale = candidates.gather(0, errors.argmin(0, keepdim=True))[0]
    peak = torch.zeros_like(kept).scatter_(0, position[None], True) & kept
    return scale, peak


def _nearest(weight: Tensor, scale: Tensor, grid: QuantisationGrid) -> Tensor:
    """Return the nearest value of the grid; 0 where the scale is 0."""
    step = scale / grid.max_level
    level = (weight / torch.where(step > 0, step, 1.0)).round_().clamp_(-grid.max_level, grid.max_level)
    return level * scale / grid.max_level + 0.0  # as it is read back: only the quotient is rounded, and zeros are +0.0


def _quantise_block(
    quantised: Tensor, scales: Tensor, is_peak: Tensor, inverse_factor: Tensor, block: slice, grid: QuantisationGrid
) -> None:
    """Quantise a block of columns in place, and carry its errors to all columns to the right of it."""
    current = quantised[block]
    errors = torch.empty_like(current)
    corner = inverse_factor[block, block]
    signs = torch.where(current < 0, -1.0, 1.0)  # before any error is carried: the sign of a peak does not change
    for j in range(len(current)):
        scale = scales[block][j]
        chosen = torch.where(is_peak[block][j], signs[j] * scale, _nearest(current[j], scale, grid))
        errors[j] = (current[j] - chosen) / corner[j, j]
        current[j + 1 :].addr_(corner[j, j + 1 :], errors[j], alpha=-1)
        current[j] = chosen
    quantised[block.stop :].addmm_(inverse_factor[block, block.stop :].T, errors, alpha=-1)


def _descend(
    quantised: Tensor, target: Tensor, scales: Tensor, is_peak: Tensor, hessian: Tensor, grid: QuantisationGrid
) -> bool:
    """Choose every column again with all others fixed; return whether any weight has changed."""
    difference = target - quantised
    changed = False
    for low in range(0, len(quantised), _BLOCK):
        block = slice(low, min(low + _BLOCK, len(quantised)))
        pull = hessian[block] @ difference  # (block, out): minus half the gradient of the loss
        corner = hessian[block, block]
        before = quantised[block].clone()
        for j in range(len(before)):
            optimum = quantised[block][j] + pull[j] / corner[j, j]
            chosen = torch.where(is_peak[block][j], before[j], _nearest(optimum, scales[block][j], grid))
            step = chosen - before[j]
            quantised[block][j] = chosen
            pull.addr_(corner[j], step, alpha=-1)
        difference[block] = target[block] - quantised[block]
        changed |= not torch.equal(quantised[block], before)
    return changed
