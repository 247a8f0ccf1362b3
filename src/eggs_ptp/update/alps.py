"""ALPS: mask and weights optimised together by ADMM, then the weights exactly."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.least_squares import least_squares, row_losses
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles
from eggs_ptp.errors import MethodError, NumericsError
from eggs_ptp.update.pcg import pcg
from eggs_ptp.update.sparsegpt import sparsegpt

_TOLERANCE = 1e-4  # of the final least squares, as in pcg
_ROUNDS_PER_CHECK = 3  # rounds between two checks of how the support has moved


def alps(
    weight: Tensor,
    mask: Tensor | None,
    pattern: AnyPattern,
    gram: Tensor,
    tokens: Tensor | None = None,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
    *,
    damping: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01,
    rho: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1,
    rounds: Annotated[int, Field(ge=0)] = 300,
    iterations: Annotated[int, Field(ge=0)] = 20,
    widest: Annotated[int, Field(ge=1)] = 16384,
    wider: Literal["refuse", "sparsegpt"] = "refuse",
) -> tuple[Tensor, Tensor]:
    """Minimise the layer's output error over masks and weights together by ADMM, then over the weights exactly.

    Minimises tr((W - D) H (W - D)^T) over weights D of the pattern, with
    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I, scaled to a unit diagonal. Each row repeats
    X = (W H - V + rho D) (H + rho I)^-1; D = X + V / rho where that is largest (N of M, or of the row), else 0;
    V += rho (X - D). Every third round rho grows by 1.3, 1.2 or 1.1, if at least a tenth, at least half a percent or
    less of the row's support has changed since the last check. A row whose support has not changed is finished, at the
    latest after `rounds`. One eigendecomposition serves every rho. `iterations` of `pcg` follow.

    D starts from `mask` if there is one, which is not kept, and otherwise from W. Each row also solves for the weights
    of the support that it started from, and keeps these if they lose less, so the result never loses more than `pcg`
    does with the given mask.

    The eigendecomposition takes about 10 in^3 operations and four matrices of in^2.

    Args:
        weight: W, (out, in).
        mask: Keep mask to start from, bool (out, in); None to start from W.
        pattern: N:M, or unstructured, which is met in every row.
        gram: X^T X / tokens, (in, in).
        tokens: Number of tokens that gram was computed from, shape (); None for no correction of the damping.
        row_tiles: How rows are divided over processes; one process by default.
        damping: Share of the mean of gram's diagonal that is added to its diagonal, above 0; 0.01 by default.
        rho: Initial penalty of ADMM, above 0, relative to a unit diagonal of H; 0.1 by default.
        rounds: Most rounds of ADMM, at least 0; 300 by default.
        iterations: Most iterations of the final least squares, at least 0; 20 by default.
        widest: Most inputs of a matrix that is solved by ADMM, at least 1; 16384 by default.
        wider: What to do with a matrix of more inputs: "refuse" (default) raises an error; "sparsegpt" takes
            SparseGPT's mask, where none is given, and exact least squares.

    Returns:
        Weight, float32 (out, in), and keep mask, bool (out, in).

    Raises:
        PatternError: The columns cannot be cut into groups of M.
        MethodError: There are more inputs than `widest`.
        NumericsError: gram is zero, or its eigendecomposition fails.

    Source:
        ALPS, arXiv:2406.07831, algorithm 1.

    Differs:
        rho, its growth and the stop belong to each row (in the paper to the matrix), as do the step sizes of the least
        squares; unstructured patterns are met in every row, not over the matrix; the better of start and end is kept;
        fewer than 32 tokens per channel raise the damping, as in pcg.
    """
    hessian = damped(gram, damping, tokens)
    dense = weight.to(hessian.dtype)
    pattern.check_width(dense.shape[1], "weight")
    if dense.shape[1] > widest and wider == "refuse":
        raise MethodError(
            f"alps: {dense.shape[1]} input features are more than steps.update.widest = {widest}; raise it, set "
            "steps.update.wider = 'sparsegpt', or give the matrix another method with a [[targets]] rule"
        )
    if dense.shape[1] > widest:
        if mask is None:
            mask = row_tiles.broadcast(sparsegpt(weight, None, pattern, gram, damping=damping)[1])
        return pcg(weight, mask, gram, None, tokens, row_tiles, iterations=iterations, damping=damping)
    scale, unit, eigen = _scaled_eigen(hessian)
    solved = dense.new_empty(dense.shape)
    solved_mask = torch.empty(dense.shape, dtype=torch.bool, device=dense.device)

    def solve(rows: slice) -> tuple[Tensor, Tensor]:
        scaled = dense[rows] * scale
        if mask is None:
            start_mask, start = keep_top(scaled.abs(), pattern), scaled
        else:
            start_mask, start = mask[rows], scaled * mask[rows]
        sparse, support = _admm(scaled @ unit, eigen, start, start_mask, pattern, rho, rounds)
        # Kept weights of channels that are always zero keep their dense value exactly.
        unscaled = torch.where(gram.diagonal() == 0, dense[rows], sparse / scale)
        return _better_of(dense[rows], hessian, iterations, (start_mask, dense[rows]), (support, unscaled))

    row_tiles.fill(dense, solve, solved, solved_mask)
    return solved, solved_mask


def _better_of(
    weight: Tensor,
    hessian: Tensor,
    iterations: int,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Solve from two pairs (mask, start); return weight and mask of the one that loses less, row by row.

    A tie goes to the first.
    """
    first_solved, second_solved = (
        least_squares(weight, mask, hessian, start, iterations, _TOLERANCE) for mask, start in (first, second)
    )
    first_loss = row_losses(weight - first_solved, hessian)
    second_loss = row_losses(weight - second_solved, hessian)
    second_wins = (second_loss < first_loss).unsqueeze(1)
    return torch.where(second_wins, second_solved, first_solved), torch.where(second_wins, second[0], first[0])


