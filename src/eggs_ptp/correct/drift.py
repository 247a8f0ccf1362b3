"""Correction for drift: dense weights that undo, as far as a linear map can, what pruning has changed so far."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import damped
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles
from eggs_ptp.errors import NumericsError


def drift(
    weight: Tensor,
    gram: Tensor,
    cross: Tensor,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
    *,
    share: Annotated[float, Field(ge=0, le=1)] = 1.0,
    damping: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01,
    relative_damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
) -> Tensor:
    """Fit dense weights that map the pruned model's inputs to the dense model's outputs.

    V = argmin ||Y - X V^T||^2 / tokens + sum_ij d_j (V - W)_ij^2 with
    d = damping * mean(diag gram) + relative_damping * diag gram, so V = (cross + W diag d) H^-1 with
    H = gram + diag d. X (tokens, in) is the input of this matrix after all pruning so far, Y (tokens, out) what the
    dense model has as its output. For a matrix that writes to the residual stream, Y includes the drift of the stream
    itself, so that V corrects it. The following steps approximate V instead of W, and so get as close to Y as they
    can: ||Y - X W'^T||^2 = ||X (V - W')^T||^2 + what no weight can reach (at d = 0).

    Args:
        weight: W, (out, in).
        gram: X^T X / tokens, (in, in).
        cross: Y^T X / tokens, (out, in).
        row_tiles: How rows are divided over processes; one process by default.
        share: How far to go from W to V, 0 to 1; 1 by default, which is V.
        damping: Weight of the pull towards W, as a share of the mean of gram's diagonal, above 0; 0.01 by default.
            Raise it where tokens are few: below about 8 tokens per channel.
        relative_damping: Weight of a pull of each input's column of W, as a share of that input's entry of gram's
            diagonal, at least 0; 0 by default. It is added to the other.

    Returns:
        (1 - share) W + share V, (out, in), float32.

    Raises:
        NumericsError: gram holds NaN, or is not positive definite with this damping.

    Source:
        This project; the part for the inputs is GPTAQ's asymmetric calibration (arXiv:2504.02692), in closed form.
    """
    if not gram.any():
        return weight.float()  # its inputs never fired, so nothing can be corrected
    factor = damped(gram, damping, dtype=torch.float64, relative_damping=relative_damping)
    failed = torch.zeros((), dtype=torch.int32, device=factor.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))  # in place: it is the largest tensor here
    if failed:
        raise NumericsError(
            f"gram: with damping {damping:g} it is not positive definite; raise steps.correct.damping to "
            f"{max(10 * damping, 0.01):g}"
        )
    diagonal = gram.diagonal().double()
    pull = damping * gram.diagonal().mean(dtype=torch.float64) + relative_damping * diagonal
    corrected = torch.empty(weight.shape, device=weight.device)
    row_tiles.fill(weight, lambda rows: (_corrected_rows(weight[rows], cross[rows], factor, pull, share),), corrected)
    return corrected


def _corrected_rows(weight: Tensor, cross: Tensor, factor: Tensor, pull: Tensor, share: float) -> Tensor:
    """Solve for some rows of the corrected weight, given the lower Cholesky factor of H and d as `pull`, (in,)."""
    dense = weight.double()
    half = torch.linalg.solve_triangular(factor.mT, cross.double() + pull * dense, upper=True, left=False)
    solved = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
    return torch.lerp(dense, solved, share).float()
