"""ALPS: mask and weights found together by ADMM, then the weights exactly."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.least_squares import least_squares, row_losses
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.core.slabs import ALONE, Slabs
from eggs_ptp.errors import MethodError, NumericsError
from eggs_ptp.update.pcg import pcg
from eggs_ptp.update.sparsegpt import sparsegpt

_TOLERANCE = 1e-4  # of the final least squares, as in pcg
_EVERY = 3  # iterations between two looks at the support


def alps(
    weight: Tensor,
    mask: Tensor | None,
    pattern: AnyPattern,
    gram: Tensor,
    tokens: Tensor | None = None,
    slabs: Slabs = ALONE,
    *,
    damping: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01,
    rho: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1,
    rounds: Annotated[int, Field(ge=0)] = 300,
    iterations: Annotated[int, Field(ge=0)] = 20,
    widest: Annotated[int, Field(ge=1)] = 16384,
    wider: Literal["refuse", "sparsegpt"] = "refuse",
) -> tuple[Tensor, Tensor]:
    """Minimise tr((W - D) H (W - D)^T) over weights D of the pattern, by ADMM, then by exact least squares.

    With H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I, scaled to a unit diagonal, each row repeats
    X = (W H - V + rho D) (H + rho I)^-1; D = X + V / rho where it is largest (N of M, or of the row), else 0;
    V += rho (X - D). Every third round rho grows: by 1.3, 1.2 or 1.1 if at least a tenth, at least half a percent, or
    less of the row's support has moved since the last look; a row whose support stands still is done, at the latest
    after `rounds`. One eigendecomposition serves every rho. Then come `iterations` of `pcg`.

    A mask that is given is where D starts, and is not kept; otherwise D starts from W. Each row also solves for the
    weights of the support it started from, and keeps these where they lose less: so the result never loses more than
    `pcg` does with the given mask. `weight`, `mask` (out, in), `gram` (in, in), of `tokens`; returns weight and mask.

    The eigendecomposition takes about 10 in^3 operations and four matrices of in^2. Matrices with more than `widest`
    inputs are refused, or (`wider`) get SparseGPT's mask, where none is given, and exact least squares instead.

    Source: ALPS, arXiv:2406.07831, algorithm 1.
    Differs: rho, its growth and the stop are each row's own (there the matrix's), and so are the step sizes of the
    least squares; unstructured patterns are met in every row, not over the matrix; the better of start and end is kept;
    fewer than 32 tokens per channel raise the damping, as in pcg.

    Raises:
        PatternError: the columns cannot be cut into groups of M.
        MethodError: more inputs than `widest`.
        NumericsError: gram is zero, or its eigenvalues were not found.
    """
    hessian = damped(gram, damping, tokens)
    dense = weight.to(hessian.dtype)
    pattern.check_width(dense.shape[1], "weight")
    if dense.shape[1] > widest and wider == "refuse":
        raise _too_wide(dense.shape[1], widest)
    if dense.shape[1] > widest:
        found = slabs.agreed(sparsegpt(weight, None, pattern, gram, damping=damping)[1]) if mask is None else mask
        return pcg(weight, found, gram, None, tokens, slabs, iterations=iterations, damping=damping)
    scale, unit, eigen = _scaled(hessian)
    solved, chosen = dense.new_empty(dense.shape), torch.empty(dense.shape, dtype=torch.bool, device=dense.device)

    def work(rows: slice) -> tuple[Tensor, Tensor]:
        scaled = dense[rows] * scale
        start, first = (keep_top(scaled.abs(), pattern), scaled) if mask is None else (mask[rows], scaled * mask[rows])
        sparse, support = _admm(scaled @ unit, eigen, first, start, pattern, rho, rounds)
        at = torch.where(gram.diagonal() == 0, dense[rows], sparse / scale)  # exact for channels that never fired
        return _better(dense[rows], hessian, iterations, (start, dense[rows]), (support, at))

    slabs.fill(dense, work, solved, chosen)
    return solved, chosen


def _too_wide(width: int, widest: int) -> MethodError:
    return MethodError(
        f"alps: {width} input features are more than steps.update.widest = {widest}; raise it, set "
        "steps.update.wider = 'sparsegpt', or give the matrix another method with a [[targets]] rule"
    )


def _better(
    weight: Tensor, hessian: Tensor, iterations: int, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weight and mask, solved from the pair (mask, weight) that then loses less, row by row; `one` where even."""
    ends = [least_squares(weight, kept, hessian, begin, iterations, _TOLERANCE) for kept, begin in (one, other)]
    before, after = (row_losses(weight - updated, hessian) for updated in ends)
    takes = (after < before).unsqueeze(1)
    return torch.where(takes, ends[1], ends[0]), torch.where(takes, other[0], one[0])


def _scaled(hessian: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The roots of the diagonal, the Hessian over them, and the eigenvalues and vectors of that."""
    scale = hessian.diagonal().sqrt()
    unit = hessian / scale / scale.unsqueeze(1)
    try:
        values, vectors = torch.linalg.eigh(unit)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NumericsError(
            f"gram: its eigenvalues were not found ({error}); raise steps.update.damping, or take another update step"
        ) from error
    return scale, unit, (values, vectors)


def _admm(
    pull: Tensor,
    eigen: tuple[Tensor, Tensor],
    sparse: Tensor,
    start: Tensor,
    pattern: AnyPattern,
    rho: float,
    rounds: int,
) -> tuple[Tensor, Tensor]:
    """D and its support, (rows, in), from `pull` = W H, H of unit diagonal with these eigenvalues and vectors.

    Rows leave once their support stands still.
    """
    (values, vectors), result, support = eigen, sparse * start, start.clone()
    rows = torch.arange(len(pull), device=pull.device)
    penalty = torch.full((len(pull), 1), rho, dtype=pull.dtype, device=pull.device)
    dual, seen = torch.zeros_like(pull), start
    kept_of_row = pull.shape[1] * pattern.density
    for turn in range(1, rounds + 1):
        full = (pull - dual + penalty * sparse) @ vectors / (values + penalty) @ vectors.T
        sparse = full + dual / penalty
        kept = keep_top(sparse.abs(), pattern)
        sparse = sparse * kept
        dual = dual + penalty * (full - sparse)
        if turn % _EVERY and turn < rounds:
            continue
        moved = (kept != seen).sum(1, keepdim=True)
        growth = torch.where(moved >= 0.1 * kept_of_row, 1.3, torch.where(moved >= 0.005 * kept_of_row, 1.2, 1.1))
        goes_on = moved.squeeze(1) > 0
        result[rows], support[rows] = sparse, kept
        penalty = penalty * growth
        rows, penalty, pull, dual, sparse, seen = (part[goes_on] for part in (rows, penalty, pull, dual, sparse, kept))
        if not len(rows):
            break
    return result, support