def _scaled_eigen(hessian: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Scale a Hessian to a unit diagonal.

    Returns:
        Roots of its diagonal, (in,), the scaled Hessian, (in, in), and the eigenvalues and eigenvectors of the latter.
    """
    scale = hessian.diagonal().sqrt()
    unit = hessian / scale / scale.unsqueeze(1)
    try:
        values, vectors = torch.linalg.eigh(unit)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NumericsError(
            f"gram: its eigendecomposition failed ({error}); raise steps.update.damping, or use another update step"
        ) from error
    return scale, unit, (values, vectors)


def _admm(
    pull: Tensor,
    eigen: tuple[Tensor, Tensor],
    sparse: Tensor,
    start_mask: Tensor,
    pattern: AnyPattern,
    rho: float,
    rounds: int,
) -> tuple[Tensor, Tensor]:
    """Run ADMM on some rows; a row leaves the loop once its support does not change.

    Args:
        pull: W H, (rows, in), with H of unit diagonal.
        eigen: Eigenvalues, (in,), and eigenvectors, (in, in), of H.
        sparse: D to start from, (rows, in).
        start_mask: Its support, bool (rows, in).
        pattern: N:M, or unstructured, which is met in every row.
        rho: Initial penalty.
        rounds: Most rounds.

    Returns:
        D, (rows, in), and its support, bool (rows, in).
    """
    values, vectors = eigen
    result = sparse * start_mask
    support = start_mask.clone()
    rows = torch.arange(len(pull), device=pull.device)
    penalty = torch.full((len(pull), 1), rho, dtype=pull.dtype, device=pull.device)
    dual = torch.zeros_like(pull)
    previous = start_mask  # the support at the last check
    kept_per_row = pull.shape[1] * pattern.density
    for iteration in range(1, rounds + 1):
        full = (pull - dual + penalty * sparse) @ vectors / (values + penalty) @ vectors.T
        sparse = full + dual / penalty
        kept = keep_top(sparse.abs(), pattern)
        sparse = sparse * kept
        dual = dual + penalty * (full - sparse)
        if iteration % _ROUNDS_PER_CHECK and iteration < rounds:
            continue
        moved = (kept != previous).sum(1, keepdim=True)
        growth = torch.where(moved >= 0.1 * kept_per_row, 1.3, torch.where(moved >= 0.005 * kept_per_row, 1.2, 1.1))
        active = moved.squeeze(1) > 0
        result[rows] = sparse
        support[rows] = kept
        penalty = penalty * growth
        rows = rows[active]
        penalty = penalty[active]
        pull = pull[active]
        dual = dual[active]
        sparse = sparse[active]
        previous = kept[active]
        if not len(rows):
            break
    return result, support
