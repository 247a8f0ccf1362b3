"""GPTQ on kept weights: put on a grid column by column, each time correcting the columns to come."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.grid import GRIDS, Grid
from eggs_ptp.core.linalg import damped, upper_factor
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import MethodError

_BLOCK = 128  # columns settled one by one before their effect is carried on
_SHARES = tuple(1 - 0.05 * step for step in range(8))  # of the largest magnitude, that are tried as scales


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
    """Put kept weights on the grid of `values`, so that packing with the same `values` changes no bit of them.

    From V, the weights of an update step before this one (`start`), or the dense ones, on the mask, with
    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I = R R^T and U = R^-1, for every column j from left
    to right: q = the nearest of a / top * {-top, ..., top} where j is kept, else 0; e = (V_:j - q) / U_jj;
    V_:k -= e U_jk for all k >= j. The scale a is one for a row (int8, top 127), or for 64 kept weights of a row (int4,
    top 7), found when the sweep reaches them: of 1, 0.95, ..., 0.65 times their largest magnitude the one that rounds
    with least squared error, in bfloat16. Their largest weight becomes +-a, so that a can be read off the weights.
    Then `passes` over all columns choose each q again with all others given, the best for
    tr((V - Q) H (V - Q)^T), which never rises. `weight`, `start` (out, in), `mask` (out, in) True = keep, `gram`
    (in, in); returns weight, in float32, and mask.

    A step behind this one moves weights off the grid again; so does tuning.

    Source: GPTQ, arXiv:2210.17323, algorithm 1, with pruned weights as in SparseGPT, arXiv:2301.00774, section 3.5.
    Differs: symmetric grids over kept weights only; the passes are coordinate descent, as in QuantEase,
    arXiv:2309.01885, without its reordering.

    Raises:
        MethodError: there is no mask.
        NumericsError: gram is zero, or H is not positive definite.
    """
    if mask is None:
        raise MethodError(
            "steps.update: gptq quantises the weights of a given mask, and there is none; give steps.select, or masks"
        )
    grid = GRIDS[values]
    begin = torch.where(mask, weight if start is None else start, 0.0).float().T.contiguous()  # (in, out)
    kept = mask.T.contiguous()
    hessian = damped(gram, damping, tokens).float()
    mean = hessian.diagonal().mean()
    hessian.diagonal().copy_(torch.where(hessian.diagonal() == 0, mean, hessian.diagonal()))  # never fired, alone
    inverse = _inverse(upper_factor(hessian, 0.0))
    run = grid.run(pattern, len(begin) // pattern.group * pattern.keep)
    width = run // pattern.keep * pattern.group  # columns that share scales
    settled, scales, fixed = begin.clone(), torch.zeros_like(begin), torch.zeros_like(kept)
    for low in range(0, len(begin), width):
        stretch = slice(low, min(low + width, len(begin)))
        scale, peak = _scales(settled[stretch], kept[stretch], grid)
        scales[stretch] = torch.where(kept[stretch], scale, 0.0)
        fixed[stretch] = peak
        for first in range(stretch.start, stretch.stop, _BLOCK):
            _settle(settled, scales, fixed, inverse, slice(first, min(first + _BLOCK, stretch.stop)), grid)
    for _ in range(passes):
        if not _descend(settled, begin, scales, fixed, hessian, grid):
            break
    return settled.T.contiguous(), mask


def _inverse(factor: Tensor) -> Tensor:
    one = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, one, upper=True)
    return inverse


def _scales(columns: Tensor, kept: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """For weights (columns, rows) the scale of each row, (rows,), and which weight of it becomes the scale itself."""
    sizes = torch.where(kept, columns.abs(), -1.0)
    largest, place = sizes.max(0)
    tried = torch.stack([(largest.clamp_min(0) * share).bfloat16().float() for share in _SHARES])
    errors = torch.stack([(_nearest(columns, scale, grid) - columns).square().mul_(kept).sum(0) for scale in tried])
    scale = tried.gather(0, errors.argmin(0, keepdim=True))[0]
    peak = torch.zeros_like(kept).scatter_(0, place[None], True) & kept
    return scale, peak


def _nearest(now: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The nearest value of the grid; 0 where the scale is."""
    step = scale / grid.top
    number = (now / torch.where(step > 0, step, 1.0)).round_().clamp_(-grid.top, grid.top)
    return number * scale / grid.top + 0.0  # as it is read back: only the quotient is rounded, and zeros are +0.0


def _settle(settled: Tensor, scales: Tensor, fixed: Tensor, inverse: Tensor, block: slice, grid: Grid) -> None:
    """Quantise a block of columns, and carry what they owe to all behind them."""
    now, errors = settled[block], torch.empty_like(settled[block])
    corner = inverse[block, block]
    signs = torch.where(now < 0, -1.0, 1.0)  # before anything is carried: the sign of a fixed weight stays
    for j in range(len(now)):
        scale = scales[block][j]
        chosen = torch.where(fixed[block][j], signs[j] * scale, _nearest(now[j], scale, grid))
        errors[j] = (now[j] - chosen) / corner[j, j]
        now[j + 1 :].addr_(corner[j, j + 1 :], errors[j], alpha=-1)
        now[j] = chosen
    settled[block.stop :].addmm_(inverse[block, block.stop :].T, errors, alpha=-1)


def _descend(settled: Tensor, begin: Tensor, scales: Tensor, fixed: Tensor, hessian: Tensor, grid: Grid) -> bool:
    """Choose every column again with all others given; whether any weight has changed."""
    gap, changed = begin - settled, False
    for low in range(0, len(settled), _BLOCK):
        block = slice(low, min(low + _BLOCK, len(settled)))
        pull = hessian[block] @ gap  # (block, out): minus half the slope of the loss
        corner, before = hessian[block, block], settled[block].clone()
        for j in range(len(before)):
            best = settled[block][j] + pull[j] / corner[j, j]
            chosen = torch.where(fixed[block][j], before[j], _nearest(best, scales[block][j], grid))
            step = chosen - before[j]
            settled[block][j] = chosen
            pull.addr_(corner[j], step, alpha=-1)
        gap[block] = begin[block] - settled[block]
        changed |= not torch.equal(settled[block], before)
    return changed
